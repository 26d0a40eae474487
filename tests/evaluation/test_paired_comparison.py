"""Runs are compared item by item: what both scored, with intervals, and noise is called noise."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.evaluation.evaluate import TaskEvaluation, write_evaluation
from ditto_jax.evaluation.paired_comparison import ItemScores, as_json, as_markdown, compare, read_items, reading
from ditto_jax.runs.run_dir import RunDirectory
from launch.cli import main


def items(scores, unscored=(), **about) -> ItemScores:
    return ItemScores(0, dict(scores), frozenset(unscored), {"judge": "rules", **about})


def numbered(values) -> dict[str, float]:
    return {f"item-{i}": float(value) for i, value in enumerate(values)}


def one(before, after):
    (difference,) = compare({"a": {"quiz": before}, "b": {"quiz": after}})
    return difference


def write(folder, label, rows, step=0, **record):
    record = {"label": label, "step": step, "task_version": 1, "judge": "rules", "trials": 1, **record}
    write_evaluation(RunDirectory(folder), TaskEvaluation(label, record, rows), step)
    return str(folder)


def test_differences_are_over_the_items_that_both_scored():
    before = items({"x": 0.0, "y": 1.0, "z": 0.5, "only-a": 1.0})
    after = items({"x": 1.0, "y": 1.0, "z": 0.0}, unscored=["only-a"])
    found = one(before, after)
    assert (found.n, found.left_out) == (3, 1)
    assert (found.wins, found.ties, found.losses) == (1, 1, 1)
    assert found.value == pytest.approx(0.5 / 3)
    assert (found.baseline_mean, found.other_mean) == (0.5, pytest.approx(2 / 3))


def test_pairing_sees_what_the_means_alone_would_not():
    """Items differ far more than the runs do: unpaired intervals would overlap, paired ones do not hold zero."""
    hardness = np.linspace(0, 0.9, 40)
    found = one(items(numbered(hardness)), items(numbered(hardness + 0.05 + 0.01 * np.sin(np.arange(40)))))
    assert not found.noise
    assert 0.04 < found.low < found.value < found.high < 0.06


def test_equal_runs_are_noise_and_so_is_chance():
    scores = numbered([0, 1, 1, 0, 1])
    same = one(items(scores), items(scores))
    assert (same.value, same.p_value, same.noise) == (0.0, 1.0, True)
    rng = random.Random(3)
    tosses = [[items(numbered(rng.choices((0, 1), k=60))) for _ in range(2)] for _ in range(20)]
    flips = [one(*toss) for toss in tosses]
    assert sum(not flip.noise for flip in flips) <= 2


def test_many_comparisons_raise_the_bar():
    """Holm: a p-value of about .03 stands alone, and falls among nine equal runs."""
    before = items(numbered([0] * 6))
    better = items(numbered([1] * 6))  # all six signs equal: p = 2 / 64
    assert not one(before, better).noise
    runs = {"a": {"quiz": before}, "b": {"quiz": better}, **{f"c{i}": {"quiz": before} for i in range(9)}}
    assert all(found.noise for found in compare(runs))


def test_what_makes_two_runs_incomparable_is_said():
    found = one(items({"x": 0.0, "y": 1.0}), items({"x": 1.0, "y": 1.0}, judge="someone else"))
    assert found.caveats == ("judge: rules against someone else",)
    assert "not the same judge" in as_markdown([found])


def test_samples_of_an_item_are_averaged_and_the_newest_step_counts(tmp_path):
    write(tmp_path / "a", "quiz", [{"id": "x", "score": 0.0}], step=0)
    rows = [{"id": "x", "score": 1.0}, {"id": "x", "score": 0.0}, {"id": "y", "score": None}]
    run = write(tmp_path / "a", "quiz", rows, step=16)
    newest = read_items(run)["quiz"]
    assert (newest.step, dict(newest.scores), newest.unscored) == (16, {"x": 0.5}, frozenset({"y"}))
    assert dict(read_items(f"{run}@0")["quiz"].scores) == {"x": 0.0}


def test_the_command_prints_writes_and_gates(tmp_path, capsys):
    before = write(tmp_path / "a", "quiz", [{"id": str(i), "score": 0.0} for i in range(8)])
    after = write(tmp_path / "b", "quiz", [{"id": str(i), "score": 1.0} for i in range(8)])
    assert main(["compare", before, after, "--output", str(tmp_path / "out"), "--fail_under", "0.5"]) == 0
    assert "+1.000" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (written["schema_version"], written["differences"][0]["wins"]) == (2, 8)
    assert main(["compare", after, before, "--fail_under", "0"]) == 4
    assert "-1.000 is below --fail_under 0" in capsys.readouterr().err


def test_what_cannot_be_compared_says_why(tmp_path):
    run = write(tmp_path / "a", "quiz", [{"id": "x", "score": 1.0}])
    with pytest.raises(MissingInputError, match="holds no evaluation"):
        read_items(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="at least two"):
        compare({"a": read_items(run)})
    with pytest.raises(ConfigError, match="no label and item in common"):
        compare({"a": read_items(run), "b": {"other": items({"x": 1.0})}})
    next((tmp_path / "a").glob("eval/quiz/samples_*.jsonl")).write_text('{"id": "x"}\n')
    with pytest.raises(ConfigError, match=r"samples_000000\.jsonl:1"):
        read_items(run)


def test_items_of_the_same_name_that_ask_something_else_are_not_paired(tmp_path):
    rows = [{"id": str(i), "item": f"digest-{i}", "score": 0.0} for i in range(6)]
    before = write(tmp_path / "a", "quiz", rows)
    other = [{**row, "score": 1.0, "item": "other" if row["id"] in "01" else row["item"]} for row in rows]
    after = write(tmp_path / "b", "quiz", other)
    (found,) = compare({"a": read_items(before), "b": read_items(after)})
    assert (found.n, found.changed, found.left_out) == (4, 2, 2)
    assert "2 items of the same name ask something else" in reading(found)
    elsewhere = write(tmp_path / "c", "quiz", [{**row, "item": "new"} for row in rows])
    with pytest.raises(ConfigError, match="no label and item in common"):
        compare({"a": read_items(before), "c": read_items(elsewhere)})


def test_questions_on_one_story_are_one_piece_of_evidence():
    """Four stories of ten questions, each story won as a whole: forty wins are four, and four may be chance."""
    before, after = numbered([0.0] * 40), numbered([1.0] * 40)
    apart = one(items(before), items(after))
    groups = {f"item-{i}": (f"story:{i // 10}",) for i in range(40)}
    told = [dataclasses.replace(items(scores), groups=groups) for scores in (before, after)]
    together = one(*told)
    assert (apart.clusters, together.clusters) == (40, 4)
    assert not apart.noise and together.noise and together.p_value == pytest.approx(2 / 2**4)


def test_the_average_over_tasks_is_shown_with_its_own_interval():
    hard = {f"item-{i}": float(i % 3 == 0) for i in range(30)}
    runs = {
        "a": {"one": items(hard), "two": items(numbered([0.2] * 30))},
        "b": {"one": items({**hard, "item-1": 1.0}), "two": items(numbered([0.5] * 29 + [0.1]))},
    }
    first, second, average = compare(runs)
    assert (average.label, average.n) == ("average", 2)
    assert average.value == pytest.approx((first.value + second.value) / 2)
    assert average.low < average.value < average.high and not average.noise
    assert "2 tasks" in as_markdown([average])
    same = compare({"a": runs["a"], "b": runs["a"]})
    assert all(found.noise for found in same) and same[-1].p_value == 1.0


def test_a_run_that_fails_to_score_more_items_is_told():
    found = one(items({"x": 0.0, "y": 1.0, "z": 1.0}), items({"x": 1.0, "y": 1.0}, unscored=["z"]))
    assert found.unscored == (0, 1) and "without a score: 0 there, 1 here" in reading(found)


def test_records_of_a_later_program_are_refused(tmp_path):
    run = write(tmp_path / "a", "quiz", [{"id": "x", "score": 1.0}], schema_version=99)
    with pytest.raises(ConfigError, match="schema_version=99"):
        read_items(run)


def test_json_holds_every_figure():
    found = one(items(numbered([0, 0, 1])), items(numbered([1, 0, 1])))
    (entry,) = json.loads(as_json([found]))["differences"]
    assert entry["n"] == 3 and entry["low"] <= entry["value"] <= entry["high"]
