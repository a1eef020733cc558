"""Text that can be stored: JSON may spell half of a UTF-16 pair, which SQLite, Parquet and tokenizers refuse."""

from __future__ import annotations

import json
from typing import Any


def whole(text: str) -> str:
    """`text` with U+FFFD in place of every lone surrogate, as servers send them that stop inside an emoji."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def whole_values(value: Any) -> Any:
    """The same of every text in a JSON value."""
    return json.loads(whole(json.dumps(value, ensure_ascii=False)))
