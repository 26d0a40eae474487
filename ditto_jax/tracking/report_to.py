"""`report_to` → trackers of a run that cannot harm it: opened for the same run again, failing without consequence.

step of a run → metrics.jsonl → **trackers**

In: rows as they go into metrics.jsonl, and evaluation records. Out: their numbers, under their names, to every tracker.
metrics.jsonl is what counts; a tracker that fails is told once and counted. Which steps were sent is kept in the run
directory, so that a continued run sends none twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.config_io import read_yaml
from ditto_jax.errors import MissingInputError
from ditto_jax.runs.run_dir import RunDirectory, flat_settings, write_atomically
from ditto_jax.tracking.base import OpenTracker, RunIdentity, Tracker
from ditto_jax.tracking.tensorboard_files import TensorBoardFiles
from ditto_jax.tracking.trackio_runs import TrackioRun
from ditto_jax.tracking.wandb_runs import WandbRun

logger = logging.getLogger(__name__)

NONE = "none"
TRACKERS: Mapping[str, OpenTracker] = {"tensorboard": TensorBoardFiles, "wandb": WandbRun, "trackio": TrackioRun}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
_FILE = "tracking.json"
# Addresses and where keys come from stay on this machine, although neither is a key.
_PRIVATE = re.compile(r"(^|\.)(base_url|api_key_env|api_key_command|api_key_file|cache_path)$")


def require_trackers(names: Sequence[str]) -> None:
    """Returns nothing; raises MissingInputError, naming the pip command, for a package that is not installed."""
    for name in names:
        package = _PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise MissingInputError(
                f"report_to={name}: the package {package} is not installed; pip install 'ditto-jax[{name}]' or leave "
                f"{name} out of report_to (metrics.jsonl is always written)"
            )


@dataclasses.dataclass
class _Sent:
    """What tracking.json keeps: the identifier, and by tracker the last step and the last evaluated step sent."""

    path: Path
    identifier: str
    steps: dict[str, dict[str, int]]

    @classmethod
    def of(cls, folder: Path) -> _Sent:
        path = folder / _FILE
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return cls(path, kept.get("identifier") or uuid.uuid4().hex[:12], kept.get("steps") or {})

    def last(self, tracker: str, part: str) -> int:
        return self.steps.get(tracker, {}).get(part, -1)

    def note(self, tracker: str, part: str, step: int) -> None:
        self.steps.setdefault(tracker, {})[part] = step
        self.save()

    def save(self) -> None:
        body = {"identifier": self.identifier, "steps": self.steps}
        write_atomically(self.path, json.dumps(body, indent=1) + "\n")


class Trackers:
    """All trackers of a run. failed: by tracker, how many calls failed. reasons: by tracker, the first reason."""

    def __init__(
        self, names: Sequence[str], run: RunDirectory, next_step: int, openers: Mapping[str, OpenTracker] | None = None
    ):
        """next_step: the first that the run will do; steps that were sent before and come again are not sent again.

        openers: name → what opens a tracker of that name; those of `TRACKERS` if not given.
        """
        self.failed: dict[str, int] = {}
        self.reasons: dict[str, str] = {}
        self._sent = _Sent.of(run.path)
        self._open: dict[str, Tracker] = {}
        names = [name for name in names if name != NONE]
        if not names:
            return
        self._sent.save()
        config = read_yaml(run.path / "config.yaml")
        settings = {name: value for name, value in flat_settings(config).items() if not _PRIVATE.search(name)}
        for name in names:
            identity = RunIdentity(
                run.path, str(config.get("run_name", run.path.name)), self._sent.identifier, settings, next_step
            )
            with self._harmless(name):
                self._open[name] = (openers or TRACKERS)[name](identity)

    def step(self, row: Mapping[str, Any]) -> None:
        """Sends the numbers of one row of metrics.jsonl."""
        step = int(row["step"])
        self._send("step", step, {name: value for name, value in row.items() if name != "step"})

    def evaluated(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Sends the mean of each evaluation at a step as `eval/<label>`, with its interval."""
        numbers: dict[str, Any] = {}
        for record in records:
            interval = record.get("interval") or {}
            numbers |= {f"eval/{record['label']}": record.get("value")}
            numbers |= {f"eval/{record['label']}/{end}": interval.get(end) for end in ("low", "high")}
        self._send("evaluated", step, numbers)

    def close(self) -> None:
        """Closes all trackers."""
        for name, tracker in self._open.items():
            with self._harmless(name):
                tracker.close()
        self._open.clear()

    def _send(self, part: str, step: int, values: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if _is_number(value)}
        for name, tracker in self._open.items():
            # Event files purge what is repeated; elsewhere a step that was sent can be neither replaced nor repeated.
            if not numbers or (name != "tensorboard" and step <= self._sent.last(name, part)):
                continue
            with self._harmless(name):
                tracker.log(step, numbers)
                self._sent.note(name, part, step)

    @contextlib.contextmanager
    def _harmless(self, name: str) -> Iterator[None]:
        """Around a call to a tracker: whatever it raises is counted, told once, and stays here."""
        try:
            yield
        except Exception as error:
            self.failed[name] = self.failed.get(name, 0) + 1
            if name not in self.reasons:
                self.reasons[name] = f"{type(error).__name__}: {error}"
                logger.warning("report_to=%s failed (%s); the run goes on without it", name, self.reasons[name])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextlib.contextmanager
def tracked(
    names: Sequence[str], run: RunDirectory, next_step: int, tell: Callable[[str], None] = logger.warning
) -> Iterator[Trackers]:
    """Yields the trackers of a run and closes them, whatever ends the block; tells what was not sent."""
    trackers = Trackers(names, run, next_step)
    try:
        yield trackers
    finally:
        trackers.close()
        for name, count in trackers.failed.items():
            tell(f"report_to={name}: {count} call(s) failed, first reason: {trackers.reasons[name]}")
