"""Host side of sampling: requests in, finished token sequences out, a chunk at a time.

Waiting requests take the slots of finished ones at chunk boundaries, so that a long reply does not hold up the rest.
Which request stands where is a function of the requests and of what was drawn, never of time. Knows token ids and stop
rules; knows nothing of tasks, rewards or judges. Layout is decided in `slots.py`, device work in `slot_state.py`.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from ditto_jax.errors import ConfigError
from ditto_jax.sampling.kept_keys import KeptGroup, kept_row
from ditto_jax.sampling.slot_shapes import SamplerShapes, reachable
from ditto_jax.sampling.slot_state import Decoding, SlotState, no_prompts, row_shards
from ditto_jax.sampling.slots import SampleRequest, Slot, SlotPlan, plan_slots
from ditto_jax.sampling.warm_up import MakeSlots, visit
from ditto_jax.types import FinishReason
from model.config import ModelConfig
from model.generate import Drawn, Kept, PromptBatch
from model.llama import Params, unstack
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
            plan = plan_slots(requests, self.shapes, row_shards(self.mesh), known)
            self.prefix_tokens_reused += plan.tokens_shared
            self.kept_tokens_reused += plan.tokens_kept
            state = self._slots(sampling, params)(plan.shapes, self._kept and self._kept.keys)
            self._kept = None
            call = _Call(self, plan, state, requests, stop_strings, keep_rows)
            yield from call.run()
            self._kept = _Kept(jax.tree.leaves(params), *call.leaves_behind())

    def warm_up(
        self,
        params: Params,
        sampling: SamplingParams,
        members: int,
        longest: int | None = None,
        many_turns: bool = False,
    ) -> int:
        """Compiles what `generate` may run for groups of up to `members` prompts of up to `longest` tokens (default:
        the model's context), by running it on empty slots; returns how many shapes of calls there are.

        many_turns: whether rows may continue those of an earlier call. Their number is the product of the buckets of
        `SamplerShapes`: few of them make this quick.
        """
        context = self.config.max_position_embeddings
        classes = reachable(self.shapes, members, min(longest or context, context), many_turns, row_shards(self.mesh))
        visit(classes, self._slots(sampling, params), many_turns)
        return len(classes)

    def _slots(self, sampling: SamplingParams, params: Params) -> MakeSlots:
        """Returns what makes the slots of calls; all share one copy of the weights where decoding needs one."""
        decoding = Decoding(
            config=self.config,
            sampling=sampling,
            stop_ids=self.stop_ids,
            mesh=self.mesh,
            steps=self.shapes.chunk,
            kv_dtype=self.shapes.kv_dtype,
            unstacked=self.unstacks_layers,
        )
        decode_params = unstack(params, self.config) if decoding.unstacked else params
        return lambda shapes, kept: SlotState(decoding, shapes, params, decode_params, kept)

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


@dataclasses.dataclass
class _Row:
    """A request that is being decoded, its group, how many of its tokens lie in its slot's prefix, and what it has
    drawn.
    """

    request: int
    group: int
    prefix_length: int
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    drawn: int = 0


class _Call:
    """One call of `generate`: the slots on the device, who stands in which row, and who waits."""

    def __init__(
        self,
        sampler: Sampler,
        plan: SlotPlan,
        state: SlotState,
        requests: Sequence[SampleRequest],
        stop_strings: Sequence[str],
        keep_rows: bool,
    ):
        self._sampler = sampler
        self._shapes = plan.shapes
        self._state = state
        self._requests = requests
        self._stop_strings = stop_strings
        self._keep_rows = keep_rows
        self._prefixes: dict[int, KeptGroup] = {}
        self._ran: dict[int, tuple[int, np.ndarray]] = {}  # by row: of which group, and the tokens after the prefix
        self._waiting = deque(plan.waiting)
        self._rows: dict[int, _Row] = {}
        self._cancelled = np.zeros(state.rows, bool)

    def leaves_behind(self) -> tuple[Kept, dict[int, KeptGroup]]:
        """Returns the keys of the slots' last contents, and which group's they are."""
        kept, groups = self._state.leaves_behind(self._keep_rows), dict(self._prefixes)
        if kept.cache is None:
            return kept, groups
        positions = jax.device_get(kept.cache.positions)
        for row, (group, ids) in self._ran.items():
            if group in groups:
                slot, start = row // self._shapes.rows_per_slot, len(groups[group].ids)
                there = kept_row(slot, row, ids, start, positions[row])
                groups[group] = dataclasses.replace(groups[group], rows=(*groups[group].rows, there))
        return kept, groups

    def run(self) -> Iterator[list[tuple[int, Sampled]]]:
        while self._waiting or self._rows:
            free = self._free_slots()
            enough = min(len(free), len(self._waiting)) >= self._shapes.admissions[1]
            admits = self._waiting and (enough or not self._rows)
            finished = self._collect(self._admit(free)) if admits else self._collect(self._decode(), decoded=True)
            if finished:
                yield finished

    def _free_slots(self) -> list[int]:
        per_slot = self._shapes.rows_per_slot
        taken = {row // per_slot for row in self._rows}
        return [slot for slot in range(self._shapes.slots) if slot not in taken]

    def _admit(self, free: Sequence[int]) -> Drawn:
        """Fills free slots from those that wait, each from its own shard's part of the batch."""
        shapes, shards = self._shapes, self._state.shards
        copies = self._waiting[0].kept is not None
        wanted = min(len(free), sum((slot.kept is not None) == copies for slot in self._waiting))
        size = next((n for n in reversed(shapes.admissions) if n >= wanted), shapes.admissions[0])
        chosen = []
        for shard in range(shards):
            own = [slot for slot in free if slot * shards // shapes.slots == shard]
            for i, slot in enumerate(own[: size // shards]):
                content = next((one for one in self._waiting if self._may_enter(one, copies, shard)), None)
                if content is not None:
                    self._waiting.remove(content)
                    chosen.append((shard * (size // shards) + i, slot, content))
        return self._state.admit(self._prompts(size, chosen), copies)

    def _may_enter(self, content: Slot, copies: bool, shard: int) -> bool:
        """Whether a waiting slot belongs to this admission; keys are copied within their shard only."""
        if (content.kept is not None) != copies:
            return False
        return content.kept is None or self._kept_shard(content.kept)[0] == shard

    def _kept_shard(self, slot: int) -> tuple[int, int]:
        """(shard, slot within it) of a slot of the call before."""
        assert self._state.kept is not None
        return divmod(slot, self._state.kept.prefix.valid.shape[0] // self._state.shards)

    def _kept_row(self, row: int) -> int:
        """A row of the call before, counted within its shard."""
        assert self._state.kept is not None and self._state.kept.cache is not None
        return row % (self._state.kept.cache.positions.shape[0] // self._state.shards)

    def _prompts(self, size: int, chosen: Sequence[tuple[int, int, Slot]]) -> PromptBatch:
        """Returns the admission of (place in it, slot, content), which stand in their slots from now on."""
        per_slot, tail, history = self._shapes.rows_per_slot, self._shapes.tail, self._shapes.history
        prompts = no_prompts(self._shapes, size)
        self._forget({slot for _, slot, _ in chosen})
        for index, slot, content in chosen:
            shared = content.prefix_length
            opening = self._requests[content.members[0]].ids[:shared]
            self._prefixes[content.group] = KeptGroup(slot, opening)
            if content.kept is not None:
                prompts.kept[index] = self._kept_shard(content.kept)[1]
            prompts.source[slot] = index % (size // self._state.shards)
            prompts.prefix_length[index] = shared
            prompts.prefix_ids[index, :shared] = opening
            for number, member in enumerate(content.members):
                request = self._requests[member]
                row, place = index * per_slot + number, slot * per_slot + number
                ids = request.ids[content.known(number) :]
                prompts.tail_length[row] = len(ids)
                prompts.tail_ids[row, tail - len(ids) :] = ids
                prompts.row_keys[row], prompts.limits[row] = request.key, request.max_new_tokens
                self._rows[place] = _Row(member, content.group, shared)
                if content.histories and content.histories[number][1]:
                    there, length = content.histories[number]
                    prompts.kept_rows[row] = self._kept_row(there.row)
                    prompts.kept_columns[row, history - length :] = there.columns[:length]
            self._cancelled[slot * per_slot : (slot + 1) * per_slot] = False
        return prompts

    def _forget(self, slots: set[int]) -> None:
        """What these slots held is written over."""
        self._prefixes = {group: at for group, at in self._prefixes.items() if at.slot not in slots}
        self._ran = {row: ran for row, ran in self._ran.items() if row // self._shapes.rows_per_slot not in slots}

    def _shrink(self) -> bool:
        """Leaves empty slots behind if all rows that are left fit the next smaller size; returns whether they did."""
        shards, per_slot, slots = self._state.shards, self._shapes.rows_per_slot, self._state.slots
        taken = sorted({row // per_slot for row in self._rows})
        own = [[slot for slot in taken if slot * shards // slots == shard] for shard in range(shards)]
        fewer = self._state.fewer_slots
        if fewer is None or max(map(len, own)) > fewer // shards:
            return False
        width, before = fewer // shards, slots // shards
        remaining = [
            slots + [slots[0] if slots else shard * before] * (width - len(slots)) for shard, slots in enumerate(own)
        ]
        self._state.shrink([slot % before for slots in remaining for slot in slots])
        self._cancelled = np.ones(self._state.rows, bool)  # copies that fill up the shard draw nothing
        moved = {slot: shard * width + i for shard, slots in enumerate(own) for i, slot in enumerate(slots)}
        self._rows = {moved[row // per_slot] * per_slot + row % per_slot: kept for row, kept in self._rows.items()}
        self._cancelled[list(self._rows)] = False
        return True

    def _decode(self) -> Drawn:
        while not self._waiting and not self._keep_rows and self._shrink():
            pass
        chunk, shapes = self._sampler.shapes.chunk, self._shapes
        oldest = max(min(row.drawn + chunk, self._requests[row.request].max_new_tokens) for row in self._rows.values())
        while shapes.history + shapes.tail + oldest > self._state.ring:
            self._state.widen()
        enough = rows = self._state.rows
        if self._waiting:  # as many finished rows as make room for the next admission
            enough = max(rows - len(self._rows) + 1, shapes.admissions[1] * shapes.rows_per_slot)
        return self._state.decode(self._cancelled, enough)

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
                self._ran[place] = row.group, ran
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
