"""Requests → pauses: no more requests and tokens in any 60 seconds than an account may have.

In: the estimated tokens of a request, and later the true count. Out: the moment it may be sent. Counts what was sent in
the last 60 seconds, so that no window of that length holds more than the limit. Knows nothing of endpoints.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable

from ditto_jax.judge.retry import Sleep

WINDOW_S = 60.0


@dataclasses.dataclass
class Admission:
    """A request that was let through: when, and its tokens (corrected once they are known)."""

    at: float
    tokens: int


class RateLimiter:
    """max_rpm, max_tpm: None sets no bound. clock: seconds that only grow."""

    def __init__(self, max_rpm: int | None, max_tpm: int | None, sleep: Sleep, clock: Callable[[], float]):
        self._max_rpm = max_rpm
        self._max_tpm = max_tpm
        self._sleep = sleep
        self._clock = clock
        self._recent: collections.deque[Admission] = collections.deque()

    async def admit(self, tokens: int) -> Admission:
        """Returns when a request of `tokens` may be sent. One that is larger than the limit goes alone."""
        while (wait_s := self.wait_s(tokens)) > 0:
            await self._sleep(wait_s)
        admission = Admission(self._clock(), tokens)
        if self._max_rpm is not None or self._max_tpm is not None:
            self._recent.append(admission)
        return admission

    def wait_s(self, tokens: int) -> float:
        """Returns the seconds until a request of `tokens` fits, as things stand; 0 if it does."""
        now = self._clock()
        while self._recent and self._recent[0].at <= now - WINDOW_S:
            self._recent.popleft()
        requests, counted = len(self._recent), sum(entry.tokens for entry in self._recent)
        until = now
        for entry in self._recent:
            too_many = self._max_rpm is not None and requests + 1 > self._max_rpm
            too_much = self._max_tpm is not None and counted + tokens > self._max_tpm
            if not (too_many or too_much):
                break
            requests, counted = requests - 1, counted - entry.tokens
            until = entry.at + WINDOW_S
        return max(0.0, until - now)
