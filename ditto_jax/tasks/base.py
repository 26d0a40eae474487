"""What a task is: prompts, an episode, a scorer and feedback, over ports it does not own.

A task is one file. Single-turn, multi-turn and multi-agent tasks differ only in how often their `episode` awaits a
port. A refined rollout is the same coroutine with `feedback` set. Tasks never import jax, never talk to the network,
and never choose thresholds: gates, caps and model names are configuration.
"""

from __future__ import annotations

import abc
import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pydantic

from ditto_jax.types import Chat, Conversation, Example, Message, Reply, Verdict


class ReplyPort(Protocol):
    """Anything that answers a chat: the policy, a partner model, a narrator."""

    async def reply(self, chat: Chat) -> Reply:
        """Returns the next assistant message. Each call's chat must extend the previous one of the same port."""
        ...


class Ports(Protocol):
    """The two ports an episode may use, by role name."""

    def policy(self, role: str = "policy") -> ReplyPort:
        """The trained policy. Each role name owns one append-only transcript."""
        ...

    def llm(self, role: str) -> ReplyPort:
        """An auxiliary model (partner, narrator, assistant). Its failure raises `AuxiliaryFailure`."""
        ...


class AuxiliaryFailure(Exception):
    """An auxiliary model failed; the episode is invalid: masked and counted, never scored."""


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """A question for an LLM judge: messages, and the pydantic model that its JSON reply must satisfy.

    Text written by the policy must already be fenced (`fence`) where it appears in `messages`.
    """

    messages: tuple[Message, ...]
    reply_model: type[pydantic.BaseModel]
    prompt_version: str


class FeedbackReply(pydantic.BaseModel):
    """Reply schema of every feedback request."""

    model_config = pydantic.ConfigDict(extra="ignore")
    feedback: str = pydantic.Field(min_length=1, max_length=8000)


OptionsT = TypeVar("OptionsT")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where examples come from.

    kind: "generated" (seeded generator), "files" (the public files of the benchmark) or "parquet" (released SOUL
    schema). path: file or folder for "files" and "parquet"; unused for "generated".
    split: "train", "validation" or "test". Generated splits never share words or stories.
    limit: how many examples; None means all (generated: required).
    seed: seed of the generator.
    """

    kind: str = "generated"
    path: Path | None = None
    split: str = "train"
    limit: int | None = None
    seed: int = 0


class Task(abc.ABC, Generic[OptionsT]):
    """One SOUL task. Subclasses are registered by name (`ditto_jax.tasks.registry`)."""

    name: ClassVar[str]
    version: ClassVar[str]  # changes whenever prompts, scorer or feedback change
    options_type: ClassVar[type]  # frozen dataclass of task options, filled from configuration

    def __init__(self, options: OptionsT):
        self.options = options

    @abc.abstractmethod
    def load(self, source: Source) -> Sequence[Example]:
        """Returns validated examples. Raises MissingInputError (absent path) or DataError (file, row, field)."""

    @abc.abstractmethod
    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        """Returns the chat before the policy's first reply: x, or (x, h) with `feedback`."""

    @abc.abstractmethod
    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        """Plays one episode. With `feedback`, the same episode in the context (x, h)."""

    @abc.abstractmethod
    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        """Returns the verdict if rules can score this task, else None (an LLM judge must)."""

    @abc.abstractmethod
    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns words about the draft from the symbolic trace, or None if rules cannot say anything."""

    @abc.abstractmethod
    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        """Returns the question that makes an LLM judge write the same kind of words."""

    def leak(self, example: Example, feedback: str) -> str:
        """Returns the name of the leak rule that `feedback` breaks, or "". Default: no gold, no option letter."""
        from ditto_jax.tasks.leak import leak_rule

        return leak_rule(feedback, gold_text=example.gold, gold_letter=example.payload.get("gold_letter"))

    def breakdown(self, example: Example) -> Mapping[str, str]:
        """Returns the labels that evaluation groups by, for example {"order": "2"}."""
        return {}

    def demonstration(self, example: Example, careful: bool = True) -> str | None:
        """Returns a worked reply for supervised warm starts, or None if the task has no generator.

        careful: False gives the task's typical mistake instead of right reasoning, to build a start that feedback can
        repair.
        """
        return None


def options_from(task_type: type[Task], values: Mapping[str, Any]) -> Any:
    """Builds a task's options from configuration values; unknown keys name the nearest known key."""
    from ditto_jax.strict import build

    return build(task_type.options_type, values, where=f"tasks.{task_type.name}.options")
