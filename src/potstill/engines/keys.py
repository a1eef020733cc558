"""API keys, and headers and query strings of one's own: from the environment or a file of mode 0600, and from there to
the wire only."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from potstill.errors import InputError
from potstill.recipe.teacher import FromEnvironment, Http

_SHORT = 8  # characters below which a value from the environment is no secret, and may stand in any answer


class Key:
    """A key that does not show itself: not in a repr, a log, a traceback or a pickle. Nor do the headers and the query
    that go with it; `unseen` are those of their values that are secret."""

    def __init__(
        self,
        secret: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        unseen: tuple[str, ...] = (),
    ) -> None:
        self.__secret, self.__headers, self.__query = secret, dict(headers or {}), dict(query or {})
        self.__any = bool(secret or unseen)
        words = [word for value in unseen for word in value.split() if len(word) >= _SHORT]
        self.__secrets = sorted(filter(None, (secret, *words)), key=len, reverse=True)

    def __repr__(self) -> str:
        return "Key(***)" if self else "Key(none)"

    def __reduce__(self) -> str:
        raise TypeError("a key is not stored")

    def __bool__(self) -> bool:
        return self.__any

    def headers(self, form: str) -> dict[str, str]:
        """The header that carries it, and those of one's own, for the wire only."""
        carrier = {"x-api-key": self.__secret} if form == "anthropic" else {"Authorization": f"Bearer {self.__secret}"}
        return (carrier if self.__secret else {}) | self.__headers

    @property
    def query(self) -> Mapping[str, str]:
        """What stands behind the address, for the wire only."""
        return self.__query

    def struck_out(self, said: bytes) -> bytes:
        """What a server said, without what nobody may see, should it repeat it."""
        for secret in self.__secrets:
            said = said.replace(secret.encode(), b"***")
        return said


def find_key(http: Http) -> Key:
    """Raises InputError where the recipe names a key or a value that is not there, or a file that others can read."""
    unseen = list[str]()

    def value_of(given: str | FromEnvironment, key: str) -> str:
        if isinstance(given, str):
            return given
        found = os.environ.get(given.env, "").strip()
        if not found or not found.isascii() or not found.isprintable():
            problem = f"'{key}': the environment variable {given.env} holds no text of one line"
            raise InputError(problem, way_out="put the value there")
        unseen.append(found)
        return found

    headers = {name: value_of(value, f"headers.{name}") for name, value in http.headers.items()}
    query = {name: value_of(value, f"query.{name}") for name, value in http.query.items()}
    return Key(_secret(http.key_env, http.key_file), headers=headers, query=query, unseen=tuple(unseen))


def _secret(key_env: str | None, key_file: str | None) -> str:
    if key_env is not None:
        return _usable(os.environ.get(key_env, ""), f"the environment variable {key_env}")
    if key_file is None:
        return ""
    path = Path(key_file).expanduser()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise InputError(f"the recipe's key_file has mode {mode:04o}: others can read it", way_out="chmod 600 it")
        return _usable(path.read_text(encoding="utf-8"), "the recipe's key_file")
    except (OSError, UnicodeDecodeError):
        raise InputError("the recipe's key_file cannot be read", way_out="give a text file that is there") from None


def _usable(found: str, where: str) -> str:
    key = found.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        problem = "holds no key" if not key else "holds something that is no key"
        raise InputError(f"{where} {problem}", way_out="put the key there, on one line")
    return key
