"""One call of the sampler: requests stand in rows, finished ones leave at chunk boundaries, waiting ones take over.

In: planned requests (`slots.py`), and the slots on the device (`slot_state.py`). Out: finished token sequences, a chunk
at a time. Which request stands where is a function of the requests and of what was drawn, never of time; a call that
takes requests while it runs has shapes in which that changes nothing. A call with masks looks after every token. Knows
no weights, and no text but for stop strings.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ditto_jax.sampling.kept_keys import KeptGroup, kept_row
from ditto_jax.sampling.slot_state import SlotState, no_prompts
from ditto_jax.sampling.slots import Mask, Sampled, SampleRequest, Slot, SlotPlan
from ditto_jax.types import FinishReason
from model.generate import Drawn, Kept, PromptBatch
from model.placement import to_host


@dataclasses.dataclass(frozen=True)
class Rules:
    """When replies end, and how many tokens a chunk has. decode: ids to the text in which stop strings are found."""

    chunk: int
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    decode: Callable[[list[int]], str]


@dataclasses.dataclass
class Work:
    """What calls have cost and saved so far.

    prefix_tokens_reused: tokens not run again because a group shares them; kept_tokens_reused: because the call before
    had run them. row_steps: decode steps times rows, of which live_row_steps drew a token.
    """

    prefix_tokens_reused: int = 0
    kept_tokens_reused: int = 0
    row_steps: int = 0
    live_row_steps: int = 0


@dataclasses.dataclass
class _Row:
    """A request that is being decoded, its group, how many of its tokens lie in its slot's prefix, what it may draw,
    and what it has drawn.
    """

    request: int
    group: int
    prefix_length: int
    mask: Mask | None = None
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    drawn: int = 0


class SlotCall:
    """One call of the sampler: the slots on the device, who stands in which row, and who waits.

    is_open: whether more may come; every slot that is free is then filled at once.
    """

    def __init__(
        self,
        rules: Rules,
        work: Work,
        state: SlotState,
        keep_rows: bool = False,
        is_open: bool = False,
    ):
        self._rules = rules
        self._work = work
        self._shapes = state.shapes
        self._state = state
        self._keep_rows = keep_rows
        self._is_open = is_open
        self._requests: list[SampleRequest] = []
        self._prefixes: dict[int, KeptGroup] = {}
        self._ran: dict[int, tuple[int, np.ndarray]] = {}  # by row: of which group, and the tokens after the prefix
        self._waiting: deque[Slot] = deque()
        self._rows: dict[int, _Row] = {}
        self._cancelled = np.zeros(state.rows, bool)

    @property
    def is_done(self) -> bool:
        """Whether nothing waits and nothing is decoded."""
        return not self._waiting and not self._rows

    def add(self, requests: Sequence[SampleRequest], plan: SlotPlan) -> range:
        """Queues requests as planned, behind those that wait; returns their numbers in this call."""
        first = len(self._requests)
        self._requests.extend(requests)
        for slot in plan.waiting:
            self._waiting.append(dataclasses.replace(slot, members=tuple(first + member for member in slot.members)))
        self._work.prefix_tokens_reused += plan.tokens_shared
        self._work.kept_tokens_reused += plan.tokens_kept
        return range(first, len(self._requests))

    def advance(self) -> list[tuple[int, Sampled]]:
        """Fills free slots or decodes a chunk; returns the requests, by their numbers, that ended with it."""
        free = self._free_slots()
        least = 1 if self._is_open else self._shapes.admissions[1]
        enough = min(len(free), len(self._waiting)) >= least
        admits = self._waiting and (enough or not self._rows)
        return self._collect(self._admit(free)) if admits else self._collect(self._decode(), decoded=True)

    def leaves_behind(self) -> tuple[Kept, dict[int, KeptGroup]]:
        """Returns the keys of the slots' last contents, and which group's they are."""
        kept, groups = self._state.leaves_behind(self._keep_rows), dict(self._prefixes)
        if kept.cache is None:
            return kept, groups
        positions = to_host(kept.cache.positions)
        for row, (group, ids) in self._ran.items():
            if group in groups:
                slot, start = row // self._shapes.rows_per_slot, len(groups[group].ids)
                there = kept_row(slot, row, ids, start, positions[row])
                groups[group] = dataclasses.replace(groups[group], rows=(*groups[group].rows, there))
        return kept, groups

    def _free_slots(self) -> list[int]:
        per_slot = self._shapes.rows_per_slot
        taken = {row // per_slot for row in self._rows}
        return [slot for slot in range(self._shapes.slots) if slot not in taken]

    def _admit(self, free: Sequence[int]) -> Drawn:
        """Fills free slots from those that wait, each from its own shard's part of the batch."""
        shapes, shards = self._shapes, self._state.shards
        first = self._waiting[0]
        wanted = min(len(free), sum(_enter_together(slot, first) for slot in self._waiting))
        size = next((n for n in reversed(shapes.admissions) if n >= wanted), shapes.admissions[0])
        chosen = []
        for shard in range(shards):
            own = [slot for slot in free if slot * shards // shapes.slots == shard]
            for i, slot in enumerate(own[: size // shards]):
                content = next((one for one in self._waiting if self._may_enter(one, first, shard)), None)
                if content is not None:
                    self._waiting.remove(content)
                    chosen.append((shard * (size // shards) + i, slot, content))
        prompts = self._prompts(size, first.widths, chosen)
        entering = {
            index * shapes.rows_per_slot + number: self._requests[member].mask
            for index, _, content in chosen
            for number, member in enumerate(content.members)
        }
        allowed = self._allowed(size * shapes.rows_per_slot, entering)
        return self._state.admit(prompts, copies=first.kept is not None, allowed=allowed)

    def _allowed(self, rows: int, masks: Mapping[int, Mask | None]) -> np.ndarray | None:
        """What each of so many rows may draw next, where the call has masks."""
        if not self._state.masked:
            return None
        allowed = self._state.everything(rows)
        for row, mask in masks.items():
            if mask is not None:
                mask.fill(allowed[row])
        return allowed

    def _may_enter(self, content: Slot, first: Slot, shard: int) -> bool:
        """Whether a waiting slot belongs to the admission of `first`; keys are copied within their shard only."""
        if not _enter_together(content, first):
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

    def _prompts(self, size: int, widths: tuple[int, int], chosen: Sequence[tuple[int, int, Slot]]) -> PromptBatch:
        """Returns the admission of (place in it, slot, content), which stand in their slots from now on."""
        (prefix, tail), history = widths, self._shapes.history
        per_slot = self._shapes.rows_per_slot
        prompts = no_prompts(dataclasses.replace(self._shapes, prefix=prefix, tail=tail), size)
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
                self._rows[place] = _Row(member, content.group, shared, request.mask)
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
        chunk, shapes = self._rules.chunk, self._shapes
        oldest = max(min(row.drawn + chunk, self._requests[row.request].max_new_tokens) for row in self._rows.values())
        while shapes.history + shapes.tail + oldest > self._state.ring:
            self._state.widen()
        enough = rows = self._state.rows
        if self._waiting:  # as many finished rows as make room for the next admission
            enough = max(rows - len(self._rows) + 1, shapes.admissions[1] * shapes.rows_per_slot)
        allowed = self._allowed(rows, {place: row.mask for place, row in self._rows.items()})
        return self._state.decode(self._cancelled, enough, allowed=allowed)

    def _collect(self, drawn: Drawn, decoded: bool = False) -> list[tuple[int, Sampled]]:
        """Hands new tokens to their rows; returns the requests that ended with them."""
        tokens, logprobs, count, done = to_host(drawn)
        if decoded:
            self._work.row_steps += int(count.max(initial=0)) * len(count)
            self._work.live_row_steps += int(count.sum())
        finished = []
        for place, row in list(self._rows.items()):
            new = int(count[place])
            row.tokens.append(tokens[place, :new])
            row.logprobs.append(logprobs[place, :new])
            row.drawn += new
            cut = self._cut_at_stop_string(row)
            if row.mask is not None and new and row.mask.take(int(row.tokens[-1][-1])):
                cut = cut or row.drawn
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
        stopped = cut is not None or (length > 0 and int(ids[-1]) in self._rules.stop_ids)
        reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        return Sampled(ids[:length].copy(), logprobs[:length].copy(), reason)

    def _cut_at_stop_string(self, row: _Row) -> int | None:
        """Returns the number of tokens up to and including the one that completes the earliest stop string."""
        if not self._rules.stop_strings or not row.drawn:
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
        text = self._rules.decode(ids)
        return any(stop in text for stop in self._rules.stop_strings)


def _enter_together(content: Slot, first: Slot) -> bool:
    """An admission either computes its prefixes or copies them, in arrays of one width."""
    return (content.kept is None) == (first.kept is None) and content.widths == first.widths
