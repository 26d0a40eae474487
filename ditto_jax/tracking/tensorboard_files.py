"""Named numbers of steps → TensorBoard's event files in `<run>/tb`, by tensorboardX, which needs no TensorFlow.

A continued run opens another event file in the same folder; what an earlier one holds of steps that will be repeated is
purged by its first record, as TensorBoard understands it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ditto_jax.tracking.base import RunIdentity

FOLDER = "tb"


class TensorBoardFiles:
    """Event files of one run."""

    def __init__(self, run: RunIdentity):
        writer = importlib.import_module("tensorboardX").SummaryWriter
        folder = run.folder / FOLDER
        purged = run.next_step if folder.exists() else None
        # Files are named by the second: without the suffix a run continued at once would overwrite its own.
        suffix = f".{run.next_step:08d}"
        self._writer = writer(logdir=str(folder), purge_step=purged, filename_suffix=suffix)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
