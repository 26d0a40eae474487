"""A conversation of letters, its partners and a judge of it, for tests of how episodes are played."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ditto_jax.keys import SampleId
from ditto_jax.rollouts.engine import Engine
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.tasks.base import AuxiliaryFailure, JudgeRequest, Ports, ReplyPort, Source, Task
from ditto_jax.types import (
    Chat,
    Conversation,
    Example,
    Feedback,
    FinishReason,
    Message,
    Outcome,
    Reply,
    Verdict,
)
from model.sampling import SamplingParams
from tests.tiny_policy import LetterChat, decode, make_sampler

PLAIN = SamplingParams()
# One bucket of each kind: a conversation of three turns fits, and all tests share one compiled sampler.
SHAPES = SamplerShapes(prefix=(8,), tail=(72,), max_new_tokens=12, max_rows=6, rows_per_prefix=(2,), chunk=4)
EXAMPLE = Example(task="letters", id="1", payload={"question": "abc"}, gold="a")


@dataclasses.dataclass(frozen=True)
class LettersOptions:
    """turns: how often the policy speaks; a partner, or a second role of the policy, speaks in between."""

    turns: int = 1
    partner: str = ""
    other_role: str = ""


class Letters(Task[LettersOptions]):
    """A conversation of letters. `play` replaces the episode where a test needs a strange one."""

    name = "letters"
    version = "1"
    options_type = LettersOptions

    def __init__(self, options: LettersOptions = LettersOptions(), play: Callable[..., Any] | None = None):
        super().__init__(options)
        self._play = play

    def load(self, source: Source) -> Sequence[Example]:
        return [EXAMPLE]

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        return (Message("user", example.payload["question"] + (feedback or "")),)

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        chat = [*self.opening(example, feedback)]
        if self._play is not None:
            return await self._play(ports, chat)
        reply = await ports.policy().reply(chat)
        for turn in range(1, self.options.turns):
            chat.append(Message("assistant", reply.text))
            chat.append(await self._answer(ports, chat, turn))
            reply = await ports.policy().reply(chat)
        return Conversation((*chat, Message("assistant", reply.text)), reply.text)

    async def _answer(self, ports: Ports, chat: Chat, turn: int) -> Message:
        if self.options.partner:
            return Message("user", (await ports.llm(self.options.partner).reply(chat)).text)
        if self.options.other_role:
            flipped = [Message("user", m.content) for m in chat[:-1] if m.role == "user"]
            await ports.policy(f"{self.options.other_role}{turn}").reply(flipped)
        return Message("user", "xyz"[:turn])

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        return None

    def rule_feedback(self, example, conversation, verdict, rng: random.Random) -> str | None:
        return None

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        raise NotImplementedError("these episodes are not asked about by a language model")


class Partner:
    """Answers with letters that depend on the chat alone, after a delay; fails on its call number `fails_at`."""

    def __init__(self, seed: int | None = None, fails_at: int | None = None):
        self._delays = random.Random(seed) if seed is not None else None
        self._fails_at = fails_at
        self.calls = 0

    async def reply(self, chat: Chat) -> Reply:
        self.calls += 1
        number = self.calls
        if self._delays is not None:
            await asyncio.sleep(self._delays.uniform(0.0, 0.03))
        if number == self._fails_at:
            raise AuxiliaryFailure("the partner is down")
        text = "".join(sorted(chat[-1].content.replace("?", "")))[:3]
        return Reply(text + "q", FinishReason.STOP)


class Company:
    """One partner for every role."""

    def __init__(self, partner: Partner):
        self.partner = partner

    def identity(self, role: str, task: Task[Any]) -> str:
        return f"letters as {role}"

    def port(self, role: str, task: Task[Any], example: Example, key: SampleId) -> ReplyPort:
        return self.partner

    async def check(self) -> None: ...

    def counters(self) -> Mapping[str, float]:
        return {}

    async def aclose(self) -> None: ...


def make_engine(partner: Partner | None = None, **settings) -> Engine:
    sampler = settings.pop("sampler", None) or make_sampler(SHAPES)
    limit = settings.pop("max_completion_length", 60)
    return Engine(sampler, LetterChat(), decode, limit, partners=Company(partner) if partner else None, **settings)


class Gentle:
    """Scores everything 0 and always has the same words; notes what it was asked about."""

    identity = "gentle"

    def __init__(self):
        self.asked = 0

    async def check(self) -> None:
        return None

    def counters(self) -> Mapping[str, float]:
        return {}

    async def aclose(self) -> None:
        return None

    async def score(self, task, example, conversation: Conversation, key) -> Verdict:
        assert conversation.messages
        self.asked += 1
        return Verdict(Outcome.OK, score=0.0, judge="gentle")

    async def feedback(self, task, example, conversation, verdict, key) -> Feedback:
        return Feedback(Outcome.OK, text="hint", judge="gentle")
