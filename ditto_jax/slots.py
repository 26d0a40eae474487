"""Requests → slots: which samples stand side by side over one prefix, and the static shapes that hold them.

In: requests of one sampler call, and the configured shapes. Out: a `SlotPlan`, a pure function of the two, so that a
resumed run meets the same shapes and no step recompiles after warm-up. Runs nothing on a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ditto_jax.chat import common_prefix
from ditto_jax.errors import ConfigError
from ditto_jax.kept_keys import NOTHING_KEPT, KeptGroup, KeptRow, longest_kept
from model.stored_keys import KEY_DTYPES

_RING_STEPS = 4  # attention reads the whole ring, so a long one grows to its full width in so many steps
_SHRINK = (2, 4, 8)  # parts of the slots in which the last rows of a call are decoded
_SHORT_RING = 128  # below this a wider ring costs less than a second program


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """One sequence to continue. Requests with equal `group` may share a prefix; `key` is uint32[2], from the sample's
    identity.
    """

    ids: np.ndarray
    group: int
    key: np.ndarray
    max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class SamplerShapes:
    """Static shapes. `prefix` and `tail` are ascending buckets of prompt lengths; a longer prompt is refused.

    max_rows: rows decoded together, always; missing ones are padding. rows_per_prefix: buckets of how many of them
    share one prefix (samples of one prompt). chunk: decode steps between two looks of the host, when finished rows
    leave and waiting ones take their place. max_prefill_tokens: prompt tokens run together; fewer prompts at a time
    when they are long. shrink: once nothing waits and half of the slots or more are empty, the rest goes on without
    them, for which more programs are compiled. unstack_layers: decode from a copy of the weights that has every layer
    apart, which saves copying them at every step where a stack cannot be sliced in place; None does so on CPU.
    merge_adapters: sample from a copy of the base into which the adapters were added, made once a step. kv_dtype: how
    keys and values are kept while decoding: in the dtype of activations (compute), another one, or as int8 codes.
    """

    prefix: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    tail: tuple[int, ...] = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
    max_new_tokens: int = 256
    max_rows: int = 128
    rows_per_prefix: tuple[int, ...] = (1, 2, 4, 8, 16)
    chunk: int = 16
    max_prefill_tokens: int = 16384
    shrink: bool = True
    unstack_layers: bool | None = None
    merge_adapters: bool = False
    kv_dtype: Literal["compute", "float32", "bfloat16", "float16", "int8"] = "compute"

    def __post_init__(self):
        for name in ("prefix", "tail", "rows_per_prefix"):
            buckets = getattr(self, name)
            if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
                raise ConfigError(f"sampler.{name}={buckets}: give ascending positive lengths, for example (64, 128)")
        for name in ("max_new_tokens", "max_rows", "chunk", "max_prefill_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sampler.{name}={getattr(self, name)}: must be at least 1")
        if self.kv_dtype not in KEY_DTYPES:
            raise ConfigError(f"sampler.kv_dtype={self.kv_dtype}: choose one of {', '.join(KEY_DTYPES)}")


def bucket(value: int, buckets: Sequence[int], what: str) -> int:
    """Returns the smallest bucket that holds `value`; raises ConfigError naming the setting if none does."""
    for size in buckets:
        if value <= size:
            return size
    raise ConfigError(
        f"{what}: {value} tokens do not fit the largest bucket {buckets[-1]}; raise {what} or shorten the prompt"
    )


def common_prefix_length(sequences: Sequence[np.ndarray]) -> int:
    """Returns how many leading ids all sequences share, at most the shortest length minus one."""
    shortest = min(len(ids) for ids in sequences) - 1
    return min(shortest, *(common_prefix(sequences[0], ids) for ids in sequences))


@dataclasses.dataclass(frozen=True)
class Slot:
    """Up to `SlotPlan.rows_per_slot` requests of one group, decoded side by side over one prefix.

    kept: the slot of an earlier call that holds the prefix's keys; None if they have to be computed. histories: for
    each member the kept row that holds keys of the tokens after the prefix, and how many of them; empty if none does.
    """

    members: tuple[int, ...]
    prefix_length: int
    kept: int | None = None
    histories: tuple[tuple[KeptRow, int], ...] = ()

    def known(self, number: int) -> int:
        """How many tokens of a member have keys already, its prefix included."""
        return self.prefix_length + (self.histories[number][1] if self.histories else 0)


@dataclasses.dataclass(frozen=True)
class SlotPlan:
    """How one sampler call is laid out.

    waiting: the slots' contents in the order in which they are admitted. slots: how many are decoded together, a
    multiple of `shards`. fewer_slots: descending sizes to which they shrink once nothing waits. prefix, history, tail:
    widths of an admission; history is 0 where no row continues one of an earlier call. ring: ascending widths of the
    rows' own keys. admissions: how many slots are filled at once, the first time and later. tokens_shared, tokens_kept:
    prompt tokens that are not run again, because a group shares them or an earlier call has run them.
    """

    waiting: tuple[Slot, ...]
    rows_per_slot: int
    slots: int
    fewer_slots: tuple[int, ...]
    prefix: int
    history: int
    tail: int
    ring: tuple[int, ...]
    admissions: tuple[int, int]
    tokens_shared: int
    tokens_kept: int


def plan_slots(
    requests: Sequence[SampleRequest],
    shapes: SamplerShapes,
    shards: int = 1,
    kept: Mapping[int, KeptGroup] | None = None,
) -> SlotPlan:
    """Returns the layout of a call; `shards` is how many devices the slots are split over, `kept` what is there by
    group.

    Raises ConfigError if a prompt is longer than the largest buckets.
    """
    groups: dict[int, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.group, []).append(index)
    largest = max(map(len, groups.values()))
    rows_per_slot = next((rows for rows in shapes.rows_per_prefix if rows >= largest), largest)
    rows_per_slot = min(rows_per_slot, shapes.rows_per_prefix[-1], shapes.max_rows)
    waiting = _contents(requests, groups, rows_per_slot, shapes, kept or {})
    waiting.sort(key=lambda slot: slot.kept is None)  # an admission either computes its prefixes or copies them

    slots = _multiple(max(1, shapes.max_rows // rows_per_slot), shards)
    longest_prefix = max(slot.prefix_length for slot in waiting)
    prefix = bucket(longest_prefix, shapes.prefix, "sampler.prefix") if longest_prefix else 0
    longest_history = max((length for slot in waiting for _, length in slot.histories), default=0)
    history = bucket(longest_history, shapes.tail, "sampler.tail") if longest_history else 0
    tail = bucket(_longest_tail(requests, waiting), shapes.tail, "sampler.tail")
    # Attention scores of a prefill grow with rows times length squared: long prompts go a few at a time.
    at_once = _multiple(max(1, min(slots, shapes.max_prefill_tokens // (prefix + rows_per_slot * tail))), shards)
    return SlotPlan(
        waiting=tuple(waiting),
        rows_per_slot=rows_per_slot,
        slots=slots,
        fewer_slots=tuple(slots // part for part in _SHRINK if slots % (part * shards) == 0) if shapes.shrink else (),
        prefix=prefix,
        history=history,
        tail=tail,
        ring=_ring_widths(history + tail, shapes),
        admissions=(at_once, _multiple(max(1, at_once // 8), shards)),
        tokens_shared=sum(slot.prefix_length * len(slot.members) for slot in waiting) - _once(waiting, requests),
        tokens_kept=_once([slot for slot in waiting if slot.kept is not None], requests)
        + sum(length for slot in waiting for _, length in slot.histories),
    )


def apart_where_needed(requests: Sequence[SampleRequest], shapes: SamplerShapes) -> list[SampleRequest]:
    """Returns the requests, each in a group of its own where the rows of a group share too little for one to fit.

    Dialogues of one prompt grow apart: alone in its slot, a row may fill the prefix bucket too.
    """
    groups: dict[int, list[np.ndarray]] = {}
    for request in requests:
        groups.setdefault(request.group, []).append(request.ids)
    crowded = {
        group
        for group, ids in groups.items()
        if len(ids) > 1 and max(map(len, ids)) - min(common_prefix_length(ids), shapes.prefix[-1]) > shapes.tail[-1]
    }
    return [
        dataclasses.replace(request, group=-1 - number) if request.group in crowded else request
        for number, request in enumerate(requests)
    ]


def _once(waiting: Sequence[Slot], requests: Sequence[SampleRequest]) -> int:
    """Returns the prefix tokens of the groups, each group counted once."""
    return sum({requests[slot.members[0]].group: slot.prefix_length for slot in waiting}.values())


def _longest_tail(requests: Sequence[SampleRequest], waiting: Sequence[Slot]) -> int:
    return max(len(requests[i].ids) - slot.known(n) for slot in waiting for n, i in enumerate(slot.members))


def _contents(
    requests: Sequence[SampleRequest],
    groups: dict[int, list[int]],
    rows_per_slot: int,
    shapes: SamplerShapes,
    kept: Mapping[int, KeptGroup],
) -> list[Slot]:
    """Returns the slots of all groups; rows continue those of an earlier call if that leaves half the tokens or fewer.

    It is decided for all rows together, for one long tail makes every tail as wide.
    """
    prefixes = {g: common_prefix_length([requests[i].ids for i in m]) for g, m in groups.items()}
    limit = _prefix_limit(requests, groups, prefixes, shapes)
    afresh, continued = [], []
    for group, members in groups.items():
        sequences = [requests[i].ids for i in members]
        shared, place = min(prefixes[group], limit), None
        known = _known(kept, group, sequences, shared, shapes)
        if known is not None:
            shared, place = known, kept[group].slot
        plain = [
            Slot(tuple(members[start : start + rows_per_slot]), shared, place)
            for start in range(0, len(members), rows_per_slot)
        ]
        afresh += plain
        continued += _continuing(members, requests, kept[group], rows_per_slot) if group in kept else plain
    fits = all(length <= shapes.tail[-1] for slot in continued for _, length in slot.histories)
    worth = 2 * _longest_tail(requests, continued) <= _longest_tail(requests, afresh)
    return continued if fits and worth else afresh


def _continuing(
    members: Sequence[int], requests: Sequence[SampleRequest], kept: KeptGroup, rows_per_slot: int
) -> list[Slot]:
    """Returns slots over the earlier call's prefix, as far as all members share it, whose members go on where rows of
    that call ended.

    Members that continue rows of one slot stay together, so that keys stay on their device.
    """
    start = min(common_prefix(kept.ids, requests[i].ids[:-1]) for i in members)
    places: dict[int, list[int]] = {}
    found: dict[int, tuple[KeptRow, int]] = {}
    for member in members:
        rows = kept.rows if start == len(kept.ids) else ()
        found[member] = longest_kept(rows, requests[member].ids[start:]) or (NOTHING_KEPT, 0)
        places.setdefault(found[member][0].slot if found[member][1] else kept.slot, []).append(member)
    chunks = [
        (place, tuple(own[first : first + rows_per_slot]))
        for place, own in places.items()
        for first in range(0, len(own), rows_per_slot)
    ]
    return [Slot(chunk, start, place, tuple(found[i] for i in chunk)) for place, chunk in chunks]


def _known(
    kept: Mapping[int, KeptGroup],
    group: int,
    sequences: Sequence[np.ndarray],
    shared: int,
    shapes: SamplerShapes,
) -> int | None:
    """Returns how many leading tokens to copy from an earlier call, or None if it is less work to run them again.

    What the group shares beyond them is then run once for every row.
    """
    if group not in kept:
        return None
    known = min(shared, *(common_prefix(kept[group].ids, ids) for ids in sequences))
    longest_tail = max(map(len, sequences)) - known
    worth = known > 0 and (shared - known) * (len(sequences) - 1) < known
    return known if worth and longest_tail <= shapes.tail[-1] else None


def _multiple(value: int, of: int) -> int:
    return -(-value // of) * of


def _ring_widths(tail: int, shapes: SamplerShapes) -> tuple[int, ...]:
    widest = tail + shapes.max_new_tokens
    if widest <= _SHORT_RING:
        return (widest,)
    steps = (-(-widest * i // _RING_STEPS) for i in range(1, _RING_STEPS + 1))
    return tuple(width for width in steps if width >= tail + shapes.chunk or width == widest)


def _prefix_limit(requests, groups: dict[int, list[int]], prefixes: dict[int, int], shapes: SamplerShapes) -> int:
    """Returns how long a prefix may be: a lone row's own prompt must not widen the bucket that shared prefixes need."""
    largest = shapes.prefix[-1]
    shared = [prefixes[g] for g, members in groups.items() if len(members) > 1]
    longest_shared = max([1, *(shared or prefixes.values())])
    wanted = bucket(min(longest_shared, largest), shapes.prefix, "sampler.prefix")
    lone = [len(requests[members[0]].ids) for members in groups.values() if len(members) == 1]
    fits = max([0, *lone]) - wanted <= shapes.tail[-1]
    return wanted if fits else largest
