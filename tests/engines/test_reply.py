"""Every name that reasoning goes by, and every way to end, become one record."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.engines.reply import read_anthropic, read_openai, split_inline
from potstill.engines.sampler import Answer, Failure, Usage


def openai(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> Answer:
    raw = json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more}).encode()
    return read_openai(raw).answers[0]


@pytest.mark.parametrize(
    "message",
    [
        {"content": "yes", "reasoning_content": "hm"},
        {"content": "yes", "reasoning": "hm"},
        {"content": "yes", "thinking": "hm"},
        {"content": "yes", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]},
        {"content": [{"type": "reasoning", "reasoning": [{"text": "hm"}]}, {"type": "output_text", "text": "yes"}]},
        {"content": "<think>\nhm\n</think>\n\nyes"},
        {"content": "<thinking>hm</thinking>yes"},
        {"content": "<reasoning>hm</reasoning> yes"},
        {"content": "<thought>hm</thought> yes"},
        {"content": "[THINK]hm[/THINK]yes"},
        {"content": "◁think▷hm◁/think▷yes"},
        {"content": "hm\n</think>\nyes"},  # the template wrote the opening tag
        {"content": "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes"},
        {"content": "yes", "reasoning_content": "hm", "reasoning": "hm"},
    ],
)
def test_reasoning_is_found_wherever_it_stands(message: dict[str, Any]) -> None:
    assert openai(message) == Answer(text="yes", reasoning="hm", finish="stop", cut_off=False)


def test_reasoning_that_never_ends_is_cut_off_whatever_the_server_says() -> None:
    assert openai({"content": "<think>hm, well"}) == Answer(text="", reasoning="hm, well", finish="stop", cut_off=True)
    assert openai({"content": None, "reasoning": "hm"}, "length").cut_off


@given(text=st.text())
def test_text_without_tags_is_the_answer_as_it_is(text: str) -> None:
    if not any(tag in text for tag in ("think", "THINK", "reasoning", "thought", "<|")):
        assert split_inline(text) == (None, text, True)


@given(thought=st.text("abc \n"), answer=st.text("xyz \n"))
def test_tags_in_the_middle_belong_to_the_answer(thought: str, answer: str) -> None:
    reasoning, text, closed = split_inline(f"<think>{thought}</think>z{answer} <think>is a tag")
    assert (reasoning, text, closed) == (thought.strip(), f"z{answer} <think>is a tag", True)


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "filtered"),
        ("tool_calls", "tool_calls"),
        (None, "unknown"),
    ],
)
def test_every_way_to_finish_has_one_name(said: str | None, finish: str) -> None:
    assert openai({"content": "x"}, said).finish == finish


def test_usage_counts_hidden_reasoning_and_cached_prompts() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 40,  # 25 tokens of thought that the completion leaves out
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 25},
    }
    raw = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}).encode()
    assert read_openai(raw).usage == Usage(prompt=10, completion=30, cached=8)
    assert read_openai(b'{"choices": [{"message": {"content": "x"}}]}').usage is None


def test_samples_of_one_request_come_in_order() -> None:
    choices = [{"index": i, "message": {"content": str(i)}, "finish_reason": "stop"} for i in (2, 0, 1)]
    assert [a.text for a in read_openai(json.dumps({"choices": choices}).encode()).answers] == ["0", "1", "2"]


def test_anthropic_messages_are_read() -> None:
    body = {
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}],
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2},
    }
    reading = read_anthropic(json.dumps(body).encode())
    assert reading.answers == (Answer(text="yes", reasoning="hm", finish="length", cut_off=True),)
    assert reading.usage == Usage(prompt=7, completion=2, cached=4)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": [null]}',
        b'{"choices": 3}', b'{"choices": [{"message": "x"}]}', b"[" * 100_000,
        b'{"choices": [{"message": {"content": [1]}}]}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_what_is_no_reply_is_unreadable(raw: bytes) -> None:
    with pytest.raises(Failure) as said:
        read_openai(raw)
    assert said.value.kind == "unreadable"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "m"}, "rate limited"), ({"code": "429"}, "rate limited"),
        ({"code": 429, "type": "insufficient_quota"}, "not allowed"), ({"code": 502}, "server error"),
        ({"code": 503}, "overloaded"), ({"code": 401}, "not allowed"), ({"code": 404}, "wrong address"),
        ({"code": 400}, "refused"), ({"code": 8, "status": "RESOURCE_EXHAUSTED"}, "rate limited"),
        ({"type": "rate_limit_error"}, "rate limited"), ({"type": "overloaded_error"}, "overloaded"),
        ({"type": "invalid_request_error"}, "refused"), ({"code": "context_length_exceeded"}, "refused"),
        ({"type": "authentication_error"}, "not allowed"), ({"code": "insufficient_quota"}, "not allowed"),
        ({"type": "NotFoundError"}, "wrong address"), ({"type": "BadRequestError"}, "refused"),
        ({"type": "api_error"}, "server error"), ({"message": "late"}, "server error"), ("late", "server error"),
        (["late"], "server error"), (7, "server error"),
    ],
)  # fmt: skip
def test_an_error_inside_a_200_is_what_it_says(error: object, kind: str) -> None:
    for read in (read_openai, read_anthropic):
        with pytest.raises(Failure) as said:
            read(json.dumps({"error": error, "choices": []}).encode())
        assert (said.value.kind, said.value.status, said.value.usage) == (kind, 200, None)


def test_an_answer_that_broke_off_is_none() -> None:
    gone = {"message": {"content": "The an"}, "finish_reason": "error", "error": {"code": 429, "message": "slower"}}
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    with pytest.raises(Failure) as said:
        read_openai(json.dumps({"choices": [gone], "usage": usage}).encode())
    assert (said.value.kind, said.value.detail) == ("rate limited", "slower (said in a reply of status 200)")
    assert said.value.usage == Usage(prompt=7, completion=2)
    kept = {"message": {"content": "two"}, "finish_reason": "stop"}
    found = read_openai(json.dumps({"choices": [gone, kept, {**gone, "finish_reason": "abort"}]}).encode())
    assert [answer.text for answer in found.answers] == ["two"]


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens_details": {}}, 3])
def test_a_usage_without_a_count_says_nothing(usage: object) -> None:
    reply = {"choices": [{"message": {"content": "x"}}], "content": [], "usage": usage}
    assert read_openai(json.dumps(reply).encode()).usage is None
    assert read_anthropic(json.dumps(reply).encode()).usage is None


def test_a_usage_in_floats_is_counted() -> None:
    reply = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 3.0, "completion_tokens": 1.5}}
    assert read_openai(json.dumps(reply).encode()).usage == Usage(prompt=3, completion=2)


names = st.sampled_from(
    ["choices", "message", "content", "usage", "finish_reason", "index", "reasoning_details", "error"]
)
values = st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(names, x))


@given(raw=st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_no_reply_breaks_the_reader(raw: bytes) -> None:
    for read in (read_openai, read_anthropic):
        try:
            read(raw)
        except Failure as failure:
            assert failure.kind in ("unreadable", "server error")
