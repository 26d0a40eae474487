"""Views → fixed-shape arrays for the update: groups of rows that share token prefixes, packed, in micro-batches.

The rows of a prompt share a token prefix, found by comparing ids; what follows it is packed side by side into lanes. A
group has a fixed number of lanes, and the prefixes that they continue, each stored once (`packing`). Shapes depend on
the configuration and on length buckets, never on how many rows there happen to be: what is missing is padding with
row_valid = False, and micro-batches of nothing else are skipped when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ditto_jax.rollouts.views import View
from ditto_jax.sampling.slots import common_prefix_length
from ditto_jax.update.packing import BatchShapes, Place, PromptLengths, lay_out
from model.logprobs import Array, GroupedIds


class TrainBatch(NamedTuple):
    """Arrays of one optimiser update: M micro-batches of n groups of up to S rows of T suffix tokens.

    grouped: ids, [M, n, ...]. loss_mask bool, behaviour float32 [M, n, S, T]; weights and row_weight float32, role
    int32, cross, row_valid and row_live bool [M, n, S]. The rest is what scoring passes found (`View`), None where the
    run has no such pass: anchor, sample, reference float32[M, n, S, T], teacher_ids int32 and teacher_lp
    float32[M, n, S, T, K], teacher_ok bool[M, n, S], whether a teacher has read the row. mask: int32[M, n, S, T],
    which of the step's masks each token was drawn under (`constraints`), 0 for none; None where nothing is constrained.
    """

    grouped: GroupedIds
    loss_mask: Array
    behaviour: Array
    weights: Array
    role: Array
    cross: Array
    row_valid: Array
    row_live: Array
    row_weight: Array
    anchor: Array | None = None
    sample: Array | None = None
    reference: Array | None = None
    teacher_ids: Array | None = None
    teacher_lp: Array | None = None
    teacher_ok: Array | None = None
    mask: Array | None = None


class Columns(NamedTuple):
    """Which optional columns a batch has, the same in every step of a run, so that programs are compiled once.

    teacher: candidates per token; 0: no teacher. mask: whether tokens were drawn among some.
    """

    anchor: bool = False
    sample: bool = False
    reference: bool = False
    teacher: int = 0
    mask: bool = False


NO_COLUMNS = Columns()


class Located(NamedTuple):
    """Where the response of a view lies: tokens `start` to `end` of a row of a group, groups of all micro-batches
    counted through.
    """

    group: int
    row: int
    start: int
    end: int


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


def by_prompt(views: Sequence[View]) -> dict[int, list[int]]:
    """Returns prompt → indices of its views, prompts in ascending order."""
    groups: dict[int, list[int]] = {}
    for index, view in enumerate(views):
        groups.setdefault(view.prompt, []).append(index)
    return dict(sorted(groups.items()))


def pack(
    views: Sequence[View],
    prompts: Sequence[Sequence[int]],
    weights: np.ndarray,
    live: np.ndarray,
    shapes: BatchShapes,
    columns: Columns = NO_COLUMNS,
    row_live: np.ndarray | None = None,
    row_weight: np.ndarray | None = None,
) -> TrainBatch:
    """Returns the arrays of one update.

    prompts: view indices of each prompt. Rows of one that share too little for their lanes (roles with openings of
    their own) stand under prefixes of their own. weights float32 and live bool, one per view: rows that are not live
    (failed verdict, truncated) are left out. row_live bool and row_weight float32, one per view, are handed on; None:
    all True, all 1. Raises ConfigError if a row is longer than the buckets, ValueError if `shapes` has no room.
    """
    batch, located = locate(views, prompts, live, shapes, columns)
    for index, place in located.items():
        where = *divmod(place.group, shapes.groups), place.row
        batch.weights[where] = float(weights[index])
        batch.row_live[where] = True if row_live is None else row_live[index]
        batch.row_weight[where] = 1.0 if row_weight is None else row_weight[index]
    return batch


def locate(
    views: Sequence[View],
    prompts: Sequence[Sequence[int]],
    live: np.ndarray,
    shapes: BatchShapes,
    columns: Columns = NO_COLUMNS,
) -> tuple[TrainBatch, dict[int, Located]]:
    """Returns a batch as `pack`, with weights of 0, and where in it each live view's response lies."""
    kept = [[i for i in members if live[i]] for members in prompts]
    kept = [part for rows in kept for part in _sharing(rows, views, shapes)]
    # What exceeds the largest prefix bucket is repeated in the lanes, as in the sampler.
    shared = [min(common_prefix_length([views[i].context for i in rows]), shapes.prefix[-1]) for rows in kept]
    layout = lay_out(
        [
            PromptLengths(prefix, [len(views[i].context) + len(views[i].response) - prefix for i in rows])
            for rows, prefix in zip(kept, shared, strict=True)
        ],
        shapes,
    )
    flat = _empty(shapes, layout.prefix, layout.lane, columns)
    located: dict[int, Located] = {}
    if len(layout.prefixes) > len(flat.row_valid):
        raise ValueError(f"{len(prompts)} prompts with up to {max(map(len, kept))} rows do not fit {shapes}")
    for group, starts in enumerate(layout.prefixes):
        for segment, (prompt, start) in enumerate(starts.items(), 1):
            here = slice(start, start + shared[prompt])
            flat.grouped.prefix_ids[group, here] = views[kept[prompt][0]].context[: shared[prompt]]
            flat.grouped.prefix_positions[group, here] = np.arange(shared[prompt])
            flat.grouped.prefix_segments[group, here] = segment
    for prompt, rows in enumerate(kept):
        for index, place in zip(rows, layout.places[prompt], strict=True):
            segment = 1 + list(layout.prefixes[place.group]).index(prompt)
            located[index] = _fill(flat, place, views[index], shared[prompt], segment)
    return _split(flat, shapes), located


def read_back(array: np.ndarray, located: dict[int, Located]) -> dict[int, np.ndarray]:
    """Returns view index → what [M, n, S, T, ...] holds for the tokens of its response."""
    flat = array.reshape(-1, *array.shape[2:])
    return {index: flat[at.group, at.row, at.start : at.end] for index, at in located.items()}


def _sharing(rows: Sequence[int], views: Sequence[View], shapes: BatchShapes) -> list[list[int]]:
    """Returns the rows of a prompt together, or in the parts that share enough for each row's rest to fit a lane."""
    parts: list[list[int]] = []
    for row in rows:
        for part in parts:
            contexts = [views[i].context for i in (*part, row)]
            shared = min(common_prefix_length(contexts), shapes.prefix[-1])
            if max(len(views[i].context) + len(views[i].response) for i in (*part, row)) - shared <= shapes.suffix[-1]:
                part.append(row)
                break
        else:
            parts.append([row])
    return parts


def token_counts(batch: TrainBatch) -> TokenCounts:
    """Returns what an update of this batch computes; micro-batches without a row are skipped and count nothing."""
    run = batch.row_valid.any(axis=(1, 2))
    prefix, lanes = batch.grouped.prefix_segments[run], batch.grouped.lane_segments[run]
    return TokenCounts(
        prefix_real=int(np.count_nonzero(prefix)),
        prefix_computed=prefix.size,
        lanes_real=int(np.count_nonzero(lanes)),
        lanes_computed=lanes.size,
    )


def _empty(shapes: BatchShapes, prefix: int, suffix: int, columns: Columns) -> TrainBatch:
    count = shapes.micro_batches * shapes.groups
    per_row, per_token = (count, shapes.rows), (count, shapes.rows, suffix)
    per_lane = (count, shapes.lanes, suffix)
    grouped = GroupedIds(
        prefix_ids=np.zeros((count, prefix), np.int32),
        prefix_positions=np.zeros((count, prefix), np.int32),
        prefix_segments=np.zeros((count, prefix), np.int32),
        lane_ids=np.zeros(per_lane, np.int32),
        lane_positions=np.zeros(per_lane, np.int32),
        lane_segments=np.zeros(per_lane, np.int32),
        lane_prefixes=np.zeros(per_lane, np.int32),
        row_tokens=np.zeros(per_token, np.int32),
    )
    per_candidate = (*per_token, columns.teacher)
    return TrainBatch(
        grouped=grouped,
        loss_mask=np.zeros(per_token, bool),
        behaviour=np.zeros(per_token, np.float32),
        weights=np.zeros(per_row, np.float32),
        role=np.zeros(per_row, np.int32),
        cross=np.zeros(per_row, bool),
        row_valid=np.zeros(per_row, bool),
        row_live=np.zeros(per_row, bool),
        row_weight=np.zeros(per_row, np.float32),
        anchor=np.zeros(per_token, np.float32) if columns.anchor else None,
        sample=np.zeros(per_token, np.float32) if columns.sample else None,
        reference=np.zeros(per_token, np.float32) if columns.reference else None,
        teacher_ids=np.zeros(per_candidate, np.int32) if columns.teacher else None,
        teacher_lp=np.zeros(per_candidate, np.float32) if columns.teacher else None,
        teacher_ok=np.zeros(per_row, bool) if columns.teacher else None,
        mask=np.zeros(per_token, np.int32) if columns.mask else None,
    )


def _fill(flat: TrainBatch, place: Place, view: View, shared: int, prefix: int) -> Located:
    """Writes one row and returns where; prefix: the segment of the group's prefixes that it continues."""
    grouped = flat.grouped
    g, s, lane, offset = place
    suffix = np.concatenate([view.context[shared:], view.response])
    start, end = len(view.context) - shared, len(suffix)
    here = slice(offset, offset + end)
    grouped.lane_ids[g, lane, here] = suffix
    grouped.lane_positions[g, lane, here] = shared + np.arange(end)
    grouped.lane_segments[g, lane, here] = s + 1
    grouped.lane_prefixes[g, lane, here] = prefix
    grouped.row_tokens[g, s, :end] = lane * grouped.lane_ids.shape[2] + offset + np.arange(end)
    flat.loss_mask[g, s, start:end] = view.loss_mask
    flat.behaviour[g, s, start:end] = view.behaviour
    for name in ("anchor", "sample", "reference", "teacher_ids", "teacher_lp", "mask"):
        column, found = getattr(flat, name), getattr(view, name)
        if column is not None and found is not None:
            column[g, s, start:end] = found
    if flat.teacher_ok is not None:
        flat.teacher_ok[g, s] = view.teacher_lp is not None
    flat.role[g, s] = int(view.role)
    flat.cross[g, s] = view.cross
    flat.row_valid[g, s] = True
    return Located(g, s, start, end)


def _split(flat: TrainBatch, shapes: BatchShapes) -> TrainBatch:
    def micro(array: np.ndarray) -> np.ndarray:
        return array.reshape(shapes.micro_batches, shapes.groups, *array.shape[1:])

    rest: dict[str, Any] = {k: v if v is None else micro(v) for k, v in flat._asdict().items() if k != "grouped"}
    return TrainBatch(grouped=GroupedIds(*(micro(array) for array in flat.grouped)), **rest)
