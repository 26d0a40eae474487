"""Which examples are shown, and what is counted, in the rollouts of a run."""

from __future__ import annotations

from ditto_jax.report.rollout_reading import MOST_STEPS, Example, choose, evenly_spaced, read_rollouts
from ditto_jax.runs.run_dir import RunDirectory
from tests.report_runs import make_run


def _example(step: int, task: str, draft: float, refined: float) -> Example:
    return Example(step, {"task": task, "score": draft}, {"score": refined})


def test_one_raised_draft_of_each_part_and_one_not_raised():
    steps = list(range(1, 10))
    candidates = [_example(s, "hitom", 0.0, r) for s in steps for r in (1.0, 0.0)]
    chosen = choose(candidates, steps)
    assert [(c.step, c.part, c.rose) for c in chosen] == [
        (1, "early", True),
        (4, "middle", True),
        (7, "late", True),
        (9, "late", False),
    ]


def test_other_tasks_are_preferred():
    steps = list(range(1, 7))
    tasks = ("a", "a", "a", "b", "a", "c")
    candidates = [_example(s, task, 0.0, 1.0) for s, task in zip(steps, tasks, strict=True)]
    assert [(c.step, c.task) for c in choose(candidates, steps)] == [(1, "a"), (4, "b"), (6, "c")]


def test_other_pairs_fill_the_place_of_a_part_without_one():
    steps = [1, 2, 3]
    candidates = [_example(1, "a", 0.0, 1.0), _example(1, "b", 0.0, 0.0), _example(2, "b", 0.0, 0.0)]
    assert [(c.step, c.rose) for c in choose(candidates, steps)] == [(1, True), (1, False), (2, False)]
    assert choose([], steps) == []


def test_long_runs_are_read_at_evenly_spaced_steps():
    spaced = evenly_spaced(range(1, 1001), MOST_STEPS)
    assert len(set(spaced)) == MOST_STEPS and (spaced[0], spaced[-1]) == (1, 1000)
    assert evenly_spaced([3, 5], MOST_STEPS) == [3, 5]


def test_pairs_outcomes_and_truncation_are_counted(tmp_path):
    reading = read_rollouts(RunDirectory(make_run(tmp_path / "run", steps=6)))
    assert (reading.steps_written, reading.steps_read) == (6, 6)
    assert reading.changes == {"rose": 6, "same": 6}
    assert reading.total == {"draft": 18, "refined": 12}
    assert reading.truncated["draft"] == 6 and reading.truncated["refined"] == 0
    assert reading.feedback_outcomes == {"ok": 12}


def test_pairs_without_score_or_words_are_no_examples(tmp_path):
    run = RunDirectory(make_run(tmp_path / "run", steps=3))
    for step in run.rollout_steps():
        rows = run.read_rollouts(step)
        for row in rows:
            if row["role"] == "refined":
                row["score"], row["outcome"] = None, "timed_out"
        run.write_rollouts(step, rows)
    reading = read_rollouts(run)
    assert reading.examples == [] and not reading.changes
    assert reading.score_outcomes["timed_out"] == 6


def test_run_without_refined_rollouts_has_no_examples(tmp_path):
    reading = read_rollouts(RunDirectory(make_run(tmp_path / "run", steps=4, objective="grpo")))
    assert reading.examples == [] and reading.total == {"draft": 12}
