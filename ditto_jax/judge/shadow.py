"""Verdict → a second opinion on it: another model scores some of the rollouts, and an alarm tells when the two part.

In: each verdict of a training step, with what it is about. Out: after the step, how far the second scores were from
those that were learned from, and a warning when that is too far for too long. Asks in the background and changes no
reward; a second score that fails is counted and left out.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ditto_jax.errors import JudgeUnavailableError
from ditto_jax.judge.config import ShadowConfig
from ditto_jax.judge.scoring import asked_verdict
from ditto_jax.keys import SampleId, derive
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Outcome, Verdict

if TYPE_CHECKING:
    from ditto_jax.judge.client import ChatClient

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SecondOpinions:
    """What a step's second scores came to. verdicts: by the sample that each is about."""

    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    verdicts: Mapping[SampleId, Verdict] = dataclasses.field(default_factory=dict)


class Shadow:
    """Scores a sample of rollouts again. client: asks the model that `config` names.

    recent: absolute differences of the last `config.window` pairs of scores, which a checkpoint carries.
    """

    def __init__(self, config: ShadowConfig, client: ChatClient):
        self.recent: collections.deque[float] = collections.deque(maxlen=config.window)
        self._config = config
        self._client = client
        self._asked: dict[SampleId, tuple[Verdict, asyncio.Task[Verdict]]] = {}
        self._is_alarmed = False

    async def check(self) -> None:
        """Raises JudgeUnavailableError if the second model does not answer a minimal request."""
        result = await self._client.probe()
        if result.outcome is not Outcome.OK:
            raise JudgeUnavailableError(
                f"the shadow judge {self._config.model} cannot be used: {result.outcome} after {result.attempts} "
                f"attempt(s): {result.detail}\nstart the server or correct shadow.base_url; shadow.kind=none needs none"
            )

    def watch(
        self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId, verdict: Verdict
    ) -> None:
        """Begins to score a rollout again if it is drawn, which its key alone decides. Failed verdicts are not."""
        if verdict.score is None or not self._is_drawn(key):
            return
        scoring = asked_verdict(task, example, conversation, self._client, f"openai:{self._config.model}", key)
        self._asked[key] = verdict, asyncio.ensure_future(scoring)

    async def settle(self) -> SecondOpinions:
        """Returns the second scores of everything watched since the last call, once they are there.

        Where both scores come from the same source, as from rules, there is nothing to compare.
        """
        asked, self._asked = self._asked, {}
        await asyncio.gather(*(task for _, task in asked.values()))
        both = {key: (first, task.result()) for key, (first, task) in asked.items()}
        both = {key: pair for key, pair in sorted(both.items(), key=_order) if pair[0].judge != pair[1].judge}
        scored = [(a.score, b.score) for a, b in both.values() if a.score is not None and b.score is not None]
        differences = np.array([b - a for a, b in scored], np.float64)
        self.recent.extend(np.abs(differences).tolist())
        metrics: dict[str, float] = {
            "shadow/compared_count": len(scored),
            "shadow/failed_count": len(both) - len(scored),
            "shadow/alarm": float(self._alarm()),
        }
        if scored:
            metrics["shadow/divergence"] = float(np.abs(differences).mean())
            metrics["shadow/bias"] = float(differences.mean())
        if self.recent:
            metrics["shadow/recent_divergence"] = float(np.mean(self.recent))
        return SecondOpinions(metrics, {key: second for key, (_, second) in both.items()})

    def counters(self) -> Mapping[str, float]:
        """Cumulative costs of the calls (see ClientTotals)."""
        return dataclasses.asdict(self._client.totals)

    async def aclose(self) -> None:
        """Gives up what is still being asked and closes the connections."""
        asked, self._asked = self._asked, {}
        for _, task in asked.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in asked.values()), return_exceptions=True)
        await self._client.aclose()

    def _is_drawn(self, key: SampleId) -> bool:
        number = derive(key.seed, "shadow", key.step, key.prompt_id, key.sample_index, str(key.role))
        return number < self._config.fraction * 2**64

    def _alarm(self) -> bool:
        """Whether the last scores are too far apart; a window that is not full yet tells nothing."""
        was_alarmed, limit = self._is_alarmed, self._config.max_divergence
        is_full = len(self.recent) == self.recent.maxlen
        self._is_alarmed = is_full and float(np.mean(self.recent)) > limit
        if self._is_alarmed and not was_alarmed:
            logger.warning(
                "shadow judge %s: its last %d scores are %.3f from those of the judge on average, more than "
                "shadow.max_divergence=%g; look at both in the rollouts before you trust the reward",
                self._config.model,
                len(self.recent),
                float(np.mean(self.recent)),
                limit,
            )
        return self._is_alarmed


def _order(item: tuple[SampleId, Any]) -> tuple[str, str, int]:
    """Completion order must not change a sum."""
    key, _ = item
    return key.prompt_id, str(key.role), key.sample_index
