"""Runs over each other: equal settings but for the seed make one band, anything else a curve of its own."""

from __future__ import annotations

from ditto_jax.evaluation.comparison import pair_evaluations
from ditto_jax.report.compared_runs import ComparedRun, last_evaluations, overlay_charts, seed_groups
from tests.report_runs import metrics_row, record


def _run(name: str, seed: int, learning_rate: float = 1e-4, shift: float = 0.0, steps: int = 4) -> ComparedRun:
    config = {"run_name": name, "seed": seed, "optimizer": {"learning_rate": learning_rate}}
    rows = [metrics_row(step, steps, True) for step in range(1, steps + 1)]
    rows = [{**row, "reward": row["reward"] + shift} for row in rows]
    pairs = pair_evaluations([record("hitom", 0, 0.2, 100), record("hitom", steps, 0.5, 100)])
    return ComparedRun(name, config, rows, pairs)


def test_runs_that_differ_in_their_seed_alone_form_a_group():
    runs = [_run("a", 0), _run("b", 1), _run("c", 0, learning_rate=1e-5)]
    assert [[run.name for run in group.runs] for group in seed_groups(runs)] == [["a", "b"], ["c"]]


def test_runs_without_settings_stand_alone():
    runs = [ComparedRun(name, {}, [], []) for name in "ab"]
    assert len(seed_groups(runs)) == 2


def test_band_reaches_from_lowest_to_highest_around_the_mean():
    charts = overlay_charts([_run("a", 0), _run("b", 1, shift=0.2), _run("c", 0, learning_rate=1e-5)])
    reward = next(chart for chart in charts if chart.name == "all-reward")
    assert [key.name for key in reward.keys] == ["a, b", "c"]
    band, curve = (layer["data"]["values"] for layer in reward.spec["layer"][:2])
    first = metrics_row(1, 4, True)["reward"]
    assert {value["s"] for value in band} == {"s0"} and len(band) == 4
    assert abs(band[0]["low"] - first) < 1e-9 and abs(band[0]["high"] - first - 0.2) < 1e-9
    assert abs(next(v["v"] for v in curve if v["s"] == "s0") - first - 0.1) < 1e-9
    assert "lowest to highest, around their mean: a, b." in reward.note


def test_steps_that_only_one_seed_reached_are_kept():
    charts = overlay_charts([_run("a", 0, steps=2), _run("b", 1, steps=3)])
    reward = next(chart for chart in charts if chart.name == "all-reward")
    assert [row[0] for row in reward.rows] == ["1", "2", "3"]


def test_last_evaluations_stand_beside_each_other_with_intervals():
    labels, rows = last_evaluations([_run("a", 0), ComparedRun("empty", {}, [], [])])
    assert labels == ["hitom"]
    assert rows[0][1].startswith("50.0\u00a0% (95\u00a0% interval ") and rows[1] == ["empty", "not measured"]
