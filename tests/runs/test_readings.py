"""Metrics rows → numbers: what is absent or not finite leaves no point."""

from __future__ import annotations

import math

import pytest

from ditto_jax.runs.readings import curves, ends, number, reward_gap, running_mean, time_curves, time_split


@pytest.mark.parametrize("value", [None, "0.3", True, math.nan, math.inf])
def test_only_finite_numbers_are_numbers(value):
    assert number({"reward": value}, "reward") is None
    assert number({}, "reward") is None
    assert number({"reward": 0}, "reward") == 0.0


def test_gap_needs_both_rewards():
    assert reward_gap({"reward": 0.25, "feedback/with_feedback_reward": 0.75}) == 0.5
    assert reward_gap({"reward": 0.25}) is None
    assert reward_gap({"reward": 0.25, "feedback/with_feedback_reward": 0.25, "feedback/refined_count": 0}) is None


def test_time_split_adds_up_to_the_step():
    row = {"time/step_s": 2.0, "time/update_s": 1.0, "time/draft_s": 0.25, "time/pack_s": 0.5, "step": 1}
    assert time_split(row) == {"draft": 0.25, "update": 1.0, "pack": 0.5, "other": 0.25}
    assert list(time_split(row)) == ["draft", "pack", "update", "other"]
    assert time_split({"time/draft_s": 0.25}) == {"draft": 0.25}
    assert time_split({"time/step_s": 1.0, "time/draft_s": 1.5})["other"] == 0.0


def test_curves_average_blocks_of_long_runs_and_keep_gaps():
    rows = [{"step": step, "a": float(step), "b": 1.0 if step > 50 else None} for step in range(1, 101)]
    drawn = curves(rows, {"a": "a", "b": "b"}, most=10)
    assert drawn.per_point == 10 and len(drawn.steps) == 10
    assert drawn.columns["a"] == list(drawn.steps) == [5.5 + 10 * i for i in range(10)]
    assert drawn.columns["b"] == [None] * 5 + [1.0] * 5


def test_curves_sort_steps_and_let_the_last_row_of_a_step_stand():
    rows = [{"step": 2, "a": 2.0}, {"step": 1, "a": 0.0}, {"step": 1, "a": 1.0}, {"a": 9.0}]
    assert curves(rows, {"a": "a"}).columns["a"] == [1.0, 2.0]


def test_time_curves_list_every_phase_of_any_step():
    rows = [{"step": 1, "time/draft_s": 1.0, "time/step_s": 3.0}, {"step": 2, "time/update_s": 1.0}]
    drawn = time_curves(rows)
    assert drawn.columns == {"draft": [1.0, None], "update": [None, 1.0], "other": [2.0, None]}


def test_running_mean_is_unbiased_at_the_ends():
    line = [float(i) for i in range(60)]
    assert running_mean(line) == pytest.approx(line)
    assert running_mean([1.0, None, 3.0]) == [1.0, None, 3.0]


def test_ends_are_means_of_a_tenth():
    assert ends([float(i) for i in range(20)]) == (0.5, 18.5, 2)
    assert ends([1.0, 3.0]) == (1.0, 3.0, 1)
    assert ends([1.0]) is None
