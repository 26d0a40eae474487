"""The resumable prompt stream: position → the next N prompts of a weighted task mixture.

The order is a pure function of (seed, position), so the whole state of the stream is one integer. Each task's examples are permuted
anew in every epoch. Knows nothing of tokens or policies.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

from ditto_jax.config import TaskConfig
from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.keys import derive
from ditto_jax.tasks.base import Source, Task
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import Example


@dataclasses.dataclass(frozen=True)
class LoadedTask:
    """A configured task with its examples; `label` names it in metrics and reports."""

    label: str
    weight: float
    task: Task
    examples: Sequence[Example]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of a step. `id` is unique over tasks and epochs apart: label and example id."""

    id: str
    task: Task
    example: Example


def load_task(config: TaskConfig) -> LoadedTask | None:
    """Returns the task with its examples, or None if its source is optional and absent.

    Raises MissingInputError for an absent source that is not optional, DataError if it holds no example.
    """
    task = get_task(config.name, config.options)
    source = config.source
    try:
        path = _expand(source.path, f"tasks.{config.name}.source.path")
        examples = task.load(Source(source.kind, path, source.split, source.limit, source.seed))
    except MissingInputError:
        if source.optional:
            return None
        raise
    if not examples:
        raise DataError(f"tasks.{config.name}.source: {source.path or source.kind} holds no example for {source.split}")
    return LoadedTask(config.label or config.name, config.weight, task, examples)


def _expand(path: str | None, where: str) -> Path | None:
    if path is None:
        return None
    expanded = os.path.expandvars(path)
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise MissingInputError(f"{where}={path}: the environment variable {unset[1]} is not set; point it at the data folder")
    return Path(expanded).expanduser()


class PromptStream:
    """Prompts by position. `at(position, count)` is pure; callers keep the position."""

    def __init__(self, tasks: Sequence[LoadedTask], seed: int):
        if not tasks:
            raise DataError("tasks: the run has no task to train on; list at least one under `tasks`")
        self._tasks = list(tasks)
        self._seed = seed
        total = sum(task.weight for task in tasks)
        self._shares = [task.weight / total for task in tasks]

    def at(self, position: int, count: int) -> list[Prompt]:
        """Returns prompts number `position` ... `position + count - 1`."""
        return [self._one(index) for index in range(position, position + count)]

    def _one(self, index: int) -> Prompt:
        which, drawn_before = self._which(index)
        loaded = self._tasks[which]
        epoch, offset = divmod(drawn_before, len(loaded.examples))
        order = list(range(len(loaded.examples)))
        random.Random(derive(self._seed, "epoch", loaded.label, epoch)).shuffle(order)
        example = loaded.examples[order[offset]]
        return Prompt(f"{loaded.label}/{example.id}", loaded.task, example)

    def _which(self, index: int) -> tuple[int, int]:
        """Returns (task, how many prompts of it came before): each task stays within one prompt of its share."""
        quota = [int(share * index + 1e-9) for share in self._shares]
        spare = index - sum(quota)
        ranked = sorted(range(len(quota)), key=lambda t: (quota[t] - self._shares[t] * index, t))
        for task in ranked[:spare]:
            quota[task] += 1
        after = self._quota(index + 1)
        which = next(t for t in range(len(quota)) if after[t] > quota[t])
        return which, quota[which]

    def _quota(self, count: int) -> list[int]:
        quota = [int(share * count + 1e-9) for share in self._shares]
        ranked = sorted(range(len(quota)), key=lambda t: (quota[t] - self._shares[t] * count, t))
        for task in ranked[: count - sum(quota)]:
            quota[task] += 1
        return quota
