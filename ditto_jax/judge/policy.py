"""The policy as its own judge: a task's questions, answered by the weights that are judged, over the same sampler.

In: what any model would be asked. Out: replies, read by the rules for every judge. Questions are put together until
every judgement that is under way waits for one, so that what is sampled together does not depend on time. Who samples
is lent by the run: this file knows neither weights nor devices. Nothing is kept or paid for.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ditto_jax.errors import ConfigError
from ditto_jax.judge.asking import AskingJudge
from ditto_jax.judge.cache import CallName
from ditto_jax.judge.client import CallResult, ClientTotals
from ditto_jax.judge.completion import Completion, with_schema
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.reading import parse_completion
from ditto_jax.judge.replies import ReplyT
from ditto_jax.judge.retry import AttemptFailed, outcome_of
from ditto_jax.judge.speaker import Answer, Question
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Feedback, Message, Outcome, Verdict

_judgement: contextvars.ContextVar[object] = contextvars.ContextVar("judgement")


@dataclasses.dataclass
class _Asked:
    question: Question
    judgement: object
    answer: asyncio.Future[Answer]


class PolicyClient:
    """Puts questions together and reads the replies; the counterpart of a ChatClient."""

    def __init__(self, config: JudgeConfig, hub: Hub):
        self.totals = ClientTotals()
        self._config = config
        self._hub = hub
        self._under_way: set[object] = set()
        self._asked: list[_Asked] = []
        self._asking: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """While the block runs, questions of others wait for those that may come from it."""
        token = object()
        self._under_way.add(token)
        before = _judgement.set(token)
        try:
            yield
        finally:
            _judgement.reset(before)
            self._under_way.discard(token)

    async def complete(
        self, messages: Sequence[Message], reply_model: type[ReplyT], name: CallName
    ) -> CallResult[ReplyT]:
        """Returns the reply to `messages` as a `reply_model`, or the outcome that stands in its place."""
        if self._hub.speaker is None:
            raise ConfigError("judge.kind=policy: there is no policy here to ask; take a judge of another kind")
        config, began = self._config, time.monotonic()
        chat = tuple(with_schema(messages, reply_model))
        question = Question(chat, name.sample, name.prompt_version, config.max_tokens)
        answer = await self._ask(question)
        latency_s = time.monotonic() - began
        self.totals.count(1, answer.tokens_in, answer.tokens_out, latency_s)
        outcome, parsed, detail = Outcome.OVER_BUDGET, None, answer.lack
        if not answer.lack:
            completion = Completion(answer.text, "", answer.is_cut_off, answer.tokens_in, answer.tokens_out)
            try:
                outcome, parsed, detail = Outcome.OK, parse_completion(completion, reply_model, config.where), ""
            except AttemptFailed as failure:
                outcome, detail = outcome_of(failure), failure.detail
        return CallResult(outcome, parsed, answer.text, answer.tokens_in, answer.tokens_out, latency_s, 1, None, detail)

    async def aclose(self) -> None:
        """Leaves questions that nobody waits for any more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
            self._asking = None

    async def _ask(self, question: Question) -> Answer:
        asked = _Asked(question, _judgement.get(), asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._put_all())
        return await asked.answer

    async def _put_all(self) -> None:
        """Puts questions until there are none: each time all that are there once every judgement waits."""
        speaker = self._hub.speaker
        assert speaker is not None
        while self._asked:
            async with speaker.at_rest():
                while self._under_way - {asked.judgement for asked in self._asked}:
                    await asyncio.sleep(0)
                batch, self._asked = sorted(self._asked, key=_order), []
                try:
                    answers = await speaker.answer([asked.question for asked in batch], self._config.temperature or 0.0)
                except Exception as error:
                    for asked in batch:
                        asked.answer.set_exception(error)
                    return
            for asked, answer in zip(batch, answers, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(answer)
            await asyncio.sleep(0)  # those who waited ask their next question, if they have one


def _order(asked: _Asked) -> tuple[Any, ...]:
    sample = asked.question.sample
    return sample.step, sample.prompt_id, sample.sample_index, str(sample.role), asked.question.name


class PolicyJudge(AskingJudge):
    """The policy judges itself."""

    def __init__(self, config: JudgeConfig, hub: Hub):
        self._policy = PolicyClient(config, hub)
        super().__init__(config, "policy", self._policy)

    async def check(self) -> None:
        """Nothing can be missing: the policy is there, or there is no run."""

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        with self._policy.judging():
            return await super().score(task, example, conversation, key)

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        with self._policy.judging():
            return await super().feedback(task, example, conversation, verdict, key)
