"""Two steps beside a judge on loopback that scores every rollout, and what two such runs are compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditto_jax.config import RunConfig
from ditto_jax.runs.run_dir import RunDirectory
from tests.graded_task import graded_task
from tests.runs.test_loop_http import judged_by, judged_run
from tests.tiny_run import contents, saved_arrays


def graded_run(policy_folder: Path, folder: Path, base_url: str, **judge: Any) -> RunConfig:
    """Returns a run that a single failed verdict would end; keywords are settings of its judge."""
    settings = judged_by(base_url, **{"timeout_s": 60.0, "max_error_rate": 0.0, **judge})
    return judged_run(policy_folder, folder, settings, steps=2, tasks=(graded_task(),))


def assert_learned_alike(run: RunDirectory, other: RunDirectory) -> None:
    """Asserts that two runs have the same rollouts and parameters, bit for bit."""
    assert contents(run) == contents(other)
    for mine, theirs in zip(saved_arrays(run), saved_arrays(other), strict=True):
        assert (mine == theirs).all()
