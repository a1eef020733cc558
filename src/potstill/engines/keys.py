"""API keys: from the environment or a file of mode 0600, and from there to the wire only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from potstill.errors import InputError


class Key:
    """A key that does not show itself: not in a repr, a log, a traceback or a pickle."""

    def __init__(self, secret: str = "") -> None:
        self.__secret = secret

    def __repr__(self) -> str:
        return "Key(***)" if self.__secret else "Key(none)"

    def __reduce__(self) -> str:
        raise TypeError("a key is not stored")

    def __bool__(self) -> bool:
        return bool(self.__secret)

    def headers(self, form: str) -> dict[str, str]:
        """The header that carries it, for the wire only."""
        if not self.__secret:
            return {}
        return {"x-api-key": self.__secret} if form == "anthropic" else {"Authorization": f"Bearer {self.__secret}"}

    def struck_out(self, said: bytes) -> bytes:
        """What a server said, without the key, should it repeat it."""
        return said.replace(self.__secret.encode(), b"***") if self.__secret else said


def find_key(key_env: str | None, key_file: str | None) -> Key:
    """Raises InputError where the recipe names a key that is not there, or a file that others can read."""
    if key_env is not None:
        return Key(_usable(os.environ.get(key_env, ""), f"the environment variable {key_env}"))
    if key_file is None:
        return Key()
    path = Path(key_file).expanduser()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise InputError(f"the recipe's key_file has mode {mode:04o}: others can read it", way_out="chmod 600 it")
        return Key(_usable(path.read_text(encoding="utf-8"), "the recipe's key_file"))
    except (OSError, UnicodeDecodeError):
        raise InputError("the recipe's key_file cannot be read", way_out="give a text file that is there") from None


def _usable(found: str, where: str) -> str:
    key = found.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        problem = "holds no key" if not key else "holds something that is no key"
        raise InputError(f"{where} {problem}", way_out="put the key there, on one line")
    return key
