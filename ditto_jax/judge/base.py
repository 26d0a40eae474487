"""The judge protocol: a score outcome and a feedback outcome for one rollout, asynchronously.

A judge never raises for a failed call: it returns a Verdict or Feedback whose outcome says what happened, so that the
loop can mask and count it. A judge may raise JudgeUnavailableError when it can never work (wrong credentials, unknown
model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Feedback, Verdict


class Judge(Protocol):
    """Scores rollouts and writes feedback.

    Implementations: rules (embedded), openai (HTTP), python (a function on a whole group), ensemble (several of these).
    """

    @property
    def identity(self) -> str:
        """Kind, model and prompt version: printed beside every reported number."""
        ...

    async def check(self) -> None:
        """Raises JudgeUnavailableError with what to do if the judge cannot be reached or used."""
        ...

    async def score(self, task: Task, example: Example, conversation: Conversation, key: SampleId) -> Verdict: ...

    async def feedback(
        self, task: Task, example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback: ...

    def counters(self) -> Mapping[str, float]:
        """Cumulative counts and costs since the start (calls, tokens, retries, outcomes), for metrics."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class GroupJudge(Protocol):
    """A judge that wants all rollouts about one prompt together, and must know how many will come."""

    def expect(self, task: Task[Any], key: SampleId) -> None:
        """Tells that a conversation will be scored."""
        ...

    def withdraw(self, task: Task[Any], key: SampleId) -> None:
        """Tells that an expected conversation will not be scored after all."""
        ...
