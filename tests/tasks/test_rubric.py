"""Rubrics as data: the reply schema holds the judge to ranges, instructions name them, and scores are read back."""

from __future__ import annotations

import json

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.tasks.rubric import Dimension, Rubric

WIT = Dimension("Wit", 1, 10, "does it make one smile?", weight=3.0)
WARMTH = Dimension("Human Warmth", -2.5, 2.5, "is it kind?", whole=False)
RUBRIC = Rubric("toast", (WIT, WARMTH))


def reply(wit: object = 4, warmth: object = 0.5, **more: object) -> dict[str, object]:
    return {"Wit": {"reasoning": "dry", "score": wit}, "Human Warmth": {"reasoning": "", "score": warmth}, **more}


def test_a_reply_is_read_by_the_names_that_the_judge_was_given():
    read = RUBRIC.reply_model.model_validate_json(json.dumps(reply(extra="ignored")))
    assert RUBRIC.scores(read) == {"Wit": 4.0, "Human Warmth": 0.5}
    assert RUBRIC.critique(read) == "Wit: dry"  # no line for a dimension without a word


def test_the_schema_that_the_endpoint_sees_has_names_and_ranges():
    schema = RUBRIC.reply_model.model_json_schema(by_alias=True)
    assert schema["required"] == ["Wit", "Human Warmth"]
    parts = [schema["$defs"][schema["properties"][name]["$ref"].rpartition("/")[2]] for name in schema["required"]]
    assert [(part["properties"]["score"]["minimum"], part["properties"]["score"]["maximum"]) for part in parts] == [
        (1, 10),
        (-2.5, 2.5),
    ]
    assert [part["properties"]["score"]["type"] for part in parts] == ["integer", "number"]


@pytest.mark.parametrize("end", ["low", "high"])
def test_both_ends_of_a_range_are_scores(end):
    read = RUBRIC.reply_model.model_validate(reply(getattr(WIT, end), getattr(WARMTH, end)))
    assert RUBRIC.scores(read) == {"Wit": getattr(WIT, end), "Human Warmth": getattr(WARMTH, end)}
    assert RUBRIC.weighted(RUBRIC.scores(read)) == float(end == "high")


@pytest.mark.parametrize(
    "wrong",
    [
        *(reply(wit=value) for value in (0, 11, 4.5, "many", None, [4], float("nan"))),
        *(reply(warmth=value) for value in (-2.6, 2.6, float("inf"), float("nan"), "kind", None)),
        {"Wit": {"reasoning": "dry", "score": 4}},
        {**reply(), "Wit": {"score": 4}},
        {**reply(), "Wit": 4},
        reply(wit=4) | {"Wit": {"reasoning": "x" * 8001, "score": 4}},
        [],
    ],
)
def test_a_score_outside_its_range_or_schema_is_unreadable_and_never_clipped(wrong):
    with pytest.raises(pydantic.ValidationError):
        RUBRIC.reply_model.model_validate(wrong)


def test_the_weighted_score_is_the_mean_of_shares_of_the_ranges():
    assert RUBRIC.weighted({"Wit": 5.5, "Human Warmth": 2.5}) == pytest.approx((3 * 0.5 + 1) / 4)


@given(st.integers(1, 10), st.integers(1, 10), st.floats(-2.5, 2.5))
def test_a_better_score_never_lowers_the_weighted_one_which_stays_between_zero_and_one(one, other, warmth):
    low, high = (RUBRIC.weighted({"Wit": wit, "Human Warmth": warmth}) for wit in sorted((one, other)))
    assert 0.0 <= low <= high <= 1.0


def test_instructions_name_every_dimension_with_range_and_meaning():
    assert "- Wit (1 to 10): does it make one smile?" in RUBRIC.instructions
    assert "- Human Warmth (-2.5 to 2.5): is it kind?" in RUBRIC.instructions
