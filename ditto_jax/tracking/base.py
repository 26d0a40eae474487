"""What a tracker is: somewhere that takes named numbers of a step. One adapter a file; each imports its package at use.

step of a run → metrics.jsonl → **trackers**

An adapter may raise whatever its package raises: `report_to.py` keeps that from the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What a tracker knows of the run. folder: the run directory. identifier: the same whenever the run is continued.

    settings: dotted names → values, without addresses and sources of keys. next_step: the first step that will be sent.
    """

    folder: Path
    name: str
    identifier: str
    settings: Mapping[str, Any]
    next_step: int


class Tracker(Protocol):
    """A run that is open at one place."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Sends numbers of a step; steps never go back, and one step may come in several parts."""
        ...

    def close(self) -> None:
        """Sends what is left and ends the connection; the run can be opened again."""
        ...


OpenTracker = Callable[[RunIdentity], Tracker]
