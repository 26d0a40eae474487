"""Processes that train together learn what one process with all devices learns, ask about each sample once, and stop
together.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditto_jax.config import EvalConfig, MeshConfig, RunConfig
from ditto_jax.runs.run_dir import RunDirectory
from tests.judge.server import Behaviour, fails, gives_feedback, serving
from tests.runs.test_loop_http import WORDS, judged_by, judged_run
from tests.several_processes import ended, started, train_together
from tests.tiny_run import contents, learned, saved_arrays, story_task, train_config, train_quietly

# Rows of a step are summed in another order over other devices, in float32: relative errors of 1e-7 a sum, grown by
# the division of Adam's first steps.
_TOLERANCE = 1e-5
_MESH = MeshConfig(data=-1, fsdp=2)


def config_of(policy: Path, folder: Path, base_url: str | None, **changes: Any) -> RunConfig:
    """Returns a run of three steps with an evaluation before and after; base_url None takes that of the process."""
    judge = judged_by(base_url, max_error_rate=changes.pop("max_error_rate", 1.0))
    values: dict[str, Any] = {
        "train": train_config(3),
        "mesh": _MESH,
        "evaluation": EvalConfig(tasks=(story_task(8, "test"),), bootstrap=50),
    }
    return judged_run(policy, folder, judge, **{**values, **changes})


def assert_learned_alike(run: RunDirectory, other: RunDirectory) -> None:
    """Asserts equal tokens, verdicts and counts, and numbers that differ by no more than rounding."""
    mine, theirs = contents(run), contents(other)
    for step in mine:
        for row, same in zip(mine[step], theirs[step], strict=True):
            for name in ("tokens", "score", "outcome", "feedback", "used_feedback", "role", "prompt_id"):
                assert row[name] == same[name]
    for row, same in zip(learned(run), learned(other), strict=True):
        assert row.keys() == same.keys()
        assert all(row[name] == pytest.approx(same[name], rel=1e-3, abs=1e-4) for name in row)
    for array, same in zip(saved_arrays(run), saved_arrays(other), strict=True):
        np.testing.assert_allclose(array, same, rtol=0, atol=_TOLERANCE)


@pytest.fixture(scope="module")
def alone(policy_folder, tmp_path_factory) -> RunDirectory:
    """The same run by one process, on the first four of its devices."""
    with serving(gives_feedback(WORDS)) as server:
        return train_quietly(config_of(policy_folder, tmp_path_factory.mktemp("alone"), server.base_url))


@pytest.fixture(scope="module")
def together(policy_folder, tmp_path_factory) -> tuple[RunDirectory, list[dict[str, Any]]]:
    """Two processes with two devices each, and what their judge was asked."""
    folder = tmp_path_factory.mktemp("together")
    with serving(gives_feedback(WORDS)) as server:
        run = train_together(config_of(policy_folder, folder, server.base_url), folder, 2, 2)
        return run, [request.json for request in server.received]


def test_two_processes_learn_what_one_learns(alone, together):
    assert_learned_alike(together[0], alone)


def test_a_judge_is_asked_about_every_sample_once_by_one_of_them(together):
    run, asked = together
    questions = Counter(json.dumps(request["messages"]) for request in asked)
    drafts = [row for rows in contents(run).values() for row in rows if row["feedback"]]
    probes = 2  # each process sees at the start whether the judge is there
    assert sum(questions.values()) == len(drafts) + probes
    last = run.read_metrics()[-1]
    assert last["judge/feedback/ok"] == len(drafts) and last["judge/calls"] == len(drafts)


def test_a_judge_that_is_down_for_one_process_is_an_outcome_for_all(policy_folder, tmp_path):
    good: Behaviour = gives_feedback(WORDS)
    with serving(good) as well, serving(good, *[fails(500, "down")] * 500) as ill:
        own = [{"OPENAI_BASE_URL": server.base_url} for server in (well, ill)]
        run = train_together(config_of(policy_folder, tmp_path, None), tmp_path, 2, 2, own)
    outcomes = Counter(row["feedback"]["outcome"] for rows in contents(run).values() for row in rows if row["feedback"])
    assert outcomes["ok"] > 0 and outcomes["unavailable"] > 0
    last = run.read_metrics()[-1]
    assert (last["judge/feedback/ok"], last["judge/feedback/unavailable"]) == (outcomes["ok"], outcomes["unavailable"])


def test_a_judge_that_one_process_cannot_use_ends_all_of_them_with_the_reason(policy_folder, tmp_path):
    with serving(gives_feedback(WORDS)) as well, serving(fails(401, "who are you")) as ill:
        own = [{"OPENAI_BASE_URL": server.base_url} for server in (well, ill)]
        with started(config_of(policy_folder, tmp_path, None), tmp_path, 2, 2, own) as processes:
            (first, told), (second, _) = ended(processes)
    assert (first, second) == (1, 1)
    assert "process 1:" in told and "401" in told
    assert not (tmp_path / "tiny").exists()


def test_sigterm_to_one_process_saves_and_the_run_goes_on_with_another_number_of_them(policy_folder, tmp_path, alone):
    with serving(gives_feedback(WORDS)) as server:
        config = config_of(policy_folder, tmp_path, server.base_url)
        run = RunDirectory(tmp_path / "tiny")
        with started(config, tmp_path, 2, 2) as processes:
            give_up = time.monotonic() + 240
            while not run.metrics.exists() and time.monotonic() < give_up:
                time.sleep(0.01)
            processes[1].send_signal(signal.SIGTERM)
            codes = [code for code, _ in ended(processes)]
        assert codes == [75, 75]
        train_quietly(config)
    assert_learned_alike(run, alone)


def test_ways_of_overlap_whose_order_depends_on_time_are_refused(policy_folder, tmp_path):
    config = config_of(policy_folder, tmp_path, "http://127.0.0.1:9/v1")
    rollout = dataclasses.replace(config.rollout, overlap="streaming")
    config = dataclasses.replace(config, rollout=rollout, judge=dataclasses.replace(config.judge, kind="rules"))
    with started(config, tmp_path, 2, 2) as processes:
        (code, told), _ = ended(processes)
    assert code == 2 and "2 processes must start the same work" in told
