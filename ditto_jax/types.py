"""The nouns of the pipeline, as small immutable dataclasses.

prompt → draft rollout → judge → feedback → refined rollout → views and pools → sharded update

Everything here is host data (strings and NumPy arrays). Nothing in this file imports jax, so tasks and judges may use
it freely. Laws that a noun must obey are checked where it is built, so that a broken one cannot travel.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditto_jax.reply_form import HeldTo


@dataclasses.dataclass(frozen=True)
class Message:
    """One chat message: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Chat = Sequence[Message]


@dataclasses.dataclass(frozen=True)
class Example:
    """One validated row of a task.

    `id` is unique within its task and source; `payload` holds what prompts, scorers and feedback need (read-only);
    `gold` is the reference answer, normalised when the row was read.
    """

    task: str
    id: str
    payload: Mapping[str, Any]
    gold: str


class FinishReason(enum.StrEnum):
    """Why the sampler stopped a reply."""

    STOP = "stop"  # a stop token or stop string was sampled
    LENGTH = "length"  # the token budget ran out: truncated
    TURN_LIMIT = "turn_limit"  # the task ended the conversation: not truncated


@dataclasses.dataclass(frozen=True)
class Reply:
    """Text that a port answered with. `text` excludes the stop token; a matched stop string is trimmed from it."""

    text: str
    finish_reason: FinishReason


class Author(enum.StrEnum):
    CONTEXT = "context"  # prompt, feedback, observations: never trained
    POLICY = "policy"  # sampled by the policy


@dataclasses.dataclass(frozen=True)
class Span:
    """Token positions `[start, end)` of a transcript, written by `author`, and what they were held to, if anything."""

    start: int
    end: int
    author: Author
    held: HeldTo | None = None


@dataclasses.dataclass(frozen=True)
class Transcript:
    """Token ids of one rollout, append-only: what was sampled is what is trained.

    ids: int32[T] prompt, sampled tokens and observations in order.
    logprobs: float32[T] log-probability under the sampling distribution; 0 where the policy did not write.
    context_length: tokens before the first sampled one; everything after them is the response.
    plain_context: int32[c] the same context without feedback, where it was sampled under (x, h); else None.
    opening: the chat that the context was made of, so that it can be opened again under other words.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    spans: tuple[Span, ...]
    context_length: int
    finish_reason: FinishReason
    plain_context: np.ndarray | None = None
    opening: tuple[Message, ...] = ()

    @property
    def loss_mask(self) -> np.ndarray:
        """bool[T]: True iff the policy sampled the token."""
        mask = np.zeros(len(self.ids), dtype=bool)
        for span in self.spans:
            if span.author is Author.POLICY:
                mask[span.start : span.end] = True
        return mask

    @property
    def response(self) -> np.ndarray:
        """int32[T - context_length]: everything after the opening context."""
        return self.ids[self.context_length :]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One visible contribution to a dialogue, without thoughts. `author`: "policy", "llm" (an auxiliary model) or
    "given" (from the data).
    """

    speaker: str
    text: str
    author: str


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What a task's episode returns: the visible exchange in text, and the policy's final reply.

    turns: who said what, in order, where several speak; empty for tasks of one reply. facts: what the episode noticed
    on the way (why it ended, how often a reply was malformed), for scorers and metrics.
    """

    messages: tuple[Message, ...]
    reply: str
    turns: tuple[Turn, ...] = ()
    facts: Mapping[str, str | float] = dataclasses.field(default_factory=dict)

    @property
    def policy_texts(self) -> tuple[str, ...]:
        """Everything that the policy said."""
        return tuple(turn.text for turn in self.turns if turn.author == "policy") or (self.reply,)


class Outcome(enum.StrEnum):
    """How a call to a judge ended. Only OK carries a score or words; REJECTED: a filter of ours discarded it."""

    OK = "ok"
    REJECTED = "rejected"
    REFUSED = "refused"
    UNPARSABLE = "unparsable"
    TIMED_OUT = "timed_out"
    UNAVAILABLE = "unavailable"
    OVER_BUDGET = "over_budget"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judge's assessment of one rollout.

    Exactly one outcome; a score (finite float) exists iff the outcome is OK. `detail` says for people what went wrong
    or how the score came about; it is never put into a prompt.
    """

    outcome: Outcome
    score: float | None = None
    dimensions: Mapping[str, float] = dataclasses.field(default_factory=dict)
    critique: str = ""
    judge: str = ""
    detail: str = ""

    def __post_init__(self):
        if (self.outcome is Outcome.OK) != (self.score is not None):
            raise ValueError(f"verdict with outcome={self.outcome} and score={self.score}: a score exists iff ok")
        if self.score is not None and not np.isfinite(self.score):
            raise ValueError(f"verdict score={self.score} is not finite")


@dataclasses.dataclass(frozen=True)
class Feedback:
    """The words h about one draft, or why there are none.

    `outcome` is that of the call which asked for them. `text` exists iff the outcome is OK. `leak` names the rule of
    the leak filter that rejected the text, or is empty. Only `usable` feedback may enter a prompt.
    """

    outcome: Outcome
    text: str | None = None
    judge: str = ""
    leak: str = ""
    detail: str = ""

    def __post_init__(self):
        if (self.outcome is Outcome.OK) != bool(self.text):
            raise ValueError(f"feedback with outcome={self.outcome} and text={self.text!r}: words exist iff ok")

    @property
    def usable(self) -> bool:
        return self.outcome is Outcome.OK and not self.leak


class RolloutRole(enum.StrEnum):
    DRAFT = "draft"
    REFINED = "refined"
    REFLECTION = "reflection"
    EVAL = "eval"


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One played episode in one sampling context, with its verdict.

    `prompt_index` numbers the prompt within the step, `sample_index` the draft within the group. A refined rollout
    has the sample_index of its parent draft and carries the feedback that it was sampled under in `used_feedback`; a
    draft carries the feedback that was asked for about it (or None if the gate was closed) in `feedback`. A reflection
    has the sample_index of its draft too; its reply is that draft's feedback, its score that of the refined rollouts
    under it, and in `feedback` stands what a judge was asked to say about the draft before. `kept` is False for a
    refined rollout that the objective does not train (`Refinement.keep`). `transcripts` holds one transcript for every
    role that the policy played ("policy" where there is one); `partners` says who played the other roles, such as
    "scripted@mirrorbench-1".
    """

    example: Example
    role: RolloutRole
    prompt_index: int
    sample_index: int
    transcripts: Mapping[str, Transcript]
    conversation: Conversation
    verdict: Verdict
    feedback: Feedback | None = None
    used_feedback: Feedback | None = None
    partners: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kept: bool = True

    @property
    def truncated(self) -> bool:
        """True if a token limit cut any of the transcripts."""
        return any(t.finish_reason is FinishReason.LENGTH for t in self.transcripts.values())


class ViewRole(enum.IntEnum):
    """A rollout paired with a training context (feedback-methods 0.2)."""

    DRAFT = 0  # y0 under x
    REFINED_PLAIN = 1  # y1 under x
    REFINED_FB = 2  # y1 under (x, h)
    DRAFT_FB = 3  # y0 under (x, h): what a teacher reads
    REFLECTION = 4  # the policy's own words about y0, under the prompt that asked for them
    CRITIQUE = 5  # the judge's words about y0, under the prompt that asks the policy for such words: not sampled
