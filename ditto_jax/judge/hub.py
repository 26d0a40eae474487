"""What the endpoints of one run share: caches by file, budgets by settings, rate limits and breakers by address.

In: settings and addresses. Out: one object for all clients that must count together. Without a run directory nothing is
kept but what the settings name a file for. Sends nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

from ditto_jax.errors import ConfigError
from ditto_jax.judge import cache, meter
from ditto_jax.judge.breaker import Breaker
from ditto_jax.judge.cache import ReplyCache
from ditto_jax.judge.config import EndpointConfig
from ditto_jax.judge.limiter import RateLimiter
from ditto_jax.judge.meter import Journal, Meter
from ditto_jax.judge.retry import Sleep
from ditto_jax.judge.speaker import Speaker


@dataclasses.dataclass(frozen=True)
class Shared:
    """What one client shares with others."""

    cache: ReplyCache | None
    meter: Meter
    limiter: RateLimiter
    breaker: Breaker


class Hub:
    """folder: the run directory, which need not exist yet. is_new: whatever it holds will be deleted.

    clock: seconds that only grow. speaker: who speaks for the policy where it judges itself, once there is one.
    """

    speaker: Speaker | None = None

    def __init__(self, folder: Path | None = None, is_new: bool = False, clock: Callable[[], float] = time.monotonic):
        self._folder = folder
        self._is_new = is_new
        self._clock = clock
        self._journal = None if folder is None else Journal(folder)
        self._caches: dict[Path, ReplyCache] = {}
        self._meters: dict[str, Meter] = {}
        self._limiters: dict[tuple[object, ...], RateLimiter] = {}
        self._breakers: dict[tuple[object, ...], Breaker] = {}

    def shared(self, config: EndpointConfig, url: str, sleep: Sleep = asyncio.sleep) -> Shared:
        """Returns what a client of these settings shares. Raises ConfigError for a replay from no file."""
        limits = (url, config.model, config.max_rpm, config.max_tpm)
        if limits not in self._limiters:
            self._limiters[limits] = RateLimiter(config.max_rpm, config.max_tpm, sleep, self._clock)
        outage = (url, config.outage_after, config.max_outage_s)
        if outage not in self._breakers:
            name = f"{config.where} at {url}"
            self._breakers[outage] = Breaker(name, config.outage_after, config.max_outage_s, sleep, self._clock)
        return Shared(self._cache(config), self._meter(config), self._limiters[limits], self._breakers[outage])

    def require_budget(self) -> None:
        """Returns nothing; raises BudgetSpentError if a request was refused for lack of money."""
        for one in self._meters.values():
            one.require_budget()

    def close(self) -> None:
        """Closes the caches; a later call opens them again."""
        for one in self._caches.values():
            one.close()

    def _cache(self, config: EndpointConfig) -> ReplyCache | None:
        if config.cache == "off":
            return None
        if config.cache_path is not None:
            path = Path(os.path.expandvars(os.path.expanduser(config.cache_path)))
        elif self._folder is not None:
            path = self._folder / cache.FILE_NAME
        elif config.cache == "replay":
            raise ConfigError(f"{config.where}.cache=replay: set {config.where}.cache_path to the file to replay from")
        else:
            return None
        if path not in self._caches:
            self._caches[path] = ReplyCache(path)
        return self._caches[path]

    def _meter(self, config: EndpointConfig) -> Meter:
        """One for all settings of the same place in the config; of several limits the smallest holds."""
        where = config.where
        if where not in self._meters:
            earlier = 0.0 if self._journal is None or self._is_new else self._journal.spent(where)
            self._meters[where] = meter.Meter(where, None, self._journal, earlier)
        found = self._meters[where]
        limits = [limit for limit in (found.limit, config.max_cost) if limit is not None]
        found.limit = min(limits, default=None)
        return found
