"""Failed requests → a pause for everybody: an endpoint that is down is waited for, not hammered.

In: whether each request found anybody. Out: when the next may be sent; while the endpoint is down one request at a time
asks whether it is back. The waiting is bounded and told on the log. Sends nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ditto_jax.judge.retry import Sleep

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class Breaker:
    """Closed while the endpoint answers; open from `after` failures in a row until one request succeeds.

    longest_s: how long an outage is waited for; 0 never waits. name: for people. clock: seconds that only grow.
    """

    def __init__(self, name: str, after: int, longest_s: float, sleep: Sleep, clock: Callable[[], float]):
        self.outages = 0
        self._name = name
        self._after = after
        self._longest_s = longest_s
        self._sleep = sleep
        self._clock = clock
        self._failures = 0
        self._since: float | None = None  # when the outage began; None: the endpoint is up
        self._pause_s = _FIRST_PAUSE_S
        self._next_try = 0.0
        self._asking: object | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def is_open(self) -> bool:
        return self._since is not None

    async def ready(self, caller: object) -> bool:
        """Returns True as soon as `caller` may send a request, False if the endpoint was down for too long.

        The caller must then say `succeeded`, `failed` or `left`.
        """
        while self._since is not None:
            if self._asking is None:
                self._asking = caller
                if self._is_given_up() and self._clock() < self._next_try:
                    self._hand_on()
                    return False
                try:
                    await self._sleep(max(0.0, self._next_try - self._clock()))
                except BaseException:
                    self._hand_on()
                    raise
                return True
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        return True

    def succeeded(self) -> None:
        """The endpoint answered, if only to refuse."""
        self._failures = 0
        if self._since is not None:
            logger.warning("%s answers again after %.0f s", self._name, self._clock() - self._since)
            self._since = None
        self._hand_on()

    def failed(self, caller: object) -> bool:
        """Nobody answered `caller`. Returns whether its request should wait for the endpoint and be sent again."""
        self._failures += 1
        now = self._clock()
        if self._since is None:
            if self._failures < self._after or not self._longest_s:
                return False
            self.outages += 1
            self._since, self._pause_s = now, _FIRST_PAUSE_S
            self._next_try = now + self._pause_s
            logger.warning(
                "%s does not answer (%d requests in a row); waiting for it, at most %.0f s",
                self._name,
                self._failures,
                self._longest_s,
            )
        elif self._asking is caller:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._next_try = now + self._pause_s
            if self._is_given_up():
                logger.warning(
                    "%s has been down for %.0f s; calls fail until it is back", self._name, now - self._since
                )
            self._hand_on()
        return not self._is_given_up()

    def left(self, caller: object) -> None:
        """`caller` ended without learning anything, for example because it was cancelled."""
        if self._asking is caller:
            self._hand_on()

    def _is_given_up(self) -> bool:
        return self._since is not None and self._next_try > self._since + self._longest_s

    def _hand_on(self) -> None:
        self._asking = None
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done() and not turn.get_loop().is_closed():
                turn.set_result(None)
