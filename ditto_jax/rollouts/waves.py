"""Players that take turns at one sampler, so that one part of a step is sampled while another is judged.

Turns go round in a fixed order, whoever is judged faster: a player whose next play is not there yet is waited for. So
what the sampler does, and keeps between its calls, does not depend on time. Samples and judges nothing itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from ditto_jax.rollouts.engine import Engine, ResultT
from ditto_jax.rollouts.episodes import Abandoned, Attempt, Played
from ditto_jax.text.chat import ChatFormat
from model.llama import Params
from model.sampling import SamplingParams


class Wave:
    """A player that plays when its turn comes, and lets the next one play as soon as its rollouts are sampled."""

    def __init__(self, engine: Engine, turns: Turns, number: int):
        self._engine = engine
        self._turns = turns
        self._number = number

    @property
    def chat_format(self) -> ChatFormat:
        """How chats become tokens."""
        return self._engine.chat_format

    async def play(
        self,
        params: Params,
        sampling: SamplingParams,
        attempts: Sequence[Attempt],
        judged: Callable[[int, Played | Abandoned], Awaitable[ResultT]],
    ) -> list[ResultT]:
        """Returns what `Engine.play` would."""
        return await self._engine.play(params, sampling, attempts, judged, self._turns.of(self._number))


class Turns:
    """Whose turn it is among `count` players."""

    def __init__(self, count: int):
        self._order = list(range(count))
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def of(self, number: int) -> AsyncIterator[None]:
        """Waits for the player's turn; the next player's begins when the block ends."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._order[0] == number)
        try:
            yield
        finally:
            async with self._changed:
                self._order.append(self._order.pop(0))
                self._changed.notify_all()

    @contextlib.asynccontextmanager
    async def playing(self, number: int) -> AsyncIterator[None]:
        """While the block runs the player has turns; nobody waits for it after that."""
        try:
            yield
        finally:
            async with self._changed:
                self._order.remove(number)
                self._changed.notify_all()


def halves(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yields the first and the second half of a step's prompts; a single prompt is a half of its own."""
    middle = -(-len(numbers) // 2)
    yield from (half for half in (numbers[:middle], numbers[middle:]) if half)
