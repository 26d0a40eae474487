"""Views → fixed-shape arrays for the update: groups of rows that share a token prefix, packed, in micro-batches.

The rows of one prompt stay together: their common token prefix, found by comparing ids, is stored once, and what
follows it is packed side by side into lanes. A group has a fixed number of lanes; a prompt that needs more takes
several groups. Shapes depend on the configuration and on length buckets, never on how many rows there happen to be:
what is missing is padding with row_valid = False, and micro-batches of nothing else are skipped when they run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ditto_jax.slots import bucket, common_prefix_length
from ditto_jax.views import View
from model.logprobs import Array, GroupedIds


class TrainBatch(NamedTuple):
    """Arrays of one optimiser update: M micro-batches of n groups of up to S rows of T suffix tokens.

    grouped: ids, [M, n, ...]. loss_mask bool, behaviour and anchor float32 [M, n, S, T] (anchor is filled by the
    scoring pass); weights float32, role int32, cross and row_valid bool [M, n, S].
    """

    grouped: GroupedIds
    loss_mask: Array
    behaviour: Array
    anchor: Array
    weights: Array
    role: Array
    cross: Array
    row_valid: Array


class TokenCounts(NamedTuple):
    """Tokens of the prefixes and lanes that are computed, and how many of them are no padding."""

    prefix_real: int
    prefix_computed: int
    lanes_real: int
    lanes_computed: int

    @property
    def real_fraction(self) -> float:
        """Share of tokens that are no padding, prefixes and lanes together; 0 of nothing."""
        return (self.prefix_real + self.lanes_real) / max(1, self.prefix_computed + self.lanes_computed)

    def __add__(self, other: TokenCounts) -> TokenCounts:  # pyright: ignore[reportIncompatibleMethodOverride]
        return TokenCounts(*(a + b for a, b in zip(self, other, strict=True)))


class BatchShapes(NamedTuple):
    """Static shape of a batch: M, n, S, C lanes a group, and ascending length buckets of prefix and suffix."""

    micro_batches: int
    groups: int
    rows: int
    lanes: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def batch_shapes(
    prompts: int, rows: int, groups: int, lanes: int, prefix: tuple[int, ...], suffix: tuple[int, ...]
) -> BatchShapes:
    """Returns shapes with room for `prompts` prompts of up to `rows` rows, even if every row fills a lane."""
    lanes = min(lanes, rows)
    most = prompts * -(-rows // lanes)
    return BatchShapes(-(-most // groups), groups, rows, lanes, prefix, suffix)


def by_prompt(views: Sequence[View]) -> dict[int, list[int]]:
    """Returns prompt → indices of its views, prompts in ascending order."""
    groups: dict[int, list[int]] = {}
    for index, view in enumerate(views):
        groups.setdefault(view.prompt, []).append(index)
    return dict(sorted(groups.items()))


def pack(
    views: Sequence[View], prompts: Sequence[Sequence[int]], weights: np.ndarray, live: np.ndarray, shapes: BatchShapes
) -> TrainBatch:
    """Returns the arrays of one update.

    prompts: view indices of each prompt. weights float32 and live bool, one per view: rows that are not live (failed
    verdict, truncated) are left out. Raises ConfigError if a row is longer than the buckets, ValueError if `shapes`
    has no room.
    """
    kept = [[i for i in members if live[i]] for members in prompts]
    kept = [rows for rows in kept if rows]
    # What exceeds the largest prefix bucket is repeated in the lanes, as in the sampler.
    shared = [min(common_prefix_length([views[i].context for i in rows]), shapes.prefix[-1]) for rows in kept]
    sizes = [
        [len(views[i].context) + len(views[i].response) - prefix for i in rows]
        for rows, prefix in zip(kept, shared, strict=True)
    ]
    prefix_width = bucket(max([1, *shared]), shapes.prefix, "train.prefix")
    suffix_width = bucket(max([2, *(size for row in sizes for size in row)]), shapes.suffix, "train.suffix")
    flat = _empty(shapes, prefix_width, suffix_width)
    group = 0
    for rows, prefix, lengths in zip(kept, shared, sizes, strict=True):
        places = _first_fit(lengths, suffix_width)
        needed = 1 + max(lane for lane, _ in places) // shapes.lanes
        if group + needed > len(flat.row_valid) or len(rows) > shapes.rows:
            raise ValueError(f"{len(prompts)} prompts with up to {max(map(len, kept))} rows do not fit {shapes}")
        filled = [0] * needed
        for index, (lane, offset) in zip(rows, places, strict=True):
            part, lane = divmod(lane, shapes.lanes)
            _fill(flat, group + part, filled[part], views[index], prefix, (lane, offset), float(weights[index]))
            filled[part] += 1
        for g in range(group, group + needed):
            flat.grouped.prefix_ids[g, :prefix] = views[rows[0]].context[:prefix]
            flat.grouped.prefix_length[g] = prefix
        group += needed
    return _split(flat, shapes)


def token_counts(batch: TrainBatch) -> TokenCounts:
    """Returns what an update of this batch computes; micro-batches without a row are skipped and count nothing."""
    run = batch.row_valid.any(axis=(1, 2))
    prefix, lanes = batch.grouped.prefix_ids[run], batch.grouped.lane_segments[run]
    return TokenCounts(
        prefix_real=int(batch.grouped.prefix_length[run].sum()),
        prefix_computed=prefix.size,
        lanes_real=int(np.count_nonzero(lanes)),
        lanes_computed=lanes.size,
    )


def _first_fit(sizes: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Returns (lane, offset) of each size, longest first into the first lane with room."""
    used: list[int] = []
    places = [(0, 0)] * len(sizes)
    for row in sorted(range(len(sizes)), key=lambda r: -sizes[r]):
        lane = next((i for i, full in enumerate(used) if full + sizes[row] <= width), len(used))
        if lane == len(used):
            used.append(0)
        places[row] = (lane, used[lane])
        used[lane] += sizes[row]
    return places


def _empty(shapes: BatchShapes, prefix: int, suffix: int) -> TrainBatch:
    count = shapes.micro_batches * shapes.groups
    per_row, per_token = (count, shapes.rows), (count, shapes.rows, suffix)
    per_lane = (count, shapes.lanes, suffix)
    grouped = GroupedIds(
        prefix_ids=np.zeros((count, prefix), np.int32),
        prefix_length=np.zeros(count, np.int32),
        lane_ids=np.zeros(per_lane, np.int32),
        lane_positions=np.zeros(per_lane, np.int32),
        lane_segments=np.zeros(per_lane, np.int32),
        row_tokens=np.zeros(per_token, np.int32),
    )
    return TrainBatch(
        grouped=grouped,
        loss_mask=np.zeros(per_token, bool),
        behaviour=np.zeros(per_token, np.float32),
        anchor=np.zeros(per_token, np.float32),
        weights=np.zeros(per_row, np.float32),
        role=np.zeros(per_row, np.int32),
        cross=np.zeros(per_row, bool),
        row_valid=np.zeros(per_row, bool),
    )


def _fill(flat: TrainBatch, g: int, s: int, view: View, shared: int, place: tuple[int, int], weight: float) -> None:
    grouped = flat.grouped
    suffix = np.concatenate([view.context[shared:], view.response])
    start, end = len(view.context) - shared, len(suffix)
    lane, offset = place
    here = slice(offset, offset + end)
    grouped.lane_ids[g, lane, here] = suffix
    grouped.lane_positions[g, lane, here] = shared + np.arange(end)
    grouped.lane_segments[g, lane, here] = s + 1
    grouped.row_tokens[g, s, :end] = lane * grouped.lane_ids.shape[2] + offset + np.arange(end)
    flat.loss_mask[g, s, start:end] = view.loss_mask
    flat.behaviour[g, s, start:end] = view.behaviour
    flat.weights[g, s] = weight
    flat.role[g, s] = int(view.role)
    flat.cross[g, s] = view.cross
    flat.row_valid[g, s] = True


def _split(flat: TrainBatch, shapes: BatchShapes) -> TrainBatch:
    def micro(array: np.ndarray) -> np.ndarray:
        return array.reshape(shapes.micro_batches, shapes.groups, *array.shape[1:])

    rest: Mapping[str, np.ndarray] = {k: micro(v) for k, v in flat._asdict().items() if k != "grouped"}
    return TrainBatch(grouped=GroupedIds(*(micro(array) for array in flat.grouped)), **rest)
