"""A task of two lines, and helpers that ask a judge about it: enough to test judges without any real task."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from ditto_jax.errors import MissingInputError
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.fence import fence
from ditto_jax.judge.openai import OpenAIJudge
from ditto_jax.judge.retry import Sleep
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import FeedbackReply, JudgeRequest, Ports, Source, Task
from ditto_jax.types import Conversation, Example, Feedback, Message, Outcome, Verdict

KEY = "sk-a-key-that-nobody-may-see"
KEY_ENV = "QUIZ_JUDGE_KEY"

EXAMPLE = Example(task="quiz", id="quiz-1", payload={"question": "Where is the apple?"}, gold="green drawer")
DRAFT = Conversation(messages=(Message("user", "Where is the apple?"),), reply="red basket")
WRONG = Verdict(Outcome.OK, score=0.0)


@dataclasses.dataclass(frozen=True)
class QuizOptions:
    has_rules: bool = True


class Quiz(Task[QuizOptions]):
    """Scores 1 for the gold text. Its words vary with the random generator, so that determinism can be seen."""

    name = "quiz"
    version = "1"
    options_type = QuizOptions

    def load(self, source: Source) -> Sequence[Example]:
        raise MissingInputError("the quiz has no files")

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        return (Message("user", example.payload["question"]),)

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        reply = await ports.policy().reply(self.opening(example, feedback))
        return Conversation(messages=(), reply=reply.text)

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        if not self.options.has_rules:
            return None
        return Verdict(Outcome.OK, score=float(conversation.reply == example.gold), judge="rules")

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        if not self.options.has_rules or verdict.score == 1.0:
            return None
        return f"Think again about event {rng.randrange(10**9)}."

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        text = f"Say what the answer overlooks.\n{fence(conversation.reply)}"
        return JudgeRequest((Message("system", "You teach."), Message("user", text)), FeedbackReply, "quiz-words-3")


QUIZ = Quiz(QuizOptions())


def call_key(sample_index: int = 0, **changes: Any) -> SampleId:
    values = {"seed": 1, "step": 2, "prompt_id": "quiz-1", "sample_index": sample_index, "role": "draft"}
    return SampleId(**(values | changes))


class Sleeper:
    """Stands in for sleeping: records how long was asked for, and yields to the loop only."""

    def __init__(self):
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await asyncio.sleep(0)


def openai_config(base_url: str, **changes: Any) -> JudgeConfig:
    values = {
        "kind": "openai",
        "model": "tiny-judge",
        "base_url": base_url,
        "api_key_env": KEY_ENV,
        "max_concurrent": 4,
        "timeout_s": 20.0,
        "max_retries": 3,
        "unparsable_retries": 1,
        "max_outage_s": 0.0,
    }
    return JudgeConfig(**(values | changes))


def make_openai_judge(base_url: str, sleep: Sleep | None = None, now: float = 0.0, **changes: Any) -> OpenAIJudge:
    """Returns a judge that never really sleeps and whose wall clock stands at `now`."""
    config = openai_config(base_url, **changes)
    return OpenAIJudge(config, environ={KEY_ENV: KEY}, sleep=sleep or Sleeper(), now=lambda: now)


def ask(judge: OpenAIJudge, times: int = 1) -> list[Feedback]:
    """Returns the feedback of `times` concurrent calls in a loop of their own."""

    async def run() -> list[Feedback]:
        try:
            return await asyncio.gather(
                *(judge.feedback(QUIZ, EXAMPLE, DRAFT, WRONG, call_key(index)) for index in range(times))
            )
        finally:
            await judge.aclose()

    return asyncio.run(run())
