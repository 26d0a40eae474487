"""Named numbers of steps → a run at Weights & Biases, or in `<run>/wandb` with WANDB_MODE=offline.

Who, where and how are the environment's: WANDB_API_KEY, WANDB_ENTITY, WANDB_PROJECT (default ditto-jax), WANDB_MODE.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping

from ditto_jax.tracking.base import RunIdentity


class WandbRun:
    """One run, continued under its identifier."""

    def __init__(self, run: RunIdentity):
        wandb = importlib.import_module("wandb")

        self._run = wandb.init(
            project=None if os.environ.get("WANDB_PROJECT") else "ditto-jax",  # an argument would win over it
            id=run.identifier,
            name=run.name,
            dir=str(run.folder),
            config=dict(run.settings),
            resume="allow",
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()
