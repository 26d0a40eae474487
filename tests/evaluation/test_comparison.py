"""Before and after: pairs, order of labels, and sentences that claim no more than the intervals."""

from __future__ import annotations

import pytest

from ditto_jax.evaluation.comparison import (
    Pair,
    measured,
    pair_evaluations,
    reading_controls,
    sentence,
    verdict_on_change,
)
from tests.report_runs import record


def test_first_and_last_evaluation_of_a_label_are_before_and_after():
    records = [record("a", step, value, 100) for step, value in ((20, 0.5), (0, 0.2), (10, 0.4))]
    (pair,) = pair_evaluations(records)
    assert pair.before is not None and pair.after is not None
    assert (pair.before["step"], pair.after["step"]) == (0, 20)
    assert pair.whole.change == pytest.approx(0.3)


@pytest.mark.parametrize(("step", "is_before"), [(0, True), (40, False)])
def test_single_evaluation_is_before_at_step_0_and_after_later(step, is_before):
    (pair,) = pair_evaluations([record("a", step, 0.3, 100)])
    assert (pair.before is not None, pair.after is not None) == (is_before, not is_before)
    assert "nothing can be said about a change" in sentence(pair)


def test_labels_follow_the_config_and_official_ones_come_last():
    records = [record(label, 0, 0.3, 10) for label in ("official-x", "a", "z", "m")]
    assert [p.label for p in pair_evaluations(records, ["z", "official-x"])] == ["z", "a", "m", "official-x"]


def test_orders_are_sorted_as_numbers():
    written = record("a", 0, 0.3, 100)
    written["breakdown"]["order"] = {name: {"value": 0.5, "n": 1} for name in ("10", "2", "unknown", "0")}
    assert [g.name for g in Pair("a", written, None).groups("order")] == ["0", "2", "10", "unknown"]


@pytest.mark.parametrize(
    ("after", "says"),
    [(0.26, "lies within the intervals"), (0.67, "The intervals do not overlap."), (0.25, "Nothing changed.")],
)
def test_sentence_says_what_the_intervals_permit(after, says):
    (pair,) = pair_evaluations([record("a", 0, 0.25, 240), record("a", 40, after, 240)])
    assert says in sentence(pair)
    assert "n\u00a0=\u00a0240" in sentence(pair)


def test_fall_is_told_like_a_rise():
    (pair,) = pair_evaluations([record("a", 0, 0.67, 240), record("a", 40, 0.25, 240)])
    assert "-42.0\u00a0points" in sentence(pair)
    assert "do not overlap" in sentence(pair)


def test_change_without_intervals_is_not_told_from_chance():
    single = {"label": "a", "value": 1.0, "n": 1, "interval": {"low": float("-inf"), "high": float("inf")}}
    pair = Pair("a", {**single, "step": 0, "value": 0.0}, {**single, "step": 4})
    assert "cannot be told from chance" in verdict_on_change(pair.whole)


def test_other_judge_or_number_of_items_is_noted():
    (pair,) = pair_evaluations([record("a", 0, 0.3, 100, judge="x"), record("a", 9, 0.8, 90, judge="y")])
    assert "the judge differs (before: x, after: y)" in sentence(pair)
    assert "the number of scored items differs (before: 100, after: 90)" in sentence(pair)


def test_scores_outside_0_to_1_are_no_percentages():
    records = [record("a", 0, 0.3, 100), record("a", 9, 0.8, 100)]
    records[1]["value"] = 7.25
    (pair,) = pair_evaluations(records)
    assert "mean score without feedback" in sentence(pair) and "7.25 (" in sentence(pair)


def test_nothing_measured_is_no_number():
    assert measured({"value": None, "interval": None, "n": 0}) is None
    assert "there is no accuracy" in sentence(Pair("a", {"step": 0, "value": None}, None))


@pytest.mark.parametrize(
    ("real", "free", "says"), [(0.56, 0.01, "Yes"), (0.56, 0.55, "Not shown"), (0.01, 0.56, "No:")]
)
def test_reading_control_compares_real_with_empty_words(real, free, says):
    (pair,) = pair_evaluations([record("a", 0, 0.3, 240, real=real, free=free), record("a", 9, 0.3, 240)])
    (control,) = reading_controls(pair)
    assert control.finding.startswith(says)
    assert (control.step, control.without_usable_feedback) == (0, 3)
