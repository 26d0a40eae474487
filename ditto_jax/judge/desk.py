"""One judge for a mixture: each task's rollouts go to its own judge, and its drafts to whoever writes its words.

In: the run's judge, judges of single tasks that differ from it, and a shadow judge that looks on. Out: a judge like any
other, with counts summed. Makes no judge and judges nothing itself.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Mapping
from typing import Any

from ditto_jax.judge.base import GroupJudge, Judge
from ditto_jax.judge.shadow import Shadow
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Feedback, Verdict


class JudgeDesk:
    """scorers, coaches: task object → who scores its rollouts, and who writes words about its drafts.

    shadow: who scores rollouts of training again, if anybody.
    """

    def __init__(
        self,
        default: Judge,
        scorers: Mapping[Task[Any], Judge],
        coaches: Mapping[Task[Any], Judge],
        shadow: Shadow | None = None,
    ):
        self._default = default
        self._scorers = dict(scorers)
        self._coaches = dict(coaches)
        self._shadow = shadow

    @property
    def identity(self) -> str:
        """The run's judge; `judge_of` tells that of a task."""
        return self._default.identity

    def judge_of(self, task: Task[Any]) -> str:
        """Returns the identity of the judge that scores a task."""
        return self.scorer_of(task).identity

    def scorer_of(self, task: Task[Any]) -> Judge:
        """Returns the judge that scores a task."""
        return self._scorers.get(task, self._default)

    async def check(self) -> None:
        for judge in self._all():
            await judge.check()

    def expect(self, task: Task[Any], key: SampleId) -> None:
        """Tells whoever scores a task's rollouts by the group that one will be scored."""
        scorer = self._scorers.get(task, self._default)
        if isinstance(scorer, GroupJudge):
            scorer.expect(task, key)

    def withdraw(self, task: Task[Any], key: SampleId) -> None:
        """Tells the same judge that it will not be scored after all."""
        scorer = self._scorers.get(task, self._default)
        if isinstance(scorer, GroupJudge):
            scorer.withdraw(task, key)

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        verdict = await self.scorer_of(task).score(task, example, conversation, key)
        if self._shadow is not None and key.step > 0:  # evaluations belong to no step
            self._shadow.watch(task, example, conversation, key, verdict)
        return verdict

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        judge = self._coaches.get(task, self._default)
        return await judge.feedback(task, example, conversation, verdict, key)

    def counters(self) -> Mapping[str, float]:
        """Counts of all judges, summed."""
        summed: collections.Counter[str] = collections.Counter()
        for judge in self._all():
            summed.update(judge.counters())
        return dict(summed)

    async def aclose(self) -> None:
        await asyncio.gather(*(judge.aclose() for judge in self._all()))

    def _all(self) -> list[Judge]:
        return list(dict.fromkeys([self._default, *self._scorers.values(), *self._coaches.values()]))
