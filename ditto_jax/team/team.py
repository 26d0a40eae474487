"""What the processes of a run agree on: one decides and the others hear of it, or all are asked.

Every process runs the same program on the same prompts, so that all start the same device programs in the same order;
whatever could differ between hosts (a file, a signal, a judge that is down) is agreed on here, before anything is
decided by it. All processes must come to the same calls in the same order, while nothing is sampled. One process alone
agrees with itself, and no device is asked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ditto_jax.errors import ClusterError, DittoError, error_named

ResultT = TypeVar("ResultT")
Problem = tuple[str, str]  # name of an error's class, and its message


class Team:
    """All processes of the run, seen from this one."""

    def __init__(self) -> None:
        self.number = jax.process_index()
        self.count = jax.process_count()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes, reports and logs."""
        return self.number == 0

    def values(self, value: Any) -> list[Any]:
        """Returns what each process passed, in their order. value: anything that JSON can hold."""
        if self.count == 1:
            return [value]
        mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = multihost_utils.process_allgather(np.int32(len(mine)))
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: len(mine)] = mine
        texts = multihost_utils.process_allgather(padded)
        return [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths, strict=True)]

    def lead(self, work: Callable[[], ResultT]) -> ResultT:
        """Returns what `work` returns on the process that leads, which alone does it; its DittoError is raised on all.

        The value must survive JSON.
        """
        value, error = _tried(work) if self.leads else (None, None)
        said, problem = self.values([value, _problem(error)])[0]
        if error is not None:
            raise error
        if problem is not None:
            raise raised_again(problem, 0)
        return said

    def agree(self, work: Callable[[], ResultT]) -> ResultT:
        """Returns what `work` returns here; if it raises a DittoError on any process, one is raised on all."""
        value, error = _tried(work)
        problems = self.values(_problem(error))
        if error is not None:
            raise error
        for number, problem in enumerate(problems):
            if problem is not None:
                raise raised_again(problem, number)
        return value  # type: ignore[return-value]

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """Around what all do together: what the devices say when another process is gone is raised as ClusterError."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if self.count == 1:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ClusterError(
                f"process {self.number} of {self.count} cannot go on with the others: {reason}. Start the same command "
                "on all of them again: the run goes on from its newest checkpoint"
            ) from error

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set on any process."""
        return any(self.values(flag))

    def summed(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Returns the sums over all processes, by name."""
        everywhere = self.values(dict(counts))
        return {name: sum(one.get(name, 0) for one in everywhere) for one in everywhere for name in one}


def raised_again(problem: Problem, number: int) -> DittoError:
    """Returns an error that process `number` met, as one of the same class."""
    name, text = problem
    return error_named(name)(f"process {number}: {text}")


def _tried(work: Callable[[], ResultT]) -> tuple[ResultT | None, DittoError | None]:
    try:
        return work(), None
    except DittoError as error:
        return None, error


def _problem(error: DittoError | None) -> Problem | None:
    return None if error is None else (type(error).__name__, str(error))
