"""Requests → slots: which samples stand side by side over one prefix, and which of the configured shapes hold them.

In: requests of one sampler call, and the configured shapes. Out: a `SlotPlan`, a pure function of the two, so that a
resumed run meets the same shapes. Runs nothing on a device; the sizes themselves are made in `slot_shapes.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ditto_jax.sampling.kept_keys import NOTHING_KEPT, KeptGroup, KeptRow, longest_kept
from ditto_jax.sampling.slot_shapes import CallShapes, SamplerShapes, bucket, call_shapes, rows_per_slot
from ditto_jax.text.chat import common_prefix
from ditto_jax.types import FinishReason


class Mask(Protocol):
    """Which tokens a reply may go on with, as it grows."""

    def fill(self, words: np.ndarray) -> None:
        """Writes the bits of the tokens that may come next into int32[ceil(V / 32)]."""
        ...

    def take(self, token: int) -> bool:
        """Returns whether the reply is complete with this token."""
        ...


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """One sequence to continue. Requests with equal `group` may share a prefix; `key` is uint32[2], from the sample's
    identity. mask: what may be drawn, fresh and of this request alone; None: everything.
    """

    ids: np.ndarray
    group: int
    key: np.ndarray
    max_new_tokens: int
    mask: Mask | None = None


@dataclasses.dataclass(frozen=True)
class Sampled:
    """ids int32[n] (a stop token is included), logprobs float32[n] of the sampling distribution, and why it ended."""

    ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: FinishReason


def common_prefix_length(sequences: Sequence[np.ndarray]) -> int:
    """Returns how many leading ids all sequences share, at most the shortest length minus one."""
    shortest = min(len(ids) for ids in sequences) - 1
    return min(shortest, *(common_prefix(sequences[0], ids) for ids in sequences))


@dataclasses.dataclass(frozen=True)
class Slot:
    """Up to `CallShapes.rows_per_slot` requests of one group, decoded side by side over one prefix.

    group: whose prefix it is, under which its keys may be kept. kept: the slot of an earlier call that holds the
    prefix's keys; None if they have to be computed. histories: for each member the kept row that holds keys of the
    tokens after the prefix, and how many of them; empty if none does. widths: of prefix and tails in an admission.
    """

    members: tuple[int, ...]
    group: int
    prefix_length: int
    kept: int | None = None
    histories: tuple[tuple[KeptRow, int], ...] = ()
    widths: tuple[int, int] = (0, 0)

    def known(self, number: int) -> int:
        """How many tokens of a member have keys already, its prefix included."""
        return self.prefix_length + (self.histories[number][1] if self.histories else 0)


@dataclasses.dataclass(frozen=True)
class SlotPlan:
    """How one sampler call is laid out: the slots' contents in the order in which they are admitted, and the shapes.

    tokens_shared, tokens_kept: prompt tokens that are not run again, because a group shares them or an earlier call has
    run them.
    """

    waiting: tuple[Slot, ...]
    shapes: CallShapes
    tokens_shared: int
    tokens_kept: int


def plan_slots(
    requests: Sequence[SampleRequest],
    shapes: SamplerShapes,
    shards: int = 1,
    kept: Mapping[int, KeptGroup] | None = None,
) -> SlotPlan:
    """Returns the layout of a call; `shards` is how many devices the slots are split over, `kept` what is there by
    group. Rows that share too little with the others of their group to fit beside them get a slot each.

    Raises ConfigError if a prompt is longer than the largest buckets.
    """
    ids = [request.ids for request in requests]
    groups: dict[int, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.group, []).append(index)
    rows, waiting = _contents(ids, groups, shapes, kept or {})
    if _longest_tail(ids, waiting) > shapes.tail[-1]:
        rows, waiting = _contents(ids, _apart_where_needed(ids, groups, shapes), shapes, kept or {})
    waiting.sort(key=lambda slot: slot.kept is None)  # an admission either computes its prefixes or copies them
    longest_history = max((length for slot in waiting for _, length in slot.histories), default=0)
    sizes = call_shapes(
        rows,
        bucket(max(1, *(slot.prefix_length for slot in waiting)), shapes.prefix, "sampler.prefix"),
        bucket(longest_history, shapes.tail, "sampler.tail") if longest_history else 0,
        bucket(_longest_tail(ids, waiting), shapes.tail, "sampler.tail"),
        shapes,
        shards,
    )
    return SlotPlan(
        waiting=tuple(dataclasses.replace(slot, widths=(sizes.prefix, sizes.tail)) for slot in waiting),
        shapes=sizes,
        tokens_shared=sum(slot.prefix_length * len(slot.members) for slot in waiting) - _once(waiting),
        tokens_kept=_once([slot for slot in waiting if slot.kept is not None])
        + sum(length for slot in waiting for _, length in slot.histories),
    )


def _apart_where_needed(
    ids: Sequence[np.ndarray], groups: Mapping[int, list[int]], shapes: SamplerShapes
) -> dict[int, list[int]]:
    """Returns the groups; where the rows of one share too little for one to fit, each is a group of its own.

    Dialogues of one prompt grow apart: alone in its slot, a row may fill the prefix bucket too.
    """
    apart: dict[int, list[int]] = {}
    for group, members in groups.items():
        sequences = [ids[i] for i in members]
        shared = min(common_prefix_length(sequences), shapes.prefix[-1])
        if len(members) > 1 and max(map(len, sequences)) - shared > shapes.tail[-1]:
            apart |= {-1 - i: [i] for i in members}
        else:
            apart[group] = members
    return apart


def _once(waiting: Sequence[Slot]) -> int:
    """Returns the prefix tokens of the groups, each group counted once."""
    return sum({slot.group: slot.prefix_length for slot in waiting}.values())


def _longest_tail(ids: Sequence[np.ndarray], waiting: Sequence[Slot]) -> int:
    return max(len(ids[i]) - slot.known(n) for slot in waiting for n, i in enumerate(slot.members))


def _contents(
    ids: Sequence[np.ndarray], groups: Mapping[int, list[int]], shapes: SamplerShapes, kept: Mapping[int, KeptGroup]
) -> tuple[int, list[Slot]]:
    """Returns the rows of a slot, and the slots of all groups; rows continue those of an earlier call if that leaves
    half the tokens or fewer.

    It is decided for all rows together, for one long tail makes every tail as wide.
    """
    rows = rows_per_slot(max(map(len, groups.values())), shapes)
    afresh = _afresh(ids, groups, rows, shapes, kept)
    if not any(kept[group].rows for group in groups if group in kept):
        return rows, afresh
    continued = [slot for slot in afresh if slot.group not in kept]
    for group, members in groups.items():
        if group in kept:
            continued += _continuing(group, members, ids, kept[group], rows)
    fits = all(length <= shapes.tail[-1] for slot in continued for _, length in slot.histories)
    worth = 2 * _longest_tail(ids, continued) <= _longest_tail(ids, afresh)
    return rows, continued if fits and worth else afresh


def _afresh(
    ids: Sequence[np.ndarray],
    groups: Mapping[int, list[int]],
    rows: int,
    shapes: SamplerShapes,
    kept: Mapping[int, KeptGroup],
) -> list[Slot]:
    """Returns the slots of all groups where no row continues one of an earlier call; prefixes may."""
    prefixes = {g: common_prefix_length([ids[i] for i in m]) for g, m in groups.items()}
    limit = _prefix_limit(ids, groups, prefixes, shapes)
    slots = []
    for group, members in groups.items():
        shared, place = min(prefixes[group], limit), None
        known = _known(kept, group, [ids[i] for i in members], shared, shapes)
        if known is not None:
            shared, place = known, kept[group].slot
        for start in range(0, len(members), rows):
            slots.append(Slot(tuple(members[start : start + rows]), group, shared, place))
    return slots


def _continuing(
    group: int, members: Sequence[int], ids: Sequence[np.ndarray], kept: KeptGroup, per_slot: int
) -> list[Slot]:
    """Returns slots over the earlier call's prefix, as far as all members share it, whose members go on where rows of
    that call ended.

    Members that continue rows of one slot stay together, so that keys stay on their device.
    """
    start = min(common_prefix(kept.ids, ids[i][:-1]) for i in members)
    places: dict[int, list[int]] = {}
    found: dict[int, tuple[KeptRow, int]] = {}
    for member in members:
        rows = kept.rows if start == len(kept.ids) else ()
        found[member] = longest_kept(rows, ids[member][start:]) or (NOTHING_KEPT, 0)
        places.setdefault(found[member][0].slot if found[member][1] else kept.slot, []).append(member)
    chunks = [
        (place, tuple(own[first : first + per_slot]))
        for place, own in places.items()
        for first in range(0, len(own), per_slot)
    ]
    return [Slot(chunk, group, start, place, tuple(found[i] for i in chunk)) for place, chunk in chunks]


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


def _prefix_limit(
    ids: Sequence[np.ndarray], groups: Mapping[int, list[int]], prefixes: Mapping[int, int], shapes: SamplerShapes
) -> int:
    """Returns how long a prefix may be: a lone row's own prompt must not widen the bucket that shared prefixes need."""
    largest = shapes.prefix[-1]
    shared = [prefixes[g] for g, members in groups.items() if len(members) > 1]
    longest_shared = max([1, *(shared or prefixes.values())])
    wanted = bucket(min(longest_shared, largest), shapes.prefix, "sampler.prefix")
    lone = [len(ids[members[0]]) for members in groups.values() if len(members) == 1]
    fits = max([0, *lone]) - wanted <= shapes.tail[-1]
    return wanted if fits else largest
