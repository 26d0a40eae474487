"""Whatever a judge answers with, a call ends in a reply of the schema or in a typed failure: no crash and no guess."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ditto_jax.judge.completion import Completion, read_completion, response_failure
from ditto_jax.judge.reading import parse_completion, text_of
from ditto_jax.judge.replies import Unparsable, parse_reply
from ditto_jax.judge.retry import AttemptFailed, RefusedFailure, UnparsableFailure, retry_after_s
from tests.judge.server import completion


class Grade(pydantic.BaseModel):
    grade: int = pydantic.Field(ge=0, le=10)
    why: str = pydantic.Field(max_length=40)


GOOD = json.dumps({"grade": 7, "why": "short"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PIECES = st.sampled_from(
    [
        GOOD,
        "{",
        "}",
        '"',
        "\\",
        ":",
        ",",
        "[",
        "]",
        "<think>",
        "</think>",
        '{"grade":',
        "1e999",
        "-1",
        "NaN",
        "\ud800",
        "\x00",
    ]
)


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """`text` with some pieces cut out, doubled, or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(st.sampled_from(["", text[start:end] * 2]) | PIECES) + text[end:]
    return text


def is_of_the_schema(reply: Grade) -> bool:
    return 0 <= reply.grade <= 10 and len(reply.why) <= 40


@given(st.text() | st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join) | mutated(GOOD))
@example("{" * 50_000)
@example('{"grade": 7, "why": ' + "[" * 50_000)
@example('{"grade": ' + "9" * 10_000 + "}")
def test_any_text_is_a_reply_of_the_schema_or_unparsable(text: str):
    with contextlib.suppress(Unparsable):
        assert is_of_the_schema(parse_reply(text, Grade))


@given(mutated(GOOD))
def test_a_mutated_reply_that_is_accepted_says_what_its_text_says(text: str):
    try:
        reply = parse_reply(text, Grade)
    except Unparsable:
        return
    if "</think>" not in text:
        first, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
        assert reply == Grade.model_validate(first)


@given(
    st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | mutated(completion(GOOD).decode()).map(lambda text: text.encode(errors="replace"))
)
def test_any_body_is_a_completion_or_unparsable(body: bytes):
    with contextlib.suppress(UnparsableFailure):
        found = read_completion(body)
        assert found.tokens_in >= 0 and found.tokens_out >= 0
        with contextlib.suppress(UnparsableFailure, RefusedFailure):
            assert is_of_the_schema(parse_completion(found, Grade))
        with contextlib.suppress(UnparsableFailure, RefusedFailure):
            assert text_of(found)


@given(st.fixed_dictionaries({"choices": JSON, "usage": JSON}) | st.fixed_dictionaries({"choices": st.lists(JSON)}))
def test_a_completion_whose_fields_are_of_any_type_is_read_or_unparsable(body: Any):
    with contextlib.suppress(UnparsableFailure):
        assert isinstance(read_completion(json.dumps(body).encode()), Completion)


@given(st.integers(300, 999), st.text() | JSON.map(json.dumps) | JSON.map(lambda value: json.dumps({"error": value})))
def test_any_error_response_is_a_typed_failure(status: int, content: str):
    failure = response_failure(status, {}, content, 0.0)
    assert isinstance(failure, AttemptFailed) and failure.detail.startswith(f"HTTP {status}")


@given(st.sampled_from(["retry-after", "retry-after-ms"]), st.text() | st.floats().map(str) | st.integers().map(str))
@example("retry-after", "Sun, 99 Nov 9999 99:99:99 GMT")
@example("retry-after", "Fri, 31 Dec 9999 23:59:59 -2359")
def test_any_wait_that_is_asked_for_is_a_number_of_seconds_or_none(name: str, value: str):
    seconds = retry_after_s({name: value}, 0.0)
    assert seconds is None or (math.isfinite(seconds) and seconds >= 0)


@pytest.mark.parametrize("text", [GOOD, f"Here it is:\n```json\n{GOOD}\n```", f"<think>so</think>{GOOD}"])
def test_a_good_reply_is_accepted(text: str):
    assert parse_reply(text, Grade) == Grade(grade=7, why="short")
