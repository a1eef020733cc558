"""Write sums, their worked answers and a blank student: `make_sums.py data/sums` writes there

    sums.jsonl       to learn from
    sums_test.jsonl  to be examined on: no sum of it is in the other, in any order of its terms
    answers.jsonl    what the teacher says, a program: column by column from the right, then the answer
    student/         a small Llama with random weights that reads characters

The same for the same seeds. `--seed` draws the sums to learn and the weights, `--exam-seed` the exam.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

Terms = tuple[int, ...]
END, PAD, TAGS = "<|im_end|>", "<|endoftext|>", ("<think>", "</think>")


def sums(count: int, draw: random.Random, *, terms: int, without: frozenset[Terms] = frozenset()) -> Iterator[Terms]:
    """So many numbers of two digits each; no sum twice, none whose terms in some order are in `without`."""
    seen: set[Terms] = set()
    while len(seen) < count:
        drawn = tuple(draw.randint(10, 99) for _ in range(terms))
        if drawn not in seen and tuple(sorted(drawn)) not in without:
            seen.add(drawn)
            yield drawn


def asked(terms: Terms) -> str:
    return f"{'+'.join(map(str, terms))}="


def worked(terms: Terms) -> str:
    """A line a column, units first; what is carried comes last: 7+5=12+6=18 and 4+8=12+2=14+1=15 for 47+85+26."""
    lines: list[str] = []
    carried = 0
    for column in (1, 10):
        total, *more = (term // column % 10 for term in terms)
        line = str(total)
        for digit in (*more, carried) if lines else more:
            total += digit
            line += f"+{digit}={total}"
        lines.append(line)
        carried = total // 10
    return "\n".join(lines)


def problem(terms: Terms) -> dict[str, object]:
    """`carried`: what goes from the units to the tens."""
    carried = sum(term % 10 for term in terms) // 10
    return {"text": asked(terms), "sum": str(sum(terms)), "carried": carried}


def blank_student(folder: Path, *, layers: int, width: int, seed: int) -> None:
    """A model folder. Every byte is a token; the thinking tags are one each, as in models that think."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = [PAD, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([PAD, END])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD).save_pretrained(folder)


def write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def said(problems: Sequence[Terms]) -> Iterator[dict[str, object]]:
    """The answers in the form that models think in, which every engine takes apart."""
    opening, closing = TAGS
    for terms in problems:
        yield {"prompt": asked(terms), "answer": f"{opening}{worked(terms)}{closing}{sum(terms)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--terms", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exam-seed", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    test = list(sums(given.test, random.Random(given.exam_seed), terms=given.terms))
    kept_away = frozenset(tuple(sorted(terms)) for terms in test)
    learn = list(sums(given.count, random.Random(given.seed), terms=given.terms, without=kept_away))
    write(given.folder / "sums.jsonl", map(problem, learn))
    write(given.folder / "sums_test.jsonl", map(problem, test))
    write(given.folder / "answers.jsonl", said([*learn, *test]))
    blank_student(given.folder / "student", layers=given.layers, width=given.width, seed=given.seed)


if __name__ == "__main__":
    main()
