"""A request that takes unusually long → a second one like it, and the first reply of the two.

In: how long requests took, and two ways to send one. Out: the first reply. The loser is cancelled; it may still be
billed, which is for the sender to count. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

ResultT = TypeVar("ResultT")

LEAST_SEEN = 20
_REMEMBERED = 200


class Latencies:
    """How long recent requests took. percentile: from which one is unusual; None: never."""

    def __init__(self, percentile: float | None):
        self._percentile = percentile
        self._seconds: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)

    def record(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def unusual_s(self) -> float | None:
        """Returns after how many seconds a request is unusual; None while too few were seen to say."""
        if self._percentile is None or len(self._seconds) < LEAST_SEEN:
            return None
        return float(np.percentile(self._seconds, self._percentile))


async def first_reply(
    first: Coroutine[Any, Any, ResultT], second: Callable[[], Coroutine[Any, Any, ResultT] | None], after_s: float
) -> ResultT:
    """Returns the result of `first`, or of `second()` if that is begun `after_s` seconds later and succeeds sooner.

    second: None if there is no room for another request. If both fail, the failure of `first` is raised.
    """
    tasks = [asyncio.create_task(first)]
    try:
        _, pending = await asyncio.wait(tasks, timeout=after_s)
        extra = second() if pending else None
        if extra is not None:
            tasks.append(asyncio.create_task(extra))
            pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None:
                    return task.result()
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
