"""Text of a model never raises anything but Unparsable, and never yields a value outside its schema."""

from __future__ import annotations

import json

import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ditto_jax.judge.completion import read_completion
from ditto_jax.judge.replies import Unparsable, parse_reply
from ditto_jax.judge.retry import UnparsableFailure


class Score(pydantic.BaseModel):
    score: float = pydantic.Field(ge=0, le=10)
    why: str = ""


def accepted(text: str) -> float | None:
    try:
        return parse_reply(text, Score).score
    except Unparsable:
        return None


@given(st.text())
@example("{" * 100_000)
@example('{"score":' * 20_000)  # too deep for the decoder
@example("[" * 100_000 + '{"score": 1}')
@example('{"score": ' + "9" * 5000 + "}")
@example('{"score": 1e999}')
@example('{"score": NaN}')
@example('{"score": -Infinity}')
@example('{"score": 10.000001}')
@example('{"score": 1, "why": "\\ud800"}')
@example("x" * 300_000)
def test_arbitrary_text_never_raises_and_never_yields_a_score_out_of_range(text: str):
    score = accepted(text)
    assert score is None or 0 <= score <= 10


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["score", "why"]) | st.text(), inner),
    max_leaves=8,
)


@given(st.text(), st.fixed_dictionaries({"score": json_values}, optional={"why": json_values}), st.text())
def test_json_of_any_content_in_any_prose_never_yields_a_score_out_of_range(before: str, reply: dict, after: str):
    score = accepted(before + json.dumps(reply) + after)
    assert score is None or 0 <= score <= 10


@given(st.floats(0, 10), st.text(st.characters(exclude_characters="{", exclude_categories=["Cs"])))
def test_a_valid_reply_is_found_inside_prose_without_braces(score: float, prose: str):
    assert accepted(f"{prose}\n{json.dumps({'score': score})}\n```") == score


@pytest.mark.parametrize(
    "text",
    [
        '{"score": 1} {"score": 9}',
        '{"score": 1, "score": 9}',
        '{"score": 1, "quoted": {"score": 9}',
        "{'why': {\"score\": 9}}",
        'The draft says {"score": 9} but {"score": 11}',
        '{"score": 11}',
        '{"score": -0.001}',
        '{"score": null}',
        '{"score": "high"}',
        '{"why": "no score"}',
        "",
        "9",
        '{"score": 9}</think>{"score": 3}',  # the end of thoughts may be quoted from the policy, and what follows it
        '<think>The draft says {"score": 9}',
    ],
)
def test_ambiguous_broken_and_out_of_range_replies_are_not_accepted(text: str):
    assert accepted(text) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"score": 3}',
        '```json\n{"score": 3}\n```',
        '<think>{"score": 9}</think>{"score": 3}',
        'It may be {9} or so.</think>{"score": 3}',
    ],
)
def test_fences_and_thoughts_around_one_object_are_dropped(text: str):
    assert accepted(text) == 3


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bodies_are_completions_or_unparsable(body: bytes):
    try:
        completion = read_completion(body)
    except UnparsableFailure:
        return
    assert isinstance(completion.text, str)
