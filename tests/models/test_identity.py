"""Which weights a model has: a hash that follows every change, read once, without torch."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from potstill.models.identity import file_hash, fingerprint, identity, weights
from potstill.models.load import load
from potstill.models.locate import locate
from potstill.recipe.teacher import Gguf, Local, Server, Teacher


def teacher(model: str, engine: Local | Gguf | Server, revision: str | None = None) -> Teacher:
    return Teacher(model=model, revision=revision, licence="mit", engine=engine)


def local(model: str, revision: str | None = None) -> str:
    return identity(teacher(model, Local(kind="local"), revision))  # pyright: ignore[reportCallIssue]


def gguf(model: str) -> str:
    return identity(teacher(model, Gguf(kind="gguf")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hashes.json"


def test_a_folder_is_its_weights_wherever_it_lies(tmp_path: Path, tiny_model: Path) -> None:
    other = tmp_path / "elsewhere"
    other.symlink_to(tiny_model)
    assert (
        local(str(tiny_model)) == local(str(other)) == fingerprint(tiny_model) == load(locate(str(other))).fingerprint
    )


def test_a_served_model_is_its_name_and_stated_revision(tiny_model: Path) -> None:
    for url in ("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"):
        server = Server(kind="server", url=url)  # pyright: ignore[reportCallIssue]
        assert identity(teacher(str(tiny_model), server)) == str(tiny_model)
        assert identity(teacher("m", server, "step-400")) == "m@step-400"


def test_a_gguf_file_is_its_bytes_and_one_that_is_gone_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and more")
    assert gguf(str(path)) == hashlib.sha256(b"GGUF and more").hexdigest()
    path.unlink()
    assert weights(str(path), None) is None and gguf(str(path)) == str(path)


def test_a_hub_model_is_its_weights_once_it_is_here(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert (local("org/model"), local("org/model", "v2")) == ("org/model", "org/model@v2")
    snapshots, refs = (tmp_path / "hub" / "models--org--model" / part for part in ("snapshots", "refs"))
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123")
    (snapshots / "abc123").mkdir(parents=True)
    (snapshots / "abc123" / "tokenizer.json").symlink_to(tiny_model / "tokenizer.json")
    assert local("org/model") == "org/model", "the weights are not here yet"
    (snapshots / "abc123" / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    assert local("org/model") == local("org/model", "abc123") == fingerprint(tiny_model)
    assert local("org/model", "v2") == "org/model@v2"


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert file_hash(path) == hashlib.sha256(b"one").hexdigest() and not cache.exists(), "too young to be remembered"
    times = path.stat().st_mtime_ns
    time.sleep(2.1)
    assert file_hash(path) == hashlib.sha256(b"one").hexdigest()
    kept = json.loads(cache.read_text())
    kept[str(path)][-1] = "remembered"
    cache.write_text(json.dumps(kept))
    assert file_hash(path) == "remembered"
    path.write_bytes(b"two")  # of the same size
    os.utime(path, ns=(times, times))  # and pretending to be as old
    assert file_hash(path) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("broken", ["[]", "{", '{"x": 1}'])
def test_a_broken_cache_costs_time_alone(tmp_path: Path, cache: Path, broken: str) -> None:
    cache.parent.mkdir()
    cache.write_text(broken)
    (tmp_path / "weights").write_bytes(b"one")
    assert file_hash(tmp_path / "weights") == hashlib.sha256(b"one").hexdigest()


def test_no_torch() -> None:
    words = "import sys; import potstill.models.identity; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", words], check=True)
