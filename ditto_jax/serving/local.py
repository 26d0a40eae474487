"""The policy on this machine as a backend: chats → ids → the slot engine → text, piece by piece.

In: asks. Out: pieces. Text is decoded from a reply's first token on, stop strings are found across the borders of
chunks, and a reply's random numbers derive from its request's seed, its number and the try, and from nothing else.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from ditto_jax.errors import DittoError
from ditto_jax.keys import derive
from ditto_jax.policy import Policy
from ditto_jax.reply_form import FormError
from ditto_jax.serving.ask import Ask, AskError, BackendError, Piece, TokenScore
from ditto_jax.serving.config import EngineConfig
from ditto_jax.serving.scoring import MOST, score
from ditto_jax.serving.simulator import PRESETS
from ditto_jax.serving.slot_engine import SlotEngine, Ticket
from ditto_jax.serving.stops import StopText
from ditto_jax.serving.tools import plain_messages
from ditto_jax.text.grammar import GrammarMask, Grammars
from ditto_jax.types import Message

_CONTEXT = 16  # prompt tokens decoded with a continuation, so that the space between the two is the tokenizer's


class LocalBackend:
    """Serves one policy. Raises ConfigError if it has fewer positions than `config.max_model_len`."""

    def __init__(self, policy: Policy, config: EngineConfig, identity: str, mesh: Mesh):
        limit = min(config.max_model_len, policy.config.max_position_embeddings)
        replies = min(config.max_completion_tokens, limit - 1)
        self._config = dataclasses.replace(config, max_model_len=limit, max_completion_tokens=replies)
        self._policy = policy
        self._identity = identity
        control = policy.tokenizer.control_id
        marks = {mark: control(mark) for preset in PRESETS.values() for mark in preset.end_marks}
        self._mark_of = {token: mark for mark, token in marks.items() if token is not None}
        stop_ids = (*policy.chat_format.stop_ids, *policy.config.eos_token_ids, *self._mark_of)
        self._stop_ids = frozenset(stop_ids)
        self._grammars = Grammars(policy.tokenizer, policy.config.vocab_size, list(dict.fromkeys(stop_ids)))
        self._engine = SlotEngine(policy, self._config, stop_ids, mesh)
        self._prompt_tokens = 0

    @property
    def identity(self) -> str:
        return self._identity

    async def start(self) -> None:
        """Returns once everything is compiled."""
        await asyncio.to_thread(self._engine.start)

    async def aclose(self) -> None:
        await asyncio.to_thread(self._engine.close)

    def counters(self) -> Mapping[str, float]:
        live, waiting = self._engine.busy
        return {
            "engine/live": live,
            "engine/waiting": waiting,
            "engine/prompt_tokens": self._prompt_tokens,
            "engine/completion_tokens": self._engine.drawn_tokens,
        }

    def check(self, ask: Ask) -> None:
        self._ids(ask)
        if ask.schema is not None:
            self._mask(ask.schema)

    async def reply(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        ids = self._ids(ask)
        self._prompt_tokens += len(ids)
        if ask.max_tokens == 0:
            yield await self._scored(ask, ids, [], Piece("", "length", prompt_tokens=len(ids)))
            return
        looks_back = bool(ask.top_logprobs) or ask.echo
        async for piece in self._drawn(ask, ids, held=looks_back):
            yield piece

    async def _drawn(self, ask: Ask, ids: list[int], held: bool) -> AsyncGenerator[Piece, None]:
        """Yields the reply as it grows; held: as one piece, with the scores that are looked up afterwards."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        def deliver(item: Piece | Exception) -> None:
            loop.call_soon_threadsafe(arrived.put_nowait, item)

        reader = _Reader(ask, ids, self._policy.tokenizer.decode, self._stop_ids, self._mark_of, deliver)
        ticket = self._ticket(ask, ids, reader, deliver)
        self._engine.submit(ticket)
        texts: list[str] = []
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, Exception):
                    raise BackendError(f"the engine gave this reply up: {item}") from item
                if not held:
                    yield item
                texts.append(item.text)
                if item.finish is not None:
                    break
            if held:
                whole = dataclasses.replace(item, text="".join(texts))
                yield await self._scored(ask, ids, reader.ids[: item.completion_tokens], whole)
        finally:
            ticket.cancelled = True

    def _ticket(self, ask: Ask, ids: list[int], reader: _Reader, deliver: Callable[[Exception], None]) -> Ticket:
        room = min(self._config.max_model_len - len(ids), self._config.max_completion_tokens)
        value = derive(ask.seed, "served", ask.number, ask.attempt)
        return Ticket(
            ids=np.asarray(ids, np.int32),
            key=np.array([value >> 32, value & 0xFFFFFFFF], np.uint32),
            limit=min(ask.max_tokens or room, room),
            receive=reader.receive,
            failed=deliver,
            temperature=ask.temperature,
            top_k=min(ask.top_k, self._policy.config.vocab_size),
            top_p=ask.top_p,
            min_p=ask.min_p,
            mask=None if ask.schema is None else self._mask(ask.schema),
        )

    def _mask(self, schema: Mapping[str, Any]) -> GrammarMask:
        """Returns the mask of a reply; raises AskError for a schema that cannot be enforced."""
        try:
            return self._grammars.json(schema)
        except FormError as error:
            raise AskError(f"response_format: {error}", "response_format") from None

    def _ids(self, ask: Ask) -> list[int]:
        """Returns the ids of the prompt; raises AskError if there are none, or too many."""
        try:
            ids = self._encoded(ask)
        except (DittoError, ValueError) as error:
            raise AskError(str(error), "messages" if ask.prompt is None else "prompt") from None
        if not ids:
            raise AskError("prompt='': this model has no token to begin with; give at least one word", "prompt")
        limit, vocabulary = self._config.max_model_len, self._policy.config.vocab_size
        if len(ids) >= limit:
            raise AskError(
                f"the prompt has {len(ids)} tokens; with at least one of the reply it must fit into {limit}",
                "messages" if ask.prompt is None else "prompt",
                "context_length_exceeded",
            )
        if not all(0 <= token < vocabulary for token in ids):
            raise AskError(f"prompt: ids must be from 0 to {vocabulary - 1}", "prompt")
        return ids

    def _encoded(self, ask: Ask) -> list[int]:
        if isinstance(ask.prompt, tuple):
            return list(ask.prompt)
        if isinstance(ask.prompt, str):
            bos = self._policy.tokenizer.bos_id
            return [*([] if bos is None else [bos]), *self._policy.tokenizer.encode(ask.prompt)]
        chat: list[Message] = plain_messages(ask.chat, ask.tools)
        return self._policy.chat_format.open(chat, ask.speaker)

    async def _scored(self, ask: Ask, prompt: Sequence[int], drawn: Sequence[int], whole: Piece) -> Piece:
        """Returns the piece with its tokens' scores, of the prompt too if it is to be repeated."""
        decode = self._policy.tokenizer.decode
        everything = [*prompt, *drawn]
        first = 0 if ask.echo else len(prompt)
        text = decode(prompt) + whole.text if ask.echo else whole.text
        if ask.top_logprobs is None:
            return dataclasses.replace(whole, text=text)
        params, config = self._policy.params, self._policy.config
        found = self._engine.aside(lambda: score(params, config, everything))
        chosen, top, top_logprobs = await asyncio.wrap_future(found)
        tokens = []
        for place in range(first, len(everything)):
            one = decode([everything[place]])
            if not place:
                tokens.append(TokenScore(one, None))
                continue
            count = min(ask.top_logprobs, MOST, top.shape[1])
            pairs = zip(top[place - 1, :count].tolist(), top_logprobs[place - 1, :count].tolist(), strict=True)
            best = tuple((decode([token]), logprob) for token, logprob in pairs)
            tokens.append(TokenScore(one, float(chosen[place - 1]), best))
        return dataclasses.replace(whole, text=text, tokens=tuple(tokens))


class _Reader:
    """Turns the new tokens of one reply into pieces, in the engine's thread."""

    def __init__(
        self,
        ask: Ask,
        prompt: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        stop_ids: frozenset[int],
        mark_of: Mapping[int, str],
        deliver: Callable[[Piece], None],
    ):
        self.ids: list[int] = []
        self._logprobs: list[float] = []
        self._wants_logprobs = ask.top_logprobs == 0
        # A continuation is decoded after the end of its prompt; a turn of a chat begins anew.
        self._before = [] if ask.prompt is None else list(prompt[-_CONTEXT:])
        self._skip = len(decode(self._before)) if self._before else 0
        self._decode = decode
        self._stop_ids = stop_ids
        self._mark_of = mark_of
        self._end_marks = ask.end_marks
        self._stops = StopText((*ask.stop, *ask.end_marks))
        self._deliver = deliver
        self._prompt_tokens = len(prompt)
        self._told = 0

    def receive(self, ids: np.ndarray, logprobs: np.ndarray, finish: str | None) -> bool:
        """Delivers what has become safe to show; returns whether more may come."""
        self.ids += ids.tolist()
        self._logprobs += logprobs.tolist()
        last = self.ids[-1] if self.ids else -1
        count = len(self.ids)
        spoken = self.ids[:-1] if finish == "stop" and last in self._stop_ids else self.ids
        text = self._stops.feed(self._text(spoken), final=finish is not None)
        end_mark = self._mark_of.get(last, "") if finish == "stop" else ""
        if self._stops.stopped:
            finish, count = "stop", self._count_at_stop()
            end_mark = self._stops.matched if self._stops.matched in self._end_marks else ""
        if text or finish is not None or self._wants_logprobs:
            tokens = self._scores(count) if self._wants_logprobs else ()
            piece = Piece(text, finish, tokens, end_mark, prompt_tokens=self._prompt_tokens, completion_tokens=count)
            try:
                self._deliver(piece)
            except RuntimeError:  # the event loop is closed: nobody listens any more
                return False
        return finish is None

    def _text(self, ids: Sequence[int]) -> str:
        return self._decode([*self._before, *ids])[self._skip :]

    def _count_at_stop(self) -> int:
        """The number of tokens up to and including the one that completes the stop string."""
        low, high = 1, len(self.ids)
        while low < high:
            middle = (low + high) // 2
            found = self._stops.find(self._text(self.ids[:middle]))
            low, high = (low, middle) if found is not None else (middle + 1, high)
        return low

    def _scores(self, count: int) -> tuple[TokenScore, ...]:
        new = range(self._told, count)
        self._told = count
        return tuple(TokenScore(self._decode([self.ids[i]]), self._logprobs[i]) for i in new)
