"""Words of any language. Where no blanks stand between words, every character is a token, and some make a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import InputError
from potstill.models.locate import hub_snapshot

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HAN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese and Japanese: about two make a word
_ABUGIDA = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer: about four
UNSPACED = f"{_HAN}{_ABUGIDA}"
_WORDS = re.compile(r"\w+")
_TOKENS = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")
_HAN_ONE = re.compile(f"[{_HAN}]")
_WORD = 4  # quarters of a word


def words(text: str) -> list[str]:
    """Casefolded words; of Chinese, Japanese, Thai and their like, characters."""
    folded = text.casefold()
    return (_TOKENS if _UNSPACED.search(folded) else _WORDS).findall(folded)


def count_words(text: str) -> int:
    """How many words there are between blanks; where there are no blanks, about how many."""
    if not _UNSPACED.search(text):
        return len(text.split())
    return -(-sum(map(_width, _TOKENS.findall(text))) // _WORD)


def count_tokens(text: str, tokenizer: str) -> int:
    return len(tokenizer_of(tokenizer).encode(text, add_special_tokens=False).ids)


@cache
def tokenizer_of(name: str) -> Tokenizer:
    """That of a model folder, or of a hub id that was downloaded before. Raises InputError where there is none."""
    from potstill.text.tokens import load_tokenizer

    folder = Path(name) if Path(name).is_dir() else hub_snapshot(name, None)
    if folder is None:
        raise InputError(f"verify.checks: there is no tokenizer at '{name}'", way_out="give a model folder")
    return load_tokenizer(folder)


def runs(tokens: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Every run of `size` words: one begins at each token that has so much after it."""
    widths = [_width(token) for token in tokens]
    if all(width == _WORD for width in widths):
        yield from (tokens[i : i + size] for i in range(len(tokens) - size + 1))
        return
    end = total = 0
    for start, width in enumerate(widths):
        while total < size * _WORD and end < len(tokens):
            total += widths[end]
            end += 1
        if total < size * _WORD:
            return
        yield tokens[start:end]
        total -= width


def shorter(tokens: Sequence[str], size: int) -> bool:
    """Whether they are fewer than `size` words."""
    return sum(map(_width, tokens)) < size * _WORD


def _width(token: str) -> int:
    if token.isascii() or not _UNSPACED.match(token):
        return _WORD
    return 2 if _HAN_ONE.match(token) else 1
