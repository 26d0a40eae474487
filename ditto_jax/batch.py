"""Views → fixed-shape arrays for the update: groups of rows that share a token prefix, split into micro-batches.

The rows of one prompt stay together; their common token prefix, found by comparing ids, is stored once. Shapes come from the configured buckets
and from the number of views the objective can make, never from how many there happen to be, so nothing
recompiles when judges fail or gates close. Missing rows and groups are padding with row_valid = False.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ditto_jax.sampler import bucket, common_prefix_length
from ditto_jax.views import View
from model.logprobs import GroupedIds


class TrainBatch(NamedTuple):
    """Arrays of one optimiser update: M micro-batches of n groups of S rows of T suffix tokens.

    grouped: ids, [M, n, ...]. loss_mask bool, behaviour and anchor float32 [M, n, S, T] (anchor is filled by the scoring pass);
    weights float32, role int32, cross and row_valid bool [M, n, S].
    """

    grouped: GroupedIds
    loss_mask: np.ndarray
    behaviour: np.ndarray
    anchor: np.ndarray
    weights: np.ndarray
    role: np.ndarray
    cross: np.ndarray
    row_valid: np.ndarray


class BatchShapes(NamedTuple):
    """Static shape of a batch: M, n, S and the ascending length buckets of prefix and suffix."""

    micro_batches: int
    groups: int
    rows: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def by_prompt(views: Sequence[View]) -> dict[int, list[int]]:
    """Returns prompt → indices of its views, prompts in ascending order."""
    groups: dict[int, list[int]] = {}
    for index, view in enumerate(views):
        groups.setdefault(view.prompt, []).append(index)
    return dict(sorted(groups.items()))


def pack(
    views: Sequence[View], groups: Sequence[Sequence[int]], weights: np.ndarray, live: np.ndarray, shapes: BatchShapes
) -> TrainBatch:
    """Returns the arrays of one update.

    groups: view indices of each prompt; at most M * n of them with at most S rows. weights float32 and live bool, one per view:
    rows that are not live (failed verdict, truncated) are packed as padding.
    """
    count = shapes.micro_batches * shapes.groups
    if len(groups) > count or any(len(members) > shapes.rows for members in groups):
        raise ValueError(f"{len(groups)} groups of up to {max(map(len, groups))} rows do not fit {shapes}")
    plans = [_plan([views[i] for i in members if live[i]]) for members in groups]
    longest_prefix = max((prefix for prefix, _ in plans), default=1)
    longest_suffix = max((suffix for _, suffix in plans), default=2)
    prefix_width = bucket(max(1, longest_prefix), shapes.prefix, "train.prefix")
    suffix_width = bucket(max(2, longest_suffix), shapes.suffix, "train.suffix")
    flat = _empty(count, shapes.rows, prefix_width, suffix_width)
    for g, (members, (shared, _)) in enumerate(zip(groups, plans, strict=True)):
        rows = [i for i in members if live[i]]
        if rows:
            flat.grouped.prefix_ids[g, :shared] = views[rows[0]].context[:shared]
            flat.grouped.prefix_length[g] = shared
        for s, index in enumerate(rows):
            _fill(flat, g, s, views[index], shared, float(weights[index]))
    return _split(flat, shapes)


def _plan(rows: Sequence[View]) -> tuple[int, int]:
    """Returns (shared prefix length, longest suffix) of one group."""
    if not rows:
        return 0, 2
    shared = common_prefix_length([view.context for view in rows])
    return shared, max(len(view.context) + len(view.response) for view in rows) - shared


def _empty(count: int, rows: int, prefix: int, suffix: int) -> TrainBatch:
    per_row, per_token = (count, rows), (count, rows, suffix)
    grouped = GroupedIds(
        prefix_ids=np.zeros((count, prefix), np.int32),
        prefix_length=np.zeros(count, np.int32),
        suffix_ids=np.zeros(per_token, np.int32),
        suffix_length=np.ones(per_row, np.int32),
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


def _fill(flat: TrainBatch, g: int, s: int, view: View, shared: int, weight: float) -> None:
    tail = view.context[shared:]
    start, end = len(tail), len(tail) + len(view.response)
    flat.grouped.suffix_ids[g, s, :start] = tail
    flat.grouped.suffix_ids[g, s, start:end] = view.response
    flat.grouped.suffix_length[g, s] = end
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
