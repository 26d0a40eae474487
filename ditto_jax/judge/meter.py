"""Requests → what they cost, and whether another may be sent: a budget that cannot be overrun.

In: the most that a request can cost before it is sent, and what it did cost after. Out: leave to send it. Spending is
appended to a file of the run, so that a killed run knows what it has spent. Sends nothing and holds no request.
"""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

from ditto_jax.errors import BudgetSpentError, RunDirectoryError
from ditto_jax.judge.config import EndpointConfig

FILE_NAME = "spending.jsonl"
_PER = 1_000_000


class Journal:
    """`spending.jsonl` of a run: one line a paid request. Nothing is written before the run directory exists."""

    def __init__(self, folder: Path):
        self._file = folder / FILE_NAME
        self._marker = folder / "config.yaml"

    def spent(self, where: str) -> float:
        """Returns what earlier processes of this run have spent on the endpoints of these settings."""
        if not self._file.exists():
            return 0.0
        total = 0.0
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                total += float(entry["cost"]) if entry["where"] == where else 0.0
            except (ValueError, KeyError, TypeError):  # torn: the process was killed while writing it
                continue
        return total

    def append(self, where: str, cost: float) -> None:
        """Adds what one request cost. Raises RunDirectoryError if it cannot be written."""
        if not self._marker.exists():
            return
        try:
            # The newline stands first, so that a torn line cannot swallow the next one.
            with open(self._file, "a", encoding="utf-8") as handle:
                handle.write("\n" + json.dumps({"where": where, "cost": cost}))
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write {self._file}: {error.strerror or error}; what is spent must be remembered: free space, "
                "then repeat the command to continue"
            ) from error


class Meter:
    """What the endpoints of one group of settings have cost. limit: None sets no bound.

    earlier: what was spent before. Usable from any running event loop.
    """

    def __init__(self, where: str, limit: float | None, journal: Journal | None = None, earlier: float = 0.0):
        self.where = where
        self.limit = limit
        self.paid = 0.0  # by this process
        self.refused = 0
        self._earlier = earlier
        self._journal = journal
        self._reserved: list[float] = []
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def spent(self) -> float:
        return self._earlier + self.paid

    async def reserve(self, most: float) -> bool:
        """Returns whether a request may be sent that costs `most` at the worst, which is then set aside.

        Waits while others that are under way may leave enough over.
        """
        while self.limit is not None and self.spent + math.fsum(self._reserved) + most > self.limit:
            if self.spent + most > self.limit or not self._reserved:
                self.refused += 1
                return False
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._reserved.append(most)
        return True

    def settle(self, most: float, cost: float) -> None:
        """Ends what `reserve` began: `cost` has been spent."""
        self._reserved.remove(most)
        if cost:
            self.paid += cost
            if self._journal is not None:
                self._journal.append(self.where, cost)
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            if not turn.done() and not turn.get_loop().is_closed():
                turn.set_result(None)

    def require_budget(self) -> None:
        """Returns nothing; raises BudgetSpentError if a request was refused for lack of money."""
        if self.refused:
            raise BudgetSpentError(
                f"{self.where}.max_cost={self.limit:g} is reached: {self.spent:.6g} spent, {self.refused} request(s) "
                f"not sent; nothing of this step was learned. With a larger {self.where}.max_cost the same "
                "command continues"
            )


def cost_of(config: EndpointConfig, tokens_in: int, tokens_out: int) -> float:
    """Returns the price of so many tokens; 0 where no prices are set."""
    return ((config.input_price or 0.0) * tokens_in + (config.output_price or 0.0) * tokens_out) / _PER
