"""Judges and partners of a run of several processes: each question is asked by one of them, and all hear the answer.

rollout → **its owner asks, the others wait** → the same verdict, words or reply everywhere

So a judge that is down on one host costs the samples that this host asks about, and every process counts them alike.
Who owns a sample is told by its prompt. Knows neither devices nor networks: values go through a `Post`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import pydantic

from ditto_jax.errors import error_named
from ditto_jax.judge.base import GroupJudge, Judge
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import AuxiliaryFailure, ReplyPort, Task
from ditto_jax.team.post import Post
from ditto_jax.types import Chat, Conversation, Example, Feedback, Outcome, Reply, Verdict

ValueT = TypeVar("ValueT")

_VERDICT = pydantic.TypeAdapter(Verdict)
_FEEDBACK = pydantic.TypeAdapter(Feedback)
_REPLY = pydantic.TypeAdapter(Reply)


class DividedJudge:
    """A judge that is asked about the samples of this process alone. name: tells apart judges of one run."""

    def __init__(self, judge: Judge, post: Post, name: str):
        self._judge = judge
        self._post = post
        self._name = name

    @property
    def identity(self) -> str:
        return self._judge.identity

    async def check(self) -> None:
        await self._judge.check()

    def expect(self, task: Task[Any], key: SampleId) -> None:
        """Tells a judge of whole groups what this process will ask it about."""
        if isinstance(self._judge, GroupJudge) and self._post.is_mine(key):
            self._judge.expect(task, key)

    def withdraw(self, task: Task[Any], key: SampleId) -> None:
        """Tells the same judge that it will not be asked after all."""
        if isinstance(self._judge, GroupJudge) and self._post.is_mine(key):
            self._judge.withdraw(task, key)

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        async def ask() -> Verdict:
            return await self._judge.score(task, example, conversation, key)

        return await of_owner(self._post, f"{self._name} score", key, ask, _VERDICT)

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        async def ask() -> Feedback:
            return await self._judge.feedback(task, example, conversation, verdict, key)

        return await of_owner(self._post, f"{self._name} words", key, ask, _FEEDBACK)

    def counters(self) -> Mapping[str, float]:
        """Counts of what this process asked."""
        return self._judge.counters()

    async def aclose(self) -> None:
        await self._judge.aclose()


@dataclasses.dataclass
class DividedPort:
    """A partner of one episode that is asked by the owner of its sample alone."""

    port: ReplyPort
    post: Post
    role: str
    key: SampleId
    turn: int = 0

    async def reply(self, chat: Chat) -> Reply:
        async def ask() -> Reply:
            return await self.port.reply(chat)

        name = f"partner {self.role} {self.turn}"
        self.turn += 1
        return await of_owner(self.post, name, self.key, ask, _REPLY)


async def of_owner(
    post: Post,
    question: str,
    key: SampleId,
    ask: Callable[[], Awaitable[ValueT]],
    kind: pydantic.TypeAdapter[ValueT],
) -> ValueT:
    """Returns what the owner of the sample was answered, on every process alike; raises what it met instead."""
    name = json.dumps([question, *dataclasses.astuple(key)])
    if not post.is_mine(key):
        said = await post.receive(name)
        if "failure" in said:
            text, outcome = said["failure"]
            raise AuxiliaryFailure(text, Outcome(outcome))
        if "error" in said:
            kind_of_error, text = said["error"]
            raise error_named(kind_of_error)(text)
        return kind.validate_python(said["value"])
    try:
        value = kind.dump_python(await ask(), mode="json")
    except AuxiliaryFailure as failure:
        post.send(name, {"failure": [str(failure), failure.outcome]})
        raise
    except Exception as error:
        post.send(name, {"error": [type(error).__name__, str(error)]})
        raise
    post.send(name, {"value": value})
    return kind.validate_python(value)  # as the others read it
