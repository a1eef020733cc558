"""31 keys, each unlike any other text, through configurations, errors and crashes: none may turn up anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_runs import command, write_recipe
from ruamel.yaml import YAML

from loopback import loopback

Edit = Callable[[dict[str, Any], str, Path], None]


def engine(**values: Any) -> Edit:
    def edit(recipe: dict[str, Any], canary: str, _: Path) -> None:
        recipe["teacher"]["engine"] |= json.loads(json.dumps(values).replace("CANARY", canary))

    return edit


def key_file(mode: int, content: str = "CANARY") -> Edit:
    def edit(recipe: dict[str, Any], canary: str, folder: Path) -> None:
        path = folder.parent / f"{folder.name}.key"
        path.write_text(content.replace("CANARY", canary))
        path.chmod(mode)
        recipe["teacher"]["engine"]["key_file"] = str(path)

    return edit


ENV = engine(key_env="TEACHER_KEY")
TWICE = engine(key_env="TEACHER_KEY", attempts=2)
# what is written into the recipe · how the server misbehaves · more arguments · exit codes that are right
CASES: dict[str, tuple[Edit, dict[str, Any], tuple[str, ...], set[int]]] = {
    "a key that works": (ENV, {"key": "CANARY"}, (), {0}),
    "a key that works, json": (ENV, {"key": "CANARY"}, ("--json",), {0}),
    "a key that works, debug": (ENV, {"key": "CANARY"}, ("--debug",), {0}),
    "a key file": (key_file(0o600), {"key": "CANARY"}, (), {0}),
    "a key file with a newline": (key_file(0o600, "CANARY\n"), {"key": "CANARY"}, (), {0}),
    "a key that is refused and repeated": (ENV, {"key": "another"}, (), {4}),
    "refused, debug": (ENV, {"key": "another"}, ("--debug",), {4}),
    "refused, json": (ENV, {"key": "another"}, ("--json",), {4}),
    "anthropic, refused": (engine(key_env="TEACHER_KEY", form="anthropic"), {"key": "another"}, (), {4}),
    "every request fails and repeats it": (TWICE, {"faults": 1, "kinds": "500"}, (), {4}),
    "resets": (TWICE, {"faults": 1, "kinds": "reset after"}, ("--debug",), {4}),
    "wrong type": (TWICE, {"faults": 1, "kinds": "wrong type"}, (), {4}),
    "a key others can read": (key_file(0o644), {}, (), {2}),
    "a key others can read, debug": (key_file(0o644), {}, ("--debug",), {2}),
    "a key file of two words": (key_file(0o600, "CANARY and more"), {}, (), {2}),
    "the key where its name belongs": (engine(key_env="CANARY"), {}, (), {2}),
    "the key where its name belongs, debug": (engine(key_env="CANARY"), {}, ("--debug",), {2}),
    "the key under a key of its own": (engine(api_key="CANARY"), {}, ("--debug",), {2}),
    "the key as user of the address": (engine(url="https://CANARY@example.org/v1"), {}, ("--debug",), {2}),
    "the key as password": (engine(url="https://me:CANARY@example.org/v1"), {}, (), {2}),
    "the key as query": (engine(url="https://example.org/v1?key=CANARY"), {}, ("--json",), {2}),
    "the key in another scheme": (engine(url="ftp://CANARY"), {}, (), {2}),
    "an object where the address belongs": (engine(url=[{"key": "x"}], key_env="TEACHER_KEY"), {}, (), {2}),
    "plain http to another machine": (engine(url="http://192.0.2.1/v1", key_env="TEACHER_KEY"), {}, (), {2}),
    "in a header": (engine(headers={"x-api-key": {"env": "TEACHER_KEY"}}), {"key": "CANARY"}, (), {0}),
    "in a header that is repeated": (engine(headers={"Authorization": {"env": "TEACHER_KEY"}}), {"key": "no"}, (), {4}),
    "in the query": (engine(query={"key": {"env": "TEACHER_KEY"}}), {"faults": 1, "kinds": "400"}, ("--json",), {4}),
    "in a header in clear": (engine(headers={"api-key": "CANARY"}), {}, ("--debug",), {2}),
    "in the query in clear": (engine(query={"key": "CANARY"}), {}, (), {2}),
    "the value where its variable belongs": (engine(headers={"x": {"env": "CANARY"}}), {}, (), {2}),
    "killed in the middle": (ENV, {"delay": 0.3}, ("KILL",), {-9}),
}  # fmt: skip


def test_there_are_thirty_one() -> None:
    assert len(CASES) == 31


@pytest.mark.parametrize("name", list(CASES))
def test_a_key_is_found_nowhere(tmp_path: Path, name: str) -> None:
    edit, server_options, arguments, codes = CASES[name]
    canary = f"sk-canary{list(CASES).index(name):02d}x{7**20:x}"
    options = {k: canary if v == "CANARY" else v for k, v in server_options.items()}
    folder = tmp_path / "given"
    folder.mkdir()
    with loopback(**options) as server:
        path = write_recipe(folder, server.url, prompts=30, n=1)
        recipe = YAML(typ="safe").load(path)
        edit(recipe, canary, tmp_path / "secret")
        with path.open("w") as file:
            YAML().dump(recipe, file)
        before = canary in path.read_text()
        words = [a for a in arguments if a != "KILL"]
        environment = {**os.environ, "TEACHER_KEY": canary}
        with subprocess.Popen(
            command(path, tmp_path / "run", *words),
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as child:  # fmt: skip
            while "KILL" in arguments and server.attempts() < 10:
                time.sleep(0.02)
            if "KILL" in arguments:
                child.send_signal(signal.SIGKILL)
            printed = "".join(child.communicate(timeout=60))
    assert child.returncode in codes, printed
    assert canary not in printed
    written = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert bool(written) == (2 not in codes), written
    for file in written:
        assert canary.encode() not in file.read_bytes(), file
    assert before == (canary in path.read_text())
