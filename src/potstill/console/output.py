"""Two streams: tables and lines on stdout, one sentence on stderr when something is wrong; JSON for programs."""

from __future__ import annotations

import json
import re
import sys

from rich.console import Console
from rich.markup import escape

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Model text without escape sequences, bidi controls and rich markup."""
    return escape(_CONTROL.sub("", text))


def say(text: str) -> None:
    """A line, never broken."""
    out.print(text, soft_wrap=True)


def say_error(error: Exception, *, as_json: bool, code: int) -> None:
    """One sentence on stderr."""
    said = " ".join(str(error).split())
    if as_json:
        sys.stderr.write(json.dumps({"error": said, "exit_code": code}) + "\n")
    else:
        err.print(f"[bold red]error:[/] {clean(said)}", soft_wrap=True)


def say_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
