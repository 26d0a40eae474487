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
from ditto_jax.kept_keys import KeptGroup, kept_row
from ditto_jax.slots import SampleRequest, SamplerShapes, Slot, SlotPlan, apart_where_needed, plan_slots
from ditto_jax.types import FinishReason
from model.config import ModelConfig
from model.generate import (
    DecodeState,
    Drawn,
    Kept,
    PromptBatch,
    admit,
    carry_over,
    compact,
    decode_chunk,
    empty_state,
    widen,
)
from model.llama import Params, Prefix, unstack
from model.partition import ACTIVATION_RULES, decode_state_shardings
from model.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class Sampled:
    """ids int32[n] (a stop token is included), logprobs float32[n] of the sampling distribution, and why it ended."""

    ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class _Kept:
    """What the last call left, by group, and the weights that the keys belong to."""

    weights: list[jax.Array]
    keys: Kept
    groups: dict[int, KeptGroup]

    def of(self, params: Params) -> dict[int, KeptGroup]:
        leaves = jax.tree.leaves(params)
        same = len(leaves) == len(self.weights) and all(a is b for a, b in zip(leaves, self.weights, strict=True))
        return self.groups if same else {}


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
        self.prefix_tokens_reused = 0  # tokens not run again because a group shares them
        self.kept_tokens_reused = 0  # tokens not run again because the call before had run them
        self._kept: _Kept | None = None
        self.row_steps = 0  # decode steps times rows
        self.live_row_steps = 0  # of these, how many drew a token

    @property
    def unstacks_layers(self) -> bool:
        """Whether decoding uses a copy of the weights with every layer apart (`SamplerShapes.unstack_layers`)."""
        chosen = self.shapes.unstack_layers
        return jax.default_backend() == "cpu" if chosen is None else chosen

    def generate(
        self,
        params: Params,
        requests: Sequence[SampleRequest],
        sampling: SamplingParams,
        stop_strings: Sequence[str] = (),
        keep_rows: bool = False,
    ) -> Iterator[list[tuple[int, Sampled]]]:
        """Yields (request index, result) pairs as rows finish, at every chunk boundary; every request ends once.

        Keys that the call before has computed under the same weights are copied from it: those of a refined prompt's
        prefix from its draft's, and with `keep_rows` in that call those of an episode's earlier turns.
        Raises ConfigError if a prompt is longer than the largest bucket or than the model's context.
        """
        for request in requests:
            self._check(request)
        if requests:
            known = self._kept.of(params) if self._kept else {}
            try:
                plan = plan_slots(requests, self.shapes, _shards(self.mesh), known)
            except ConfigError:  # a tail is too long; rows that stand alone may use the prefix bucket too
                requests = apart_where_needed(requests, self.shapes)
                plan = plan_slots(requests, self.shapes, _shards(self.mesh), known)
            self.prefix_tokens_reused += plan.tokens_shared
            self.kept_tokens_reused += plan.tokens_kept
            call = _Call(
                self, plan, params, requests, sampling, stop_strings, keep_rows, self._kept and self._kept.keys
            )
            self._kept = None
            yield from call.run()
            self._kept = _Kept(jax.tree.leaves(params), *call.leaves_behind())

    def release(self) -> None:
        """Gives up the keys that were kept for the next call: before an update, which needs the memory and makes them
        stale, and where results must not depend on what was sampled before.
        """
        self._kept = None

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
    """A request that is being decoded, how many of its tokens lie in its slot's prefix, and what it has drawn."""

    request: int
    prefix_length: int
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    drawn: int = 0


class _Call:
    """One call of `generate`: the device state, who stands in which row, and who waits."""

    def __init__(
        self,
        sampler: Sampler,
        plan: SlotPlan,
        params: Params,
        requests: Sequence[SampleRequest],
        sampling: SamplingParams,
        stop_strings: Sequence[str],
        keep_rows: bool,
        kept: Kept | None,
    ):
        self._sampler = sampler
        self._shards = _shards(sampler.mesh)
        self._plan = plan
        self._params = params
        self._unstacked = sampler.unstacks_layers
        self._decode_params = unstack(params, sampler.config) if self._unstacked else params
        self._requests = requests
        self._stop_strings = stop_strings
        self._static = {"config": sampler.config, "sampling": sampling, "stop_ids": sampler.stop_ids}
        self._keep_rows = keep_rows
        self._kept = kept
        self._prefixes: dict[int, KeptGroup] = {}
        self._ran: dict[int, tuple[int, np.ndarray]] = {}  # by row: which request, and the tokens after the prefix
        self._waiting = deque(plan.waiting)
        self._rows: dict[int, _Row] = {}
        self._slots = plan.slots
        self._ring = plan.ring[0]
        self._cancelled = np.zeros(plan.slots * plan.rows_per_slot, bool)
        self._state = self._empty()
        self._whole_prefix: Prefix | None = None  # of all slots, once the call has left some behind

    def leaves_behind(self) -> tuple[Kept, dict[int, KeptGroup]]:
        """Returns the keys of the slots' last contents, and which group's they are."""
        prefix = self._whole_prefix or self._state.prefix
        if not self._keep_rows:
            return Kept(prefix, None), self._prefixes
        positions = jax.device_get(self._state.cache.positions)
        groups = dict(self._prefixes)
        for row, (request, ids) in self._ran.items():
            group = self._requests[request].group
            if group in groups:
                slot, start = row // self._plan.rows_per_slot, len(groups[group].ids)
                there = kept_row(slot, row, ids, start, positions[row])
                groups[group] = dataclasses.replace(groups[group], rows=(*groups[group].rows, there))
        return Kept(prefix, self._state.cache), groups

    def run(self) -> Iterator[list[tuple[int, Sampled]]]:
        while self._waiting or self._rows:
            free = self._free_slots()
            enough = min(len(free), len(self._waiting)) >= self._plan.admissions[1]
            admits = self._waiting and (enough or not self._rows)
            finished = self._collect(self._admit(free)) if admits else self._collect(self._decode(), decoded=True)
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
                config=self._sampler.config,
                slots=plan.slots,
                rows=rows,
                prefix_width=plan.prefix,
                width=self._ring,
                unstacked=self._unstacked,
                kv_dtype=self._sampler.shapes.kv_dtype,
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
        plan, shards = self._plan, self._shards
        copies = self._waiting[0].kept is not None
        wanted = min(len(free), sum((slot.kept is not None) == copies for slot in self._waiting))
        size = next((n for n in reversed(plan.admissions) if n >= wanted), plan.admissions[0])
        chosen = []
        for shard in range(shards):
            own = [slot for slot in free if slot * shards // plan.slots == shard]
            for i, slot in enumerate(own[: size // shards]):
                content = next((one for one in self._waiting if self._may_enter(one, copies, shard)), None)
                if content is not None:
                    self._waiting.remove(content)
                    chosen.append((shard * (size // shards) + i, slot, content))
        batch = self._prompts(size, chosen)
        with self._on_mesh():
            kept = self._carried_over(batch) if copies else None
            self._state, drawn = admit(self._params, self._state, batch, kept, **self._static, shards=shards)
        return drawn

    def _carried_over(self, batch: PromptBatch) -> Kept:
        assert self._kept is not None
        kept = self._kept if self._plan.history else self._kept._replace(cache=None)
        return carry_over(kept, batch, prefix_width=self._plan.prefix, shards=self._shards)

    def _may_enter(self, content: Slot, copies: bool, shard: int) -> bool:
        """Whether a waiting slot belongs to this admission; keys are copied within their shard only."""
        if (content.kept is not None) != copies:
            return False
        return content.kept is None or self._kept_shard(content.kept)[0] == shard

    def _kept_shard(self, slot: int) -> tuple[int, int]:
        """(shard, slot within it) of a slot of the call before."""
        assert self._kept is not None
        return divmod(slot, self._kept.prefix.valid.shape[0] // self._shards)

    def _kept_row(self, row: int) -> int:
        """A row of the call before, counted within its shard."""
        assert self._kept is not None and self._kept.cache is not None
        return row % (self._kept.cache.positions.shape[0] // self._shards)

    def _prompts(self, size: int, chosen: Sequence[tuple[int, int, Slot]]) -> PromptBatch:
        plan, shards = self._plan, self._shards
        rows = size * plan.rows_per_slot
        prefix_ids = np.zeros((size, plan.prefix), np.int32)
        prefix_length = np.zeros(size, np.int32)
        tail_ids = np.zeros((rows, plan.tail), np.int32)
        tail_length = np.ones(rows, np.int32)
        keys = np.zeros((rows, 2), np.uint32)
        limits = np.zeros(rows, np.int32)
        source = np.full(plan.slots, -1, np.int32)
        kept = np.zeros(size, np.int32)
        kept_rows = np.zeros(rows, np.int32)
        kept_columns = np.full((rows, plan.history), -1, np.int32)
        self._forget({slot for _, slot, _ in chosen})
        for index, slot, content in chosen:
            shared = content.prefix_length
            first = self._requests[content.members[0]]
            self._prefixes[first.group] = KeptGroup(slot, first.ids[:shared])
            if content.kept is not None:
                kept[index] = self._kept_shard(content.kept)[1]
            source[slot] = index % (size // shards)
            prefix_length[index] = shared
            prefix_ids[index, :shared] = first.ids[:shared]
            for number, member in enumerate(content.members):
                request = self._requests[member]
                row, place = index * plan.rows_per_slot + number, slot * plan.rows_per_slot + number
                tail = request.ids[content.known(number) :]
                tail_length[row] = len(tail)
                tail_ids[row, plan.tail - len(tail) :] = tail
                keys[row], limits[row] = request.key, request.max_new_tokens
                self._rows[place] = _Row(member, shared)
                if content.histories and content.histories[number][1]:
                    there, length = content.histories[number]
                    kept_rows[row] = self._kept_row(there.row)
                    kept_columns[row, plan.history - length :] = there.columns[:length]
            start = slot * plan.rows_per_slot
            self._cancelled[start : start + plan.rows_per_slot] = False
        return PromptBatch(
            prefix_ids, prefix_length, tail_ids, tail_length, keys, limits, source, kept, kept_rows, kept_columns
        )

    def _forget(self, slots: set[int]) -> None:
        """What these slots held is written over."""
        self._prefixes = {group: at for group, at in self._prefixes.items() if at.slot not in slots}
        self._ran = {row: ran for row, ran in self._ran.items() if row // self._plan.rows_per_slot not in slots}

    def _shrink(self) -> None:
        """Leaves empty slots behind once nothing waits for them."""
        shards, per_slot = self._shards, self._plan.rows_per_slot
        taken = sorted({row // per_slot for row in self._rows})
        own = [[slot for slot in taken if slot * shards // self._slots == shard] for shard in range(shards)]
        fits = [n for n in self._plan.fewer_slots if n < self._slots and max(map(len, own)) <= n // shards]
        if not fits:
            return
        width, before = fits[-1] // shards, self._slots // shards
        kept = [
            slots + [slots[0] if slots else shard * before] * (width - len(slots)) for shard, slots in enumerate(own)
        ]
        index = np.array([slot % before for slots in kept for slot in slots], np.int32)
        self._whole_prefix = self._whole_prefix or self._state.prefix
        with self._on_mesh():
            self._state = compact(self._state, index, shards=shards)
        self._slots = fits[-1]
        self._cancelled = np.ones(self._slots * per_slot, bool)  # copies that fill up the shard draw nothing
        moved = {slot: shard * width + i for shard, slots in enumerate(own) for i, slot in enumerate(slots)}
        self._rows = {moved[row // per_slot] * per_slot + row % per_slot: kept for row, kept in self._rows.items()}
        self._cancelled[list(self._rows)] = False

    def _decode(self) -> Drawn:
        if not self._waiting and not self._keep_rows:
            self._shrink()
        chunk = self._sampler.shapes.chunk
        oldest = max(min(row.drawn + chunk, self._requests[row.request].max_new_tokens) for row in self._rows.values())
        needed = self._plan.history + self._plan.tail + oldest
        rows = len(self._cancelled)
        enough = rows
        if self._waiting:  # as many finished rows as make room for the next admission
            enough = max(rows - len(self._rows) + 1, self._plan.admissions[1] * self._plan.rows_per_slot)
        with self._on_mesh():
            if needed > self._ring:
                self._ring = next(width for width in self._plan.ring if width >= needed)
                self._state = self._state._replace(cache=widen(self._state.cache, width=self._ring))
            self._state, drawn = decode_chunk(
                self._decode_params, self._state, self._cancelled, np.int32(enough), **self._static, steps=chunk
            )
        return drawn

    def _collect(self, drawn: Drawn, decoded: bool = False) -> list[tuple[int, Sampled]]:
        """Hands new tokens to their rows; returns the requests that ended with them."""
        tokens, logprobs, count, done = jax.device_get(drawn)
        if decoded:
            self._sampler.row_steps += int(count.max(initial=0)) * len(count)
            self._sampler.live_row_steps += int(count.sum())
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
            if self._keep_rows:  # the token drawn last was never run
                ran = np.concatenate([self._requests[row.request].ids[row.prefix_length :], *row.tokens])[:-1]
                self._ran[place] = row.request, ran
            finished.append((row.request, self._result(row, cut)))
        return finished

    def _result(self, row: _Row, cut: int | None) -> Sampled:
        ids, logprobs = np.concatenate(row.tokens), np.concatenate(row.logprobs)
        length = len(ids) if cut is None else cut
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
