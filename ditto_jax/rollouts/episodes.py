"""One episode: what is to be played, the ports that a task sees, and the token transcripts that they keep.

prompt → draft rollout, for one rollout. In: a task's coroutine over `Ports`. Out: what was said, and the tokens of each
role that the policy played. A port only says what it wants continued; when that is sampled, and beside whom, is decided
in `engine.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from ditto_jax.errors import ConfigError
from ditto_jax.keys import SampleId
from ditto_jax.reply_form import HeldTo, ReplyForm
from ditto_jax.rollouts.partners import Partners
from ditto_jax.sampling.slots import Sampled, SampleRequest
from ditto_jax.tasks.base import EpisodeFailure, Ports, ReplyPort, Task
from ditto_jax.tasks.openings import reopened
from ditto_jax.text.chat import ChatFormat
from ditto_jax.text.grammar import Grammars
from ditto_jax.types import Author, Chat, Conversation, Example, FinishReason, Message, Outcome, Reply, Span, Transcript


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One episode to play. `group` names rollouts that may share a prefix; `sample` is what its randomness derives
    from. `question`: a chat that the policy answers with one reply, in the place of the task's episode. `constrained`:
    whether replies are held to the forms that the task says.
    """

    task: Task
    example: Example
    group: int
    sample: SampleId
    feedback: str | None = None
    question: tuple[Message, ...] | None = None
    constrained: bool = False

    @property
    def many_turns(self) -> bool:
        """Whether the policy may speak more than once."""
        return self.question is None and self.task.many_turns

    def reply_form(self, role: str, turn: int) -> ReplyForm | None:
        """Returns the form that a reply of the policy is held to, if any."""
        if not self.constrained or self.question is not None:
            return None
        return self.task.reply_form(self.example, role, turn)

    async def play(self, ports: Ports) -> Conversation:
        """Plays the episode. Raises EpisodeFailure if it cannot go on."""
        if self.question is None:
            return await self.task.episode(self.example, ports, self.feedback)
        reply = await ports.policy().reply(self.question)
        return Conversation((*self.question, Message("assistant", reply.text)), reply.text)


@dataclasses.dataclass(frozen=True)
class Played:
    """A finished episode: what was said, the tokens of every role that the policy played, who played the others."""

    conversation: Conversation
    transcripts: Mapping[str, Transcript]
    partners: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Abandoned:
    """An episode that could not go on (a partner failed, a prompt has no room): why, and the tokens until then.

    Nothing to judge.
    """

    reason: str
    transcripts: Mapping[str, Transcript]
    outcome: Outcome = Outcome.UNAVAILABLE
    partners: Mapping[str, str] = dataclasses.field(default_factory=dict)


class ReplySource(Protocol):
    """What a port needs of whoever samples for it."""

    max_completion_length: int
    partners: Partners | None

    @property
    def chat_format(self) -> ChatFormat: ...

    @property
    def context(self) -> int:
        """Positions of the model."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """Tokens of the longest single reply."""
        ...

    def has_room(self, length: int) -> bool:
        """Returns whether a prompt of `length` tokens can be continued."""
        ...

    def group_of(self, group: int, role: str) -> int:
        """Returns the number under which the prompts of one role of a group may share a prefix."""
        ...

    def text_of(self, sampled: Sampled) -> str:
        """Returns the reply's text."""
        ...

    @property
    def grammars(self) -> Grammars:
        """What makes masks of forms."""
        ...


Sample = Callable[[SampleRequest], Awaitable[Sampled]]


class PolicyPort:
    """The policy as an episode sees it: one append-only token transcript."""

    def __init__(self, source: ReplySource, sample: Sample, attempt: Attempt, role: str):
        self._source = source
        self._sample = sample
        self._attempt = attempt
        self._role = role
        self._chat: list[Message] = []
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._spans: list[Span] = []
        self._context_length = 0
        self._plain_context: np.ndarray | None = None
        self._opening: tuple[Message, ...] = ()
        self._finish = FinishReason.STOP
        self._turn = 0

    def _append(
        self, ids: Sequence[int], logprobs: Sequence[float], author: Author, held: HeldTo | None = None
    ) -> None:
        if len(ids):
            self._spans.append(Span(len(self._ids), len(self._ids) + len(ids), author, held))
            self._ids.extend(int(i) for i in ids)
            self._logprobs.extend(float(lp) for lp in logprobs)

    async def reply(self, chat: Chat) -> Reply:
        """Returns the policy's next message. `chat` must extend the chat of the previous call and its reply.

        Without room for another token the reply is empty and the transcript ends with what was sampled last. Raises
        EpisodeFailure if not even the opening has room.
        """
        chat = list(chat)
        chat_format = self._source.chat_format
        if not self._ids:
            observation = chat_format.open(chat)
            if not self._source.has_room(len(observation)):
                detail = f"the opening of '{self._role}' has {len(observation)} tokens, more than can be sampled after"
                raise EpisodeFailure(detail, Outcome.OVER_BUDGET)
            self._context_length = len(observation)
            self._plain_context = self._without_feedback(chat)
            self._opening = tuple(chat)
        else:
            if chat[: len(self._chat)] != self._chat:
                raise ValueError("a policy port's chat is append-only: an earlier message was changed")
            observation = chat_format.extend(self._chat, chat[len(self._chat) :], last_id=self._ids[-1])
        length = len(self._ids) + len(observation)
        budget = min(self._context_length + self._source.max_completion_length, self._source.context) - length
        if budget < 1 or not self._source.has_room(length):
            self._finish = FinishReason.LENGTH
            self._chat = [*chat, Message("assistant", "")]
            return Reply("", FinishReason.LENGTH)
        self._append(observation, [0.0] * len(observation), Author.CONTEXT)
        key = self._attempt.sample.key(self._role, self._turn)
        group = self._source.group_of(self._attempt.group, self._role)
        limit = min(budget, self._source.max_new_tokens)
        held = self._held_to(limit)
        mask = None if held is None else self._source.grammars.mask(held)
        sampled = await self._sample(SampleRequest(np.asarray(self._ids, np.int32), group, key, limit, mask))
        self._turn += 1
        self._append(sampled.ids.tolist(), sampled.logprobs.tolist(), Author.POLICY, held)
        self._finish = sampled.finish_reason
        text = self._source.text_of(sampled)
        self._chat = [*chat, Message("assistant", text)]
        return Reply(text, sampled.finish_reason)

    def _held_to(self, limit: int) -> HeldTo | None:
        """What the next reply, of up to `limit` tokens, is held to."""
        form = self._attempt.reply_form(self._role, self._turn)
        return None if form is None else HeldTo(form, limit, self._source.grammars.is_in_thought(self._ids))

    def _without_feedback(self, chat: list[Message]) -> np.ndarray | None:
        """The ids of the first chat as it would be under x, for a chat that opens with the task's (x, h)."""
        task, example, feedback = self._attempt.task, self._attempt.example, self._attempt.feedback
        plain = None if feedback is None else reopened(task, example, self._role, chat, feedback, None)
        return None if plain is None else np.asarray(self._source.chat_format.open(plain), np.int32)

    def transcript(self) -> Transcript:
        """Returns the tokens so far, and who wrote them."""
        return Transcript(
            ids=np.asarray(self._ids, np.int32),
            logprobs=np.asarray(self._logprobs, np.float32),
            spans=tuple(self._spans),
            context_length=self._context_length,
            finish_reason=self._finish,
            plain_context=self._plain_context,
            opening=self._opening,
        )


class EpisodePorts:
    """The ports of one attempt: those that its task asked for so far, by role."""

    def __init__(self, source: ReplySource, sample: Sample, attempt: Attempt):
        self._source = source
        self._sample = sample
        self._attempt = attempt
        self.policies: dict[str, PolicyPort] = {}
        self.partners: dict[str, str] = {}
        self._llms: dict[str, ReplyPort] = {}

    def policy(self, role: str = "policy") -> PolicyPort:
        """Returns the policy in a role; always the same port."""
        return self.policies.setdefault(role, PolicyPort(self._source, self._sample, self._attempt, role))

    def llm(self, role: str) -> ReplyPort:
        """Returns the model that plays a role. Raises ConfigError in a run without partners."""
        if role not in self._llms:
            partners, attempt = self._source.partners, self._attempt
            if partners is None:
                raise ConfigError(f"the task needs a model for the role '{role}'; the run has no partners")
            self.partners[role] = partners.identity(role, attempt.task)
            self._llms[role] = partners.port(role, attempt.task, attempt.example, attempt.sample)
        return self._llms[role]
