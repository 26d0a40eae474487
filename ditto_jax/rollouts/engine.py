"""Plays episodes: serves the policy requests of all live coroutines from one sampler, and keeps their transcripts.

prompt → draft rollout and (x, h) → refined rollout happen here. An episode is any coroutine over `Ports`; the engine
waits until every live episode is blocked on the policy, samples for all of them together, and hands each reply over
at the chunk boundary where it finished. So batch composition does not depend on how fast a judge or a partner
answers, and a finished episode's verdict is asked while others still decode. What a task does with replies, and how
they are judged, is not decided here.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ditto_jax.errors import ConfigError
from ditto_jax.keys import SampleId
from ditto_jax.rollouts.partners import Partners
from ditto_jax.sampling.sampler import Sampled, Sampler
from ditto_jax.sampling.slots import SampleRequest
from ditto_jax.tasks.base import EpisodeFailure, Ports, ReplyPort, Task
from ditto_jax.tasks.openings import reopened
from ditto_jax.text.chat import ChatFormat
from ditto_jax.types import Author, Chat, Conversation, Example, FinishReason, Message, Outcome, Reply, Span, Transcript
from model.llama import Params
from model.sampling import SamplingParams

ResultT = TypeVar("ResultT")


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One episode to play. `group` names rollouts that may share a prefix; `sample` is what its randomness derives
    from. `question`: a chat that the policy answers with one reply, in the place of the task's episode.
    """

    task: Task
    example: Example
    group: int
    sample: SampleId
    feedback: str | None = None
    question: tuple[Message, ...] | None = None

    @property
    def many_turns(self) -> bool:
        """Whether the policy may speak more than once."""
        return self.question is None and self.task.many_turns

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


@dataclasses.dataclass
class _Pending:
    """A continuation that the episode number `owner` waits for."""

    owner: int
    request: SampleRequest
    future: asyncio.Future[Sampled]


class PolicyPort:
    """The policy as an episode sees it: one append-only token transcript."""

    def __init__(self, engine: Engine, index: int, attempt: Attempt, role: str):
        self._engine = engine
        self._index = index
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

    def _append(self, ids: Sequence[int], logprobs: Sequence[float], author: Author) -> None:
        if len(ids):
            self._spans.append(Span(len(self._ids), len(self._ids) + len(ids), author))
            self._ids.extend(int(i) for i in ids)
            self._logprobs.extend(float(lp) for lp in logprobs)

    async def reply(self, chat: Chat) -> Reply:
        """Returns the policy's next message. `chat` must extend the chat of the previous call and its reply.

        Without room for another token the reply is empty and the transcript ends with what was sampled last. Raises
        EpisodeFailure if not even the opening has room.
        """
        chat = list(chat)
        chat_format = self._engine.chat_format
        if not self._ids:
            observation = chat_format.open(chat)
            if not self._engine.has_room(len(observation)):
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
        budget = min(self._context_length + self._engine.max_completion_length, self._engine.context) - length
        if budget < 1 or not self._engine.has_room(length):
            self._finish = FinishReason.LENGTH
            self._chat = [*chat, Message("assistant", "")]
            return Reply("", FinishReason.LENGTH)
        self._append(observation, [0.0] * len(observation), Author.CONTEXT)
        key = self._attempt.sample.key(self._role, self._turn)
        group = self._engine.group_of(self._attempt.group, self._role)
        request = SampleRequest(np.asarray(self._ids, np.int32), group, key, budget)
        sampled = await self._engine.sample(self._index, request)
        self._turn += 1
        self._append(sampled.ids.tolist(), sampled.logprobs.tolist(), Author.POLICY)
        self._finish = sampled.finish_reason
        text = self._engine.text_of(sampled)
        self._chat = [*chat, Message("assistant", text)]
        return Reply(text, sampled.finish_reason)

    def _without_feedback(self, chat: list[Message]) -> np.ndarray | None:
        """The ids of the first chat as it would be under x, for a chat that opens with the task's (x, h)."""
        task, example, feedback = self._attempt.task, self._attempt.example, self._attempt.feedback
        plain = None if feedback is None else reopened(task, example, self._role, chat, feedback, None)
        return None if plain is None else np.asarray(self._engine.chat_format.open(plain), np.int32)

    def transcript(self) -> Transcript:
        return Transcript(
            ids=np.asarray(self._ids, np.int32),
            logprobs=np.asarray(self._logprobs, np.float32),
            spans=tuple(self._spans),
            context_length=self._context_length,
            finish_reason=self._finish,
            plain_context=self._plain_context,
            opening=self._opening,
        )


class _EpisodePorts:
    def __init__(self, engine: Engine, index: int, attempt: Attempt):
        self._engine = engine
        self._index = index
        self._attempt = attempt
        self.policies: dict[str, PolicyPort] = {}
        self.partners: dict[str, str] = {}
        self._llms: dict[str, ReplyPort] = {}

    def policy(self, role: str = "policy") -> PolicyPort:
        return self.policies.setdefault(role, PolicyPort(self._engine, self._index, self._attempt, role))

    def llm(self, role: str) -> ReplyPort:
        if role not in self._llms:
            partners, attempt = self._engine.partners, self._attempt
            if partners is None:
                raise ConfigError(f"the task needs a model for the role '{role}'; the run has no partners")
            self.partners[role] = partners.identity(role, attempt.task)
            self._llms[role] = partners.port(role, attempt.task, attempt.example, attempt.sample)
        return self._llms[role]


class Engine:
    """Serves many episodes from one sampler. Weights and sampling settings are fixed for one `play` call."""

    def __init__(
        self,
        sampler: Sampler,
        chat_format: ChatFormat,
        decode: Callable[[Sequence[int]], str],
        max_completion_length: int,
        stop_strings: Sequence[str] = (),
        partners: Partners | None = None,
    ):
        self.sampler = sampler
        self.chat_format = chat_format
        self.max_completion_length = max_completion_length
        self.partners = partners
        self._roles: dict[str, int] = {"policy": 0}
        self._decode = decode
        self._stop_strings = tuple(stop_strings)
        self._pending: list[_Pending] = []
        self._live = 0
        self._many_turns = False  # whether episodes that are played may come back for another turn
        self._changed = asyncio.Event()
        self.tokens_sampled = 0

    @property
    def context(self) -> int:
        """Positions of the model."""
        return self.sampler.config.max_position_embeddings

    def has_room(self, length: int) -> bool:
        """Returns whether a prompt of `length` tokens fits the sampler's buckets and leaves room for a token."""
        shapes = self.sampler.shapes
        return length <= shapes.prefix[-1] + shapes.tail[-1] and length < self.context

    def group_of(self, group: int, role: str) -> int:
        """Returns the number under which the prompts of one role of a group may share a prefix: roles open apart."""
        return (self._roles.setdefault(role, len(self._roles)) << 32) + group

    async def play(
        self,
        params: Params,
        sampling: SamplingParams,
        attempts: Sequence[Attempt],
        judged: Callable[[int, Played | Abandoned], Awaitable[ResultT]],
    ) -> list[ResultT]:
        """Returns `judged(index, played)` for every attempt, in order; each starts as soon as its episode ends.

        The first exception of an episode, of `judged` or of the sampler ends the play and is raised here.
        """
        self._changed = asyncio.Event()
        self._live = len(attempts)
        self._many_turns = any(attempt.many_turns for attempt in attempts)
        tasks = [asyncio.create_task(self._play_one(i, attempt, judged)) for i, attempt in enumerate(attempts)]
        server = asyncio.create_task(self._serve(params, sampling))
        try:
            results = await asyncio.gather(*tasks)
            await server
            return results
        finally:
            everything: list[asyncio.Task[Any]] = [*tasks, server]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            self._pending.clear()

    async def _play_one(
        self, index: int, attempt: Attempt, judged: Callable[[int, Played | Abandoned], Awaitable[ResultT]]
    ) -> ResultT:
        ports = _EpisodePorts(self, index, attempt)
        conversation, reason, outcome = None, "", Outcome.OK
        try:
            conversation = await attempt.play(ports)
        except EpisodeFailure as failure:
            reason, outcome = str(failure), failure.outcome
        finally:
            self._live -= 1
            self._changed.set()
        transcripts = {role: port.transcript() for role, port in ports.policies.items()}
        if conversation is None:
            return await judged(index, Abandoned(reason, transcripts, outcome, ports.partners))
        return await judged(index, Played(conversation, transcripts, ports.partners))

    async def sample(self, owner: int, request: SampleRequest) -> Sampled:
        """Queues one continuation for the episode number `owner` and waits for it."""
        future = asyncio.get_running_loop().create_future()
        limit = min(request.max_new_tokens, self.sampler.shapes.max_new_tokens)
        self._pending.append(_Pending(owner, dataclasses.replace(request, max_new_tokens=limit), future))
        self._changed.set()
        return await future

    async def _serve(self, params: Params, sampling: SamplingParams) -> None:
        while self._live:
            blocked = {pending.owner for pending in self._pending}
            if len(blocked) < self._live:
                self._changed.clear()
                await self._changed.wait()
                continue
            # In the order of the attempts and not of arrival, so that rows lie alike however fast partners answer.
            batch, self._pending = sorted(self._pending, key=lambda pending: pending.owner), []
            try:
                await self._sample_batch(params, sampling, batch)
            except Exception as error:
                for pending in batch:
                    if not pending.future.done():
                        pending.future.set_exception(error)
                raise

    async def _sample_batch(self, params: Params, sampling: SamplingParams, batch: list[_Pending]) -> None:
        requests = [pending.request for pending in batch]
        chunks = self.sampler.generate(params, requests, sampling, self._stop_strings, self._many_turns)
        while True:
            # Device work in a thread, so that judges and partners are served while rows decode.
            finished = await asyncio.to_thread(next, chunks, None)
            if finished is None:
                return
            for index, sampled in finished:
                self.tokens_sampled += len(sampled.ids)
                batch[index].future.set_result(sampled)

    def text_of(self, sampled: Sampled) -> str:
        """Returns the reply's text, without its stop token and without a matched stop string."""
        ids = sampled.ids.tolist()
        if ids and ids[-1] in self.sampler.stop_ids:
            ids = ids[:-1]
        text = self._decode(ids)
        ends = [text.find(stop) for stop in self._stop_strings if stop in text]
        return (text[: min(ends)] if ends else text).strip()
