"""Plays episodes: serves the policy requests of live coroutines from one sampler, a chunk at a time.

prompt → draft rollout and (x, h) → refined rollout happen here. The episodes of one play go in step: a turn is sampled
once every live one is blocked on the policy, so that what is sampled together does not depend on how fast a judge or a
partner answers; each reply is handed over at the chunk boundary where it finished. A play has calls of the sampler to
itself, or shares one with other plays (`Engine.streaming`). What a task does with replies is not decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from ditto_jax.errors import ConfigError
from ditto_jax.judge.speaker import Answer, Question
from ditto_jax.rollouts.episodes import Abandoned, Attempt, EpisodePorts, Played
from ditto_jax.rollouts.partners import Partners
from ditto_jax.rollouts.together import all_of
from ditto_jax.sampling.sampler import OpenCall, Sampler
from ditto_jax.sampling.slots import Sampled, SampleRequest
from ditto_jax.tasks.base import EpisodeFailure
from ditto_jax.text.chat import ChatFormat
from ditto_jax.text.grammar import Grammars
from ditto_jax.types import FinishReason, Outcome
from model.llama import Params
from model.sampling import SamplingParams

ResultT = TypeVar("ResultT")


@dataclasses.dataclass
class _Pending:
    """A continuation that the episode number `owner` waits for."""

    owner: int
    request: SampleRequest
    future: asyncio.Future[Sampled]


_Draw = Callable[[Sequence[_Pending]], Awaitable[None]]


class Engine:
    """Serves many episodes from one sampler. Weights and sampling settings are fixed for one `play` call.

    device: held while a program of the sampler runs. Whoever runs others on the same devices at the same time takes it
    too: programs that were started in another order on one device than on the next could wait for each other for ever.
    """

    def __init__(
        self,
        sampler: Sampler,
        chat_format: ChatFormat,
        decode: Callable[[Sequence[int]], str],
        max_completion_length: int,
        stop_strings: Sequence[str] = (),
        partners: Partners | None = None,
        grammars: Grammars | None = None,
    ):
        """grammars: for attempts that are constrained."""
        self.sampler = sampler
        self.chat_format = chat_format
        self.max_completion_length = max_completion_length
        self.partners = partners
        self.device = threading.Lock()
        self._grammars = grammars
        self._roles: dict[str, int] = {"policy": 0}
        self._decode = decode
        self._stop_strings = tuple(stop_strings)
        self._turn = asyncio.Lock()  # whose requests the sampler serves: those of one play, or questions of a judge
        self._weights: Params | None = None
        self.tokens_sampled = 0

    @property
    def context(self) -> int:
        """Positions of the model."""
        return self.sampler.config.max_position_embeddings

    @property
    def max_new_tokens(self) -> int:
        """Tokens of the longest single reply."""
        return self.sampler.shapes.max_new_tokens

    @property
    def grammars(self) -> Grammars:
        """What makes masks of forms. Raises ConfigError where the engine was made without."""
        if self._grammars is None:
            raise ConfigError("a constrained attempt, but an engine without grammars: give it those of its tokenizer")
        return self._grammars

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
        turn: contextlib.AbstractAsyncContextManager[None] | None = None,
    ) -> list[ResultT]:
        """Returns `judged(index, played)` for every attempt, in order; each starts as soon as its episode ends.

        turn: held while rollouts are sampled, for plays in an order of their own; by default they come as they are
        asked for. The first exception of an episode, of `judged` or of the sampler ends the play and is raised here.
        """
        many_turns = any(attempt.many_turns for attempt in attempts)
        self._weights = params

        async def draw(batch: Sequence[_Pending]) -> None:
            requests = [pending.request for pending in batch]
            chunks = self.sampler.generate(params, requests, sampling, self._stop_strings, many_turns)
            async for index, sampled in self._ended(chunks):
                self.hand_over(sampled, batch[index].future)

        return await _Play(self, draw, attempts, judged, turn or self._turn).run()

    def at_rest(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Waits until no play is sampled, and keeps others from beginning while the context is open."""
        return self._turn

    async def answer(self, questions: Sequence[Question], temperature: float) -> list[Answer]:
        """Returns what the policy says to chats that belong to no rollout, with the weights of the last play.

        Only `at_rest`. Questions about one prompt may share a prefix; those without room are not asked.
        """
        assert self._weights is not None
        prompts = {prompt: group for group, prompt in enumerate(dict.fromkeys(q.sample.prompt_id for q in questions))}
        requests: dict[int, SampleRequest] = {}
        answers: dict[int, Answer] = {}
        for index, question in enumerate(questions):
            ids = np.asarray(self.chat_format.open(question.chat), np.int32)
            if not self.has_room(len(ids)):
                lack = f"the question has {len(ids)} tokens, more than can be sampled after: raise sampler.prefix"
                answers[index] = Answer(lack=lack)
                continue
            limit = min(question.max_tokens, self.max_new_tokens, self.context - len(ids))
            group = self.group_of(prompts[question.sample.prompt_id], "judge")
            requests[index] = SampleRequest(ids, group, question.sample.key(f"judge {question.name}"), limit)
        asked = list(requests)
        chunks = self.sampler.generate(self._weights, list(requests.values()), SamplingParams(temperature=temperature))
        async for place, sampled in self._ended(chunks):
            is_cut_off = sampled.finish_reason is FinishReason.LENGTH
            tokens = len(requests[asked[place]].ids), len(sampled.ids)
            answers[asked[place]] = Answer(self.text_of(sampled), is_cut_off, *tokens)
        return [answers[index] for index in range(len(questions))]

    @contextlib.asynccontextmanager
    async def streaming(
        self,
        params: Params,
        sampling: SamplingParams,
        members: int,
        prompt: int,
        words: int,
        constrained: bool = False,
    ) -> AsyncIterator[Stream]:
        """Yields a player whose plays, any number at a time, share one call of the sampler, which ends with the block.

        members, prompt, words: as for `Sampler.open`. constrained: whether attempts may be. What a play yields does not
        depend on other plays or on time.
        """
        settings = members, prompt, words, self._stop_strings, constrained
        call = await self.on_device(self.sampler.open, params, sampling, *settings)
        stream = Stream(self, call)
        serving = asyncio.create_task(stream.serve())
        try:
            yield stream
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def on_device(self, work: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Returns what `work` does with the devices, in a thread, so that judges and partners are served meanwhile."""

        def alone() -> ResultT:
            with self.device:
                return work(*arguments)

        return await asyncio.to_thread(alone)

    def hand_over(self, sampled: Sampled, to: asyncio.Future[Sampled]) -> None:
        """Gives a reply to whoever waits for it, if anybody does still."""
        self.tokens_sampled += len(sampled.ids)
        if not to.done():
            to.set_result(sampled)

    async def _ended(self, chunks: Iterator[list[tuple[int, Sampled]]]) -> AsyncIterator[tuple[int, Sampled]]:
        """Requests as they end."""
        while (finished := await self.on_device(lambda: next(chunks, None))) is not None:
            for one in finished:
                yield one

    def text_of(self, sampled: Sampled) -> str:
        """Returns the reply's text, without its stop token and without a matched stop string."""
        ids = sampled.ids.tolist()
        if ids and ids[-1] in self.sampler.stop_ids:
            ids = ids[:-1]
        text = self._decode(ids)
        ends = [text.find(stop) for stop in self._stop_strings if stop in text]
        return (text[: min(ends)] if ends else text).strip()


class Stream:
    """A player whose plays share one call of the sampler. The attempts of one play must have one turn each.

    idle_s: seconds in which there was nothing to sample, for want of verdicts or words.
    """

    def __init__(self, engine: Engine, call: OpenCall):
        self.buckets = call.buckets
        self.idle_s = 0.0
        self._engine = engine
        self._call = call
        self._arrived: list[Sequence[_Pending]] = []
        self._waiting: dict[int, asyncio.Future[Sampled]] = {}
        self._changed = asyncio.Event()
        self._error: Exception | None = None

    @property
    def chat_format(self) -> ChatFormat:
        """How chats become tokens."""
        return self._engine.chat_format

    async def play(
        self,
        params: Params,
        sampling: SamplingParams,
        attempts: Sequence[Attempt],
        judged: Callable[[int, Played | Abandoned], Awaitable[ResultT]],
    ) -> list[ResultT]:
        """Returns what `Engine.play` would. params, sampling: those that the call was opened with."""
        return await _Play(self._engine, self._draw, attempts, judged, contextlib.nullcontext()).run()

    async def _draw(self, batch: Sequence[_Pending]) -> None:
        if self._error is not None:
            raise self._error
        self._arrived.append(batch)
        self._changed.set()
        await asyncio.gather(*(pending.future for pending in batch))

    async def serve(self) -> None:
        """Samples whatever arrives, until it is cancelled; what arrives during a chunk enters at its end.

        Every queue is bounded by the attempts of the plays: each has one request at most.
        """
        try:
            while True:
                self._admit_arrived()
                if self._call.is_done:
                    await self._arrival()
                    continue
                for number, sampled in await self._engine.on_device(self._call.advance):
                    self._engine.hand_over(sampled, self._waiting.pop(number))
        except Exception as error:
            self._error = error
            for future in (*self._waiting.values(), *(p.future for batch in self._arrived for p in batch)):
                if not future.done():
                    future.set_exception(error)

    def _admit_arrived(self) -> None:
        while self._arrived:
            batch = self._arrived[0]
            numbers = self._call.add([pending.request for pending in batch])
            self._waiting |= {number: pending.future for number, pending in zip(numbers, batch, strict=True)}
            del self._arrived[0]

    async def _arrival(self) -> None:
        began = time.monotonic()
        self._changed.clear()
        await self._changed.wait()
        self.idle_s += time.monotonic() - began


class _Play(Generic[ResultT]):
    """Attempts played in step. draw: sets the futures of a batch of requests, one for each live episode. turn: held
    while there are any.
    """

    def __init__(
        self,
        engine: Engine,
        draw: _Draw,
        attempts: Sequence[Attempt],
        judged: Callable[[int, Played | Abandoned], Awaitable[ResultT]],
        turn: contextlib.AbstractAsyncContextManager[Any],
    ):
        self._engine = engine
        self._draw = draw
        self._turn = turn
        self._attempts = attempts
        self._judged = judged
        self._pending: list[_Pending] = []
        self._live = len(attempts)
        self._changed = asyncio.Event()

    async def run(self) -> list[ResultT]:
        """Returns what `judged` says of every attempt, in order."""
        playing = [self._play(index, attempt) for index, attempt in enumerate(self._attempts)]
        *results, _ = await all_of([*playing, self._serve()])
        return results

    async def _play(self, index: int, attempt: Attempt) -> ResultT:
        async def sample(request: SampleRequest) -> Sampled:
            return await self._sample(index, request)

        ports = EpisodePorts(self._engine, sample, attempt)
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
            return await self._judged(index, Abandoned(reason, transcripts, outcome, ports.partners))
        return await self._judged(index, Played(conversation, transcripts, ports.partners))

    async def _sample(self, owner: int, request: SampleRequest) -> Sampled:
        """Queues one continuation for the episode number `owner` and waits for it."""
        future = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(owner, request, future))
        self._changed.set()
        return await future

    async def _serve(self) -> None:
        async with self._turn:
            await self._serve_all()

    async def _serve_all(self) -> None:
        while self._live:
            blocked = {pending.owner for pending in self._pending}
            if len(blocked) < self._live:
                self._changed.clear()
                await self._changed.wait()
                continue
            # In the order of the attempts and not of arrival, so that rows lie alike however fast partners answer.
            batch, self._pending = sorted(self._pending, key=lambda pending: pending.owner), []
            try:
                await self._draw(batch)
            except Exception as error:
                for pending in batch:
                    if not pending.future.done():
                        pending.future.set_exception(error)
                raise
