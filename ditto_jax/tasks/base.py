"""What a task is: prompts, an episode, a scorer and feedback, over ports it does not own.

Single-turn, multi-turn and multi-agent tasks differ only in how often their `episode` awaits a port. A refined rollout
is the same coroutine with `feedback` set. A score comes from rules, or from a language model's replies to questions
that the task asks. Tasks never import jax, never talk to the network, and never choose thresholds: gates, caps and
model names are configuration.
"""

from __future__ import annotations

import abc
import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pydantic

from ditto_jax.reply_form import ReplyForm
from ditto_jax.tasks.rows import RowReport
from ditto_jax.types import Chat, Conversation, Example, Message, Outcome, Reply, Verdict


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


class EpisodeFailure(Exception):
    """An episode cannot go on; it is masked and counted under `outcome`, never scored."""

    def __init__(self, detail: str, outcome: Outcome = Outcome.UNAVAILABLE):
        super().__init__(detail)
        self.outcome = outcome


class AuxiliaryFailure(EpisodeFailure):
    """An auxiliary model (partner, narrator, assistant) failed."""


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """A question for an LLM judge: messages, and the pydantic model that its JSON reply must satisfy.

    Text written by the policy must already be fenced (`fence`) where it appears in `messages`.
    """

    messages: tuple[Message, ...]
    reply_model: type[pydantic.BaseModel]
    prompt_version: str


@dataclasses.dataclass(frozen=True)
class PairQuestion:
    """A choice between two sides, in both orders; the reply's `verdict` is "A", "B" or "TIE".

    in_order shows the first side as A, swapped as B.
    """

    in_order: JudgeRequest
    swapped: JudgeRequest


class FeedbackReply(pydantic.BaseModel):
    """Reply schema of every feedback request."""

    model_config = pydantic.ConfigDict(extra="ignore")
    feedback: str = pydantic.Field(min_length=1, max_length=8000)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A scored conversation, as metrics over many of them see it."""

    example: Example
    conversation: Conversation
    verdict: Verdict


OptionsT = TypeVar("OptionsT")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where examples come from.

    kind: "generated" (seeded generator), "files" (the public files of the benchmark) or "parquet" (released SOUL
    schema). path: file or folder for "files" and "parquet"; unused for "generated".
    split: "train", "validation" or "test". Generated splits never share words or stories.
    limit: how many examples; None means all (generated: required).
    seed: seed of the generator.
    rows: the account that readers keep; by default a malformed row is an error.
    """

    kind: str = "generated"
    path: Path | None = None
    split: str = "train"
    limit: int | None = None
    seed: int = 0
    rows: RowReport = dataclasses.field(default_factory=RowReport, compare=False)


class Task(abc.ABC, Generic[OptionsT]):
    """One SOUL task. Subclasses are registered by name (`ditto_jax.tasks.registry`)."""

    name: ClassVar[str]
    version: ClassVar[str]  # changes whenever prompts, scorer or feedback change
    options_type: ClassVar[type]  # frozen dataclass of task options, filled from configuration
    sources: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # kind of source → splits that it has
    many_turns: ClassVar[bool] = False  # whether the policy may speak more than once in an episode
    in_character: ClassVar[bool] = False  # whether its replies are somebody's speech, not answers about somebody
    simulates_user: ClassVar[bool] = False  # whether that somebody is the user of an assistant

    def __init__(self, options: OptionsT):
        self.options = options

    @property
    def questions(self) -> int:
        """How many questions make a score where rules give none, for estimates; 0 where rules always do."""
        return int(type(self).score_requests is not Task.score_requests)

    @property
    def auxiliary_roles(self) -> tuple[str, ...]:
        """The roles for which episodes ask auxiliary models, for estimates."""
        return ()

    @abc.abstractmethod
    def load(self, source: Source) -> Sequence[Example]:
        """Returns validated examples. Raises MissingInputError (absent path) or DataError (file, row, field)."""

    @abc.abstractmethod
    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        """Returns the chat before the policy's first reply: x, or (x, h) with `feedback`."""

    def openings(self, example: Example, feedback: str | None = None) -> Mapping[str, tuple[Message, ...]]:
        """Returns the opening of every role that the policy plays, by the role names used with `ports.policy`.

        A role that may hear others before its first reply must end its opening with the system message.
        """
        return {"policy": self.opening(example, feedback)}

    @abc.abstractmethod
    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        """Plays one episode. With `feedback`, the same episode in the context (x, h)."""

    def reply_form(self, example: Example, role: str, turn: int) -> ReplyForm | None:
        """Returns the form of the policy's reply number `turn` (from 0) in a role, None for one that is free.

        Only runs that say so are held to it (`evaluation.constrained`, `rollout.constrained`); it says no more than the
        prompt does.
        """
        return None

    @abc.abstractmethod
    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        """Returns the verdict if rules can score this conversation, else None (a language model must).

        A conversation that needs no judge to be worthless (nothing visible was said) is scored 0 here.
        """

    def score_requests(self, example: Example, conversation: Conversation) -> Mapping[str, JudgeRequest]:
        """Returns the questions whose replies make the score, by name. All are asked; if one fails, there is no score.

        Only called where `rule_score` gave None.
        """
        return {}

    def judged_score(
        self, example: Example, conversation: Conversation, replies: Mapping[str, pydantic.BaseModel]
    ) -> Verdict:
        """Returns the verdict that the validated replies to `score_requests` make. Its `judge` is filled in later."""
        raise NotImplementedError(f"task {self.name} asks questions for its score but does not say what replies make")

    def proxy_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        """Returns a rule-made stand-in for the judge's score, for runs without one, or None; labelled a proxy."""
        return None

    def wants_feedback(self, example: Example, conversation: Conversation, verdict: Verdict) -> bool:
        """Returns whether words about this draft make sense; the score gate is configuration and asked before."""
        return True

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

    def self_reference(self, example: Example, conversation: Conversation) -> bool:
        """Returns True if the policy spoke of the guidance it was given; such refined rollouts are discarded."""
        from ditto_jax.tasks.leak import mentions_guidance

        return any(mentions_guidance(text, self.in_character) for text in conversation.policy_texts)

    def scripted_reply(self, example: Example, role: str, chat: Chat, rng: random.Random) -> str | None:
        """Returns what the embedded partner says in `role`, or None if the task has no script for it.

        A script keeps offline runs going; it is no model of a person, and every output says that it was used.
        """
        return None

    def groups(self, example: Example) -> frozenset[str]:
        """Returns what an example must not share with held-out data ("story:…", "book:…"); see `splits.group_name`."""
        return frozenset()

    def evaluation_only(self, source: Source) -> str:
        """Returns why a source may not be trained on, or ""."""
        return ""

    def batch_metrics(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """Returns metrics that exist only over many conversations; evaluation calls it once a task."""
        return {}

    def controls(self, example: Example, conversation: Conversation) -> Mapping[str, tuple[Example, Conversation]]:
        """Returns what a judge may be checked with, by name: an example and a conversation with a score to be expected.

        "human_vs_human" has the real person's words in the place of the policy's, "proxy_vs_proxy" the policy's in the
        place of the real person's.
        """
        return {}

    def pair_questions(self, example: Example, conversation: Conversation) -> Mapping[str, PairQuestion]:
        """Returns choices between the policy's and the real person's words, by name: "proxy_vs_human" and controls."""
        return {}

    def ending(self, example: Example, conversation: Conversation) -> str:
        """Returns "premature" or "missing" if the policy ended a dialogue too early or not at all; "" otherwise."""
        return ""

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
