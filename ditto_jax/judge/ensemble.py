"""Several judges → one: the mean of their scores, and how far they disagree.

In: judges like any other. Out: verdicts whose dimensions hold each member's score and the disagreement. All must have
scored: a mean over whoever happened to answer would be a different measure from rollout to rollout. The first member
writes the words.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditto_jax.judge.base import GroupJudge, Judge
from ditto_jax.judge.counters import OutcomeCounts
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Verdict


class EnsembleJudge:
    """The mean of `members`."""

    def __init__(self, members: Sequence[Judge]):
        self._members = list(members)
        self._outcomes = OutcomeCounts()

    @property
    def identity(self) -> str:
        """ "ensemble(…)" with the members' names."""
        return f"ensemble({', '.join(member.identity for member in self._members)})"

    async def check(self) -> None:
        for member in self._members:
            await member.check()

    def expect(self, task: Task[Any], key: SampleId) -> None:
        for member in self._members:
            if isinstance(member, GroupJudge):
                member.expect(task, key)

    def withdraw(self, task: Task[Any], key: SampleId) -> None:
        for member in self._members:
            if isinstance(member, GroupJudge):
                member.withdraw(task, key)

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        """Returns the mean score, or the first failure. dimensions: means of those that all members give, `member_<n>`,
        and `disagreement`, the standard deviation of the members' scores.

        A score by the task's rules is the same from every member, and stays as it is.
        """
        verdicts = await asyncio.gather(*(m.score(task, example, conversation, key) for m in self._members))
        return self._outcomes.verdict(_combined(verdicts))

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        """Returns the words of the first member."""
        first = self._members[0]
        return self._outcomes.feedback(await first.feedback(task, example, conversation, verdict, key))

    def counters(self) -> Mapping[str, float]:
        """Costs of all members, summed, and the outcomes of the ensemble itself."""
        summed: collections.Counter[str] = collections.Counter()
        for member in self._members:
            summed.update(member.counters())
        return {**summed, **self._outcomes.as_dict()}

    async def aclose(self) -> None:
        await asyncio.gather(*(member.aclose() for member in self._members))


def _combined(verdicts: Sequence[Verdict]) -> Verdict:
    first = verdicts[0]
    identity = f"ensemble({', '.join(verdict.judge for verdict in verdicts)})"
    for number, verdict in enumerate(verdicts):
        if verdict.score is None:
            return Verdict(verdict.outcome, judge=identity, detail=f"member {number}: {verdict.detail}")
    if len({verdict.judge for verdict in verdicts}) == 1 and all(v.score == first.score for v in verdicts):
        return first
    scores = [verdict.score for verdict in verdicts]
    shared = set.intersection(*(set(verdict.dimensions) for verdict in verdicts))
    dimensions = {name: float(np.mean([v.dimensions[name] for v in verdicts])) for name in sorted(shared)}
    dimensions |= {f"member_{number}": score for number, score in enumerate(scores) if score is not None}
    dimensions["disagreement"] = float(np.std(np.array(scores, np.float64)))
    critique = "\n".join(verdict.critique for verdict in verdicts if verdict.critique)
    return Verdict(Outcome.OK, float(np.mean(np.array(scores, np.float64))), dimensions, critique, identity)
