"""Rollout → verdict and feedback from a language model, whichever it is: what judges that ask one have in common.

In: an example, what the policy said, and the question that the task asks about it. Out: a typed verdict or feedback; a
failed call has an outcome and a detail for people, and neither score nor words. Tasks with a rule score are scored by
that rule. How the model is reached is the client's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ditto_jax.judge.cache import CallName
from ditto_jax.judge.client import CallResult, ClientTotals
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.counters import OutcomeCounts
from ditto_jax.judge.fence import printable
from ditto_jax.judge.replies import ReplyT
from ditto_jax.judge.scoring import asked_verdict
from ditto_jax.judge.words import CONTENT_FREE, content_free_control, named, screened_feedback
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import FeedbackReply, Task
from ditto_jax.types import Conversation, Example, Feedback, Message, Outcome, Verdict


class Client(Protocol):
    """Whoever reaches the model."""

    totals: ClientTotals

    async def complete(
        self, messages: Sequence[Message], reply_model: type[ReplyT], name: CallName
    ) -> CallResult[ReplyT]:
        """Returns the reply, or the outcome that stands in its place."""
        ...

    async def aclose(self) -> None:
        """Closes what was opened."""
        ...


class AskingJudge:
    """Asks `client`. name: of the model, as verdicts and feedback carry it, such as "openai:gpt-5-nano"."""

    def __init__(self, config: JudgeConfig, name: str, client: Client):
        self._config = config
        self._name = name
        self._client = client
        self._outcomes = OutcomeCounts()

    @property
    def identity(self) -> str:
        """The name of the model, with the control arm if any; verdicts and feedback carry the version of the prompt."""
        return named(self._name, self._config.feedback_content)

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        """Returns the task's rule score, or what the model's replies to the task's questions make."""
        verdict = await asked_verdict(task, example, conversation, self._client, self._name, key)
        return self._outcomes.verdict(verdict)

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        """Returns the model's words, screened for leaks, or why there are none. The control arm asks nobody."""
        if self._config.feedback_content == CONTENT_FREE:
            return self._outcomes.feedback(content_free_control(task, example, key))
        return self._outcomes.feedback(await self._ask_for_feedback(task, example, conversation, verdict, key))

    def counters(self) -> Mapping[str, float]:
        """Cumulative costs of the calls (see ClientTotals), and counts of outcomes."""
        return {**dataclasses.asdict(self._client.totals), **self._outcomes.as_dict()}

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _ask_for_feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        request = task.feedback_request(example, conversation, verdict)
        identity = f"{self._name}@{request.prompt_version}"
        if not issubclass(request.reply_model, FeedbackReply):
            raise TypeError(f"task {task.name}: a feedback request must be answered by a FeedbackReply")
        name = CallName(key, request.prompt_version)
        result = await self._client.complete(request.messages, request.reply_model, name)
        if result.parsed is None:
            return Feedback(result.outcome, judge=identity, detail=result.detail)
        text = printable(result.parsed.feedback).strip()
        if not text:
            return Feedback(Outcome.UNPARSABLE, judge=identity, detail="feedback: holds no visible character")
        return screened_feedback(task, example, text, judge=identity)
