"""What all fault tests share: no keys from outside, and a run that met no fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditto_jax.runs.run_dir import RunDirectory
from tests.faults.runs import graded_run
from tests.graded_task import grades
from tests.judge.server import serving
from tests.tiny_run import train_quietly


@pytest.fixture(scope="session")
def straight(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Two steps beside a judge that is well; to be read only."""
    with serving(grades) as server:
        return train_quietly(graded_run(policy_folder, tmp_path_factory.mktemp("straight"), server.base_url))
