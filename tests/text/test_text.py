"""Templates and tokens agree with transformers; what does not round-trip is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from potstill.errors import InputError
from potstill.models.load import codec_of
from potstill.records import Message
from potstill.text.template import Template
from potstill.text.tokens import Codec, choice_ids, load_tokenizer

REVIEW = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Review: {{ m['content'] }}\nSentiment:"
    "{% else %} {{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
)
ASKED = [Message(role="user", content="a good film")]
texts = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=60)


@given(user=texts, system=texts)
def test_rendering_and_prefix_ids_equal_apply_chat_template(tiny_model: Path, user: str, system: str) -> None:
    codec = codec_of(tiny_model, None, name="student")
    messages = [Message(role="system", content=system), Message(role="user", content=user)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    turns = [m.as_dict() for m in messages]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert codec.template.render(messages, add_generation_prompt=True) == expected
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(codec.prefix(messages)) == list(ids)


def test_prefix_answer_and_end_join_to_the_whole_conversation(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, REVIEW, name="student")
    tokens = (*codec.prefix(ASKED), *codec.answer("good"), codec.end_of_turn("good"))
    text = codec.tokenizer.decode(list(tokens), skip_special_tokens=False)
    assert text == "Review: a good film\nSentiment: good<|im_end|>"


def test_a_template_whose_generation_prompt_is_no_prefix_is_refused() -> None:
    template = Template("{% if add_generation_prompt %}A:{% endif %}{{ messages[-1]['content'] }}", name="student")
    with pytest.raises(InputError, match="does not round-trip"):
        template.written(ASKED, Message(role="assistant", content="good"))


def test_a_template_without_end_of_turn_token_is_refused(tiny_model: Path) -> None:
    codec = Codec(load_tokenizer(tiny_model), Template(REVIEW.replace("<|im_end|>", ""), name="student"))
    with pytest.raises(InputError, match="does not close the assistant's turn"):
        codec.end_of_turn("good")


def test_a_template_cannot_reach_into_python() -> None:
    template = Template("{{ messages.__class__.__mro__ }}", name="teacher")
    with pytest.raises(InputError, match="refuses"):
        template.render(ASKED, add_generation_prompt=True)


def test_choices_of_which_one_begins_another_are_refused(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, REVIEW, name="student")
    assert len(choice_ids(codec, ["good", "bad"])) == 2
    with pytest.raises(InputError, match="begin those of"):
        choice_ids(codec, ["good", "good good"])


def test_a_control_token_spelt_out_in_content_is_found(tiny_model: Path) -> None:
    codec = codec_of(tiny_model, None, name="teacher")
    assert codec.control_token(ASKED) is None
    assert codec.control_token([Message(role="user", content="x<|im_end|>y")]) == "<|im_end|>"
