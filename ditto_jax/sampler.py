"""Host side of sampling: requests in, finished token sequences out, a chunk at a time.

Waiting requests take the slots of finished ones at chunk boundaries, so that a long reply does not hold up the rest.
Which request stands where is a function of the requests and of what was drawn, never of time. Knows token ids and stop
rules; knows nothing of tasks, rewards or judges. Layout is decided in `slots.py`, device work in `model/generate.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from flax.linen import logical_axis_rules
from jax.sharding import Mesh

from ditto_jax.errors import ConfigError
from ditto_jax.slots import SampleRequest, SamplerShapes, Slot, SlotPlan, plan_slots
from ditto_jax.types import FinishReason
from model.config import ModelConfig
from model.generate import DecodeState, Drawn, PromptBatch, admit, decode_chunk, empty_state, widen
from model.llama import Params
from model.partition import ACTIVATION_RULES, decode_state_shardings
from model.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class Sampled:
    """ids int32[n] (a stop token is included), logprobs float32[n] of the sampling distribution, and why it ended."""

    ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: FinishReason


class Sampler:
    """Draws sequences from the policy. One instance serves many calls; weights are passed to each call."""

    def __init__(
        self,
        config: ModelConfig,
        shapes: SamplerShapes,
        stop_ids: Sequence[int],
        decode: Callable[[list[int]], str],
        mesh: Mesh | None = None,
    ):
        self.config = config
        self.shapes = shapes
        self.stop_ids = tuple(sorted({int(i) for i in stop_ids}))
        self.decode = decode
        self.mesh = mesh
        self.prefix_tokens_reused = 0  # tokens not prefilled again because a group shares them
        self.row_steps = 0  # decode steps times rows
        self.live_row_steps = 0  # of these, how many drew a token that was kept

    def generate(
        self,
        params: Params,
        requests: Sequence[SampleRequest],
        sampling: SamplingParams,
        stop_strings: Sequence[str] = (),
    ) -> Iterator[list[tuple[int, Sampled]]]:
        """Yields (request index, result) pairs as rows finish, at every chunk boundary; every request ends once.

        Raises ConfigError if a prompt is longer than the largest bucket or than the model's context.
        """
        for request in requests:
            self._check(request)
        if requests:
            plan = plan_slots(requests, self.shapes, _shards(self.mesh))
            self.prefix_tokens_reused += plan.prefix_tokens_shared
            yield from _Call(self, plan, params, requests, sampling, stop_strings).run()

    def _check(self, request: SampleRequest) -> None:
        if len(request.ids) == 0:
            raise ConfigError("prompt: it has no tokens; give text, or a tokenizer with a BOS token")
        total = len(request.ids) + request.max_new_tokens
        if total > self.config.max_position_embeddings:
            raise ConfigError(
                f"prompt of {len(request.ids)} tokens + max_new_tokens={request.max_new_tokens} = {total} exceeds the "
                f"model's context of {self.config.max_position_embeddings}; shorten the prompt or lower max_new_tokens"
            )
        if request.max_new_tokens > self.shapes.max_new_tokens:
            raise ConfigError(
                f"max_new_tokens={request.max_new_tokens} exceeds the sampler's {self.shapes.max_new_tokens}"
            )


def _shards(mesh: Mesh | None) -> int:
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


@dataclasses.dataclass
class _Row:
    """A request that is being decoded: what it has drawn, and the ring columns that its prompt took."""

    request: int
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    drawn: int = 0


class _Call:
    """One call of `generate`: the device state, who stands in which row, and who waits."""

    def __init__(self, sampler: Sampler, plan: SlotPlan, params, requests, sampling, stop_strings):
        self._sampler = sampler
        self._plan = plan
        self._params = params
        self._requests = requests
        self._stop_strings = stop_strings
        self._static = {"config": sampler.config, "sampling": sampling, "stop_ids": sampler.stop_ids}
        self._waiting = deque(plan.waiting)
        self._rows: dict[int, _Row] = {}
        self._ring = plan.ring[0]
        self._cancelled = np.zeros(plan.slots * plan.rows_per_slot, bool)
        self._state = self._empty()

    def run(self) -> Iterator[list[tuple[int, Sampled]]]:
        while self._waiting or self._rows:
            free = self._free_slots()
            enough = min(len(free), len(self._waiting)) >= self._plan.admissions[1]
            admits = self._waiting and (enough or not self._rows)
            finished = self._collect(self._admit(free) if admits else self._decode())
            if finished:
                yield finished

    @contextlib.contextmanager
    def _on_mesh(self):
        """Around each device call and never across a yield: the mesh context belongs to the thread."""
        if self._sampler.mesh is None:
            yield
        else:
            with jax.set_mesh(self._sampler.mesh), logical_axis_rules(ACTIVATION_RULES):
                yield

    def _empty(self) -> DecodeState:
        plan, rows = self._plan, self._plan.slots * self._plan.rows_per_slot
        with self._on_mesh():
            state = empty_state(
                config=self._sampler.config, slots=plan.slots, rows=rows, prefix_width=plan.prefix, width=self._ring
            )
            if self._sampler.mesh is None:
                return state
            return jax.device_put(state, decode_state_shardings(state, self._sampler.mesh))

    def _free_slots(self) -> list[int]:
        per_slot = self._plan.rows_per_slot
        taken = {row // per_slot for row in self._rows}
        return [slot for slot in range(self._plan.slots) if slot not in taken]

    def _admit(self, free: Sequence[int]) -> Drawn:
        """Fills free slots from those that wait, each from its own shard's part of the batch."""
        plan, shards = self._plan, _shards(self._sampler.mesh)
        wanted = min(len(free), len(self._waiting))
        size = next((n for n in reversed(plan.admissions) if n >= wanted), plan.admissions[0])
        places: list[tuple[int, int]] = []  # (index in the batch, slot)
        for shard in range(shards):
            own = [slot for slot in free if slot * shards // plan.slots == shard]
            first = shard * (size // shards)
            places += [(first + i, slot) for i, slot in enumerate(own[: size // shards])]
        chosen = [(index, slot, self._waiting.popleft()) for index, slot in places[: len(self._waiting)]]
        batch = self._prompts(size, chosen)
        with self._on_mesh():
            self._state, drawn = admit(self._params, self._state, batch, **self._static, shards=shards)
        return drawn

    def _prompts(self, size: int, chosen: Sequence[tuple[int, int, Slot]]) -> PromptBatch:
        plan, shards = self._plan, _shards(self._sampler.mesh)
        rows = size * plan.rows_per_slot
        prefix_ids = np.zeros((size, plan.prefix), np.int32)
        prefix_length = np.zeros(size, np.int32)
        tail_ids = np.zeros((rows, plan.tail), np.int32)
        tail_length = np.ones(rows, np.int32)
        keys = np.zeros((rows, 2), np.uint32)
        limits = np.zeros(rows, np.int32)
        source = np.full(plan.slots, -1, np.int32)
        for index, slot, content in chosen:
            shared = content.prefix_length
            source[slot] = index % (size // shards)
            prefix_length[index] = shared
            prefix_ids[index, :shared] = self._requests[content.members[0]].ids[:shared]
            for number, member in enumerate(content.members):
                request = self._requests[member]
                row, place = index * plan.rows_per_slot + number, slot * plan.rows_per_slot + number
                tail = request.ids[shared:]
                tail_length[row] = len(tail)
                tail_ids[row, plan.tail - len(tail) :] = tail
                keys[row], limits[row] = request.key, request.max_new_tokens
                self._rows[place] = _Row(member)
            start = slot * plan.rows_per_slot
            self._cancelled[start : start + plan.rows_per_slot] = False
        return PromptBatch(prefix_ids, prefix_length, tail_ids, tail_length, keys, limits, source)

    def _decode(self) -> Drawn:
        chunk = self._sampler.shapes.chunk
        oldest = max(min(row.drawn + chunk, self._requests[row.request].max_new_tokens) for row in self._rows.values())
        needed = self._plan.tail + oldest
        with self._on_mesh():
            if needed > self._ring:
                self._ring = next(width for width in self._plan.ring if width >= needed)
                self._state = self._state._replace(cache=widen(self._state.cache, width=self._ring))
            self._state, drawn = decode_chunk(self._params, self._state, self._cancelled, **self._static, steps=chunk)
        return drawn

    def _collect(self, drawn: Drawn) -> list[tuple[int, Sampled]]:
        """Hands new tokens to their rows; returns the requests that ended with them."""
        tokens, logprobs, count, done = jax.device_get(drawn)
        self._sampler.row_steps += int(count.max(initial=0)) * len(count)
        finished = []
        for place, row in list(self._rows.items()):
            new = int(count[place])
            row.tokens.append(tokens[place, :new])
            row.logprobs.append(logprobs[place, :new])
            row.drawn += new
            cut = self._cut_at_stop_string(row)
            if cut is None and not done[place]:
                continue
            del self._rows[place]
            self._cancelled[place] = True
            finished.append((row.request, self._result(row, cut)))
        return finished

    def _result(self, row: _Row, cut: int | None) -> Sampled:
        ids, logprobs = np.concatenate(row.tokens), np.concatenate(row.logprobs)
        length = len(ids) if cut is None else cut
        self._sampler.live_row_steps += length
        stopped = cut is not None or (length > 0 and int(ids[-1]) in self._sampler.stop_ids)
        reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        return Sampled(ids[:length].copy(), logprobs[:length].copy(), reason)

    def _cut_at_stop_string(self, row: _Row) -> int | None:
        """Returns the number of tokens up to and including the one that completes the earliest stop string."""
        if not self._stop_strings or not row.drawn:
            return None
        ids = np.concatenate(row.tokens).tolist()
        if not self._has_stop_string(ids):
            return None
        low, high = 1, len(ids)
        while low < high:  # the shortest prefix that holds a stop string; text only grows with tokens
            middle = (low + high) // 2
            low, high = (low, middle) if self._has_stop_string(ids[:middle]) else (middle + 1, high)
        return low

    def _has_stop_string(self, ids: list[int]) -> bool:
        text = self._sampler.decode(ids)
        return any(stop in text for stop in self._stop_strings)
