"""The resumable prompt stream: position → the next N prompts of a weighted task mixture.

The order is a pure function of (seed, position), so the whole state of the stream is one integer. Each task's
examples are permuted anew in every epoch. Knows nothing of tokens or policies.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ditto_jax.config import GateConfig, SourceConfig, TaskConfig
from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.keys import derive
from ditto_jax.tasks.base import Source, Task
from ditto_jax.tasks.registry import get_task
from ditto_jax.tasks.rows import RowReport
from ditto_jax.types import Example


@dataclasses.dataclass(frozen=True)
class LoadedTask:
    """A configured task with its examples; `label` names it in metrics and reports.

    config: its settings, None for the defaults. rows: what reading its source came to.
    """

    label: str
    weight: float
    task: Task
    examples: Sequence[Example]
    config: TaskConfig | None = None
    rows: RowReport = dataclasses.field(default_factory=RowReport)

    @property
    def groups(self) -> frozenset[str]:
        """The groups of all examples: what held-out data must not share with training data."""
        return frozenset().union(*(self.task.groups(example) for example in self.examples))

    @property
    def prompts(self) -> list[Prompt]:
        """One prompt for every example, in order."""
        return [self.prompt(example) for example in self.examples]

    def prompt(self, example: Example) -> Prompt:
        return Prompt(
            f"{self.label}/{example.id}", self.task, example, self.config.feedback if self.config else GateConfig()
        )


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a step. `id` is unique over tasks and epochs apart: label and example id."""

    id: str
    task: Task
    example: Example
    gate: GateConfig = dataclasses.field(default_factory=GateConfig)

    @property
    def label(self) -> str:
        """The label of its task in the mixture."""
        return self.id.partition("/")[0]


def load_task(config: TaskConfig, training: bool = False) -> LoadedTask:
    """Returns the task with its examples; its config names the source that was taken, also where it said "auto".

    training: whether it will be trained on; sources that are for evaluation only then need a setting that says so.
    Raises MissingInputError for an absent source, DataError if it holds no example.
    """
    task = get_task(config.name, config.options)
    if config.source.kind != "auto":
        return _load_from(config.source, config, task, training)
    absent = []
    for source in _found_by_itself(config, task):
        if training and (reason := _reserved(source, task)):
            absent.append(f"its {source.kind} are not for training: {reason}")
            continue
        try:
            return _load_from(source, config, task, training)
        except MissingInputError as error:
            absent.append(str(error))
    generator = "" if "generated" in task.sources else f"task {task.name!r} has no generator"
    raise MissingInputError("; ".join(filter(None, dict.fromkeys([*absent, generator]))))


def _found_by_itself(config: TaskConfig, task: Task[Any]) -> list[SourceConfig]:
    """The sources that "auto" tries in turn: those of the task that have the split."""
    kinds = [kind for kind in ("files", "parquet", "generated") if config.source.split in task.sources.get(kind, ())]
    if not task.sources:  # a task of one's own that does not tell kinds apart
        kinds = ["generated"]
    if not kinds:
        raise ConfigError(
            f"tasks.{config.known_as}.source.split={config.source.split}: the task has no source with this split"
        )
    path = config.source.path or f"$SOUL_DATA_DIR/{task.name}"
    paths = {"generated": None}
    return [dataclasses.replace(config.source, kind=kind, path=paths.get(kind, path)) for kind in kinds]


def _reserved(source: SourceConfig, task: Task[Any]) -> str:
    """Why a source is for evaluation only, or "" if it is not or the settings say to train on it all the same."""
    path = None if source.path is None else Path(os.path.expandvars(source.path))
    reason = task.evaluation_only(Source(source.kind, path, source.split, source.limit, source.seed))
    return "" if source.train_on_evaluation_data else reason


def _load_from(source: SourceConfig, config: TaskConfig, task: Task[Any], training: bool) -> LoadedTask:
    rows = RowReport(skip_bad=source.bad_rows == "skip")
    path = _expand(source.path, f"tasks.{config.known_as}.source.path")
    reason = _reserved(source, task) if training else ""
    if reason:
        raise ConfigError(
            f"tasks.{config.known_as}.source: {reason}; train on another source, or set "
            "source.train_on_evaluation_data to true and say so beside every figure"
        )
    examples = task.load(Source(source.kind, path, source.split, source.limit, source.seed, rows))
    if not examples:
        raise DataError(
            f"tasks.{config.known_as}.source: {source.path or source.kind} holds no example for {source.split}"
        )
    config = dataclasses.replace(config, source=source)
    return LoadedTask(config.known_as, config.weight, task, examples, config, rows)


def _expand(path: str | None, where: str) -> Path | None:
    if path is None:
        return None
    expanded = os.path.expandvars(path)
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise MissingInputError(
            f"{where}={path}: the environment variable {unset[1]} is not set; point it at the data folder"
        )
    return Path(expanded).expanduser()


class PromptStream:
    """Prompts by position. `at(position, count)` is pure; callers keep the position."""

    def __init__(self, tasks: Sequence[LoadedTask], seed: int):
        if not tasks:
            raise DataError("tasks: the run has no task to train on; list at least one under `tasks`")
        self._tasks = list(tasks)
        self.seed = seed
        weights = [Fraction(task.weight) for task in tasks]
        scale = math.lcm(*(weight.denominator for weight in weights))
        self._weights = [int(weight * scale) for weight in weights]
        self._drawn: list[tuple[int, int]] = []  # position → task, and how many prompts of it came before
        self._counts = [0] * len(self._tasks)
        self._orders: dict[int, tuple[int, list[int]]] = {}  # task → its present epoch and the order of its examples

    @property
    def tasks(self) -> tuple[LoadedTask, ...]:
        """The tasks of the mixture."""
        return tuple(self._tasks)

    def at(self, position: int, count: int) -> list[Prompt]:
        """Returns prompts number `position` ... `position + count - 1`."""
        return [self._one(index) for index in range(position, position + count)]

    def once_each(self, count: int) -> Iterator[Prompt]:
        """Yields every prompt that occurs in the first `count` positions, each once."""
        seen: set[str] = set()
        total = sum(len(task.examples) for task in self._tasks)
        for index in range(count):
            prompt = self._one(index)
            if prompt.id not in seen:
                seen.add(prompt.id)
                yield prompt
            if len(seen) == total:
                return

    def _one(self, index: int) -> Prompt:
        which, drawn_before = self._which(index)
        loaded = self._tasks[which]
        epoch, offset = divmod(drawn_before, len(loaded.examples))
        example = loaded.examples[self._order(which, epoch)[offset]]
        return loaded.prompt(example)

    def _order(self, which: int, epoch: int) -> list[int]:
        known, order = self._orders.get(which, (-1, []))
        if known != epoch:
            loaded = self._tasks[which]
            order = list(range(len(loaded.examples)))
            random.Random(derive(self.seed, "epoch", loaded.label, epoch)).shuffle(order)
            self._orders[which] = (epoch, order)
        return order

    def _which(self, index: int) -> tuple[int, int]:
        """Returns (task, how many prompts of it came before): each task stays within one prompt of its share.

        Of the tasks that another prompt would not put a whole prompt ahead, the next is the one that would be the
        first to fall a whole prompt behind (Steiner and Yeomans, 1993). In integers, so that no rounding decides.
        """
        total = sum(self._weights)
        while len(self._drawn) <= index:
            position = len(self._drawn) + 1
            due = [
                (-(-(count + 1) * total // weight), task)
                for task, (count, weight) in enumerate(zip(self._counts, self._weights, strict=True))
                if count * total < weight * position
            ]
            which = min(due)[1]
            self._drawn.append((which, self._counts[which]))
            self._counts[which] += 1
        return self._drawn[index]
