"""Named numbers of steps → a run in trackio's database, on this machine or in the Space that TRACKIO_SPACE_ID names.

The database is where trackio keeps it (TRACKIO_DIR), so that `trackio show` finds it; TRACKIO_PROJECT names the
project.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Mapping

from ditto_jax.tracking.base import RunIdentity


class TrackioRun:
    """One run, continued under its name, which its identifier makes its own."""

    def __init__(self, run: RunIdentity):
        trackio = importlib.import_module("trackio")

        with contextlib.redirect_stdout(io.StringIO()):  # it advertises itself
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT") or "ditto-jax",
                name=f"{run.name}-{run.identifier}",
                config=dict(run.settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
