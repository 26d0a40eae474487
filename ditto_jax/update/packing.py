"""Lengths → places: the group, lane and offset of every row of an update, and how wide prefixes and lanes are made.

In: the shared prefix and the suffix lengths of each prompt, and the shapes that are allowed. Out: a `Layout`, a pure
function of the two. A group holds several prompts where they fit; one that does not fit into a group has its prefix in
several. Knows no ids and makes no arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ditto_jax.sampling.slot_shapes import bucket
from model.config import ModelConfig

# What row arrays have room for: lanes of much shorter suffixes are not filled.
_ROWS_A_LANE = 12
_TOKENS_A_ROW = 64
_LAYOUTS_TRIED = 48
_CLOSE = 1.01  # a layout this near to the least possible cost is taken


class BatchShapes(NamedTuple):
    """Static shape of a batch: M, n, S, C lanes a group, and ascending widths of prefixes and lanes to choose from.

    keys_per_token: attention of a token to so many keys costs as much as all else that is computed for it.
    """

    micro_batches: int
    groups: int
    rows: int
    lanes: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    keys_per_token: float = math.inf


def batch_shapes(
    prompts: int,
    rows: int,
    groups: int,
    lanes: int,
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    keys_per_token: float = math.inf,
) -> BatchShapes:
    """Returns shapes with room for `prompts` prompts of up to `rows` rows, even if every row fills a lane."""
    lanes = min(lanes, rows)
    most = prompts * -(-rows // lanes)
    room = min(prompts * rows, max(rows, lanes * min(_ROWS_A_LANE, -(-suffix[-1] // _TOKENS_A_ROW))))
    return BatchShapes(-(-most // groups), groups, room, lanes, prefix, suffix, keys_per_token)


def keys_per_token(model: ModelConfig) -> float:
    """Returns `BatchShapes.keys_per_token` of a model: how many keys a query meets at the cost of a token's products
    with a layer's matrices.

    Scores are masked, exponentiated and summed too, which is counted as three times their two products.
    """
    heads = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    return model.hidden_size * (heads + 3 * model.intermediate_size) / (4 * 2 * model.num_heads * model.head_dim)


class PromptLengths(NamedTuple):
    """Tokens of the prefix that a prompt's rows share, and what each row has behind it."""

    prefix: int
    suffixes: Sequence[int]


class Place(NamedTuple):
    """Where a row lies: number `row` of its group, from token `start` of a lane on."""

    group: int
    row: int
    lane: int
    start: int


class Layout(NamedTuple):
    """Widths, the places of each prompt's rows, and for each group where in its prefix array which prompt begins."""

    prefix: int
    lane: int
    places: list[list[Place]]
    prefixes: list[dict[int, int]]


def lay_out(lengths: Sequence[PromptLengths], shapes: BatchShapes) -> Layout:
    """Returns the cheapest layout found over the allowed widths.

    Cost is tokens computed, padding included, with attention by `keys_per_token`. Raises ConfigError if a prefix or a
    suffix is longer than the widest.
    """
    longest_prefix = max([1, *(prompt.prefix for prompt in lengths)])
    longest_suffix = max([2, *(size for prompt in lengths for size in prompt.suffixes)])
    least = bucket(longest_prefix, shapes.prefix, "train.prefix"), bucket(longest_suffix, shapes.suffix, "train.suffix")
    best, best_cost = _filled(lengths, shapes, *least, range(len(lengths))), math.inf
    bounds = sorted(
        (_bound(lengths, shapes, prefix, lane), prefix, lane)
        for prefix in shapes.prefix
        for lane in shapes.suffix
        if prefix >= least[0] and lane >= least[1]
    )
    for bound, prefix, lane in bounds[:_LAYOUTS_TRIED]:
        if best_cost <= _CLOSE * bound:
            break
        for order in _orders(lengths):
            found = _filled(lengths, shapes, prefix, lane, order)
            cost = _cost(len(found.prefixes), shapes, prefix, lane)
            if cost < best_cost:
                best, best_cost = found, cost
    return best


def _cost(groups: int, shapes: BatchShapes, prefix: int, lane: int) -> float:
    tokens = prefix + shapes.lanes * lane
    pairs = prefix * prefix + shapes.lanes * lane * (prefix + lane)
    return -(-groups // shapes.groups) * shapes.groups * (tokens + pairs / shapes.keys_per_token)


def _bound(lengths: Sequence[PromptLengths], shapes: BatchShapes, prefix: int, lane: int) -> float:
    """What these widths cost if nothing but the last group has padding."""
    needs = (
        (sum(sum(prompt.suffixes) for prompt in lengths), shapes.lanes * lane),
        (sum(prompt.prefix for prompt in lengths), prefix),
        (sum(len(prompt.suffixes) for prompt in lengths), shapes.rows),
    )
    return _cost(max(-(-need // room) for need, room in needs), shapes, prefix, lane)


def _orders(lengths: Sequence[PromptLengths]) -> Iterator[list[int]]:
    """Orders of the prompts to try: by prefix, by all of its tokens, by the longest row; largest first."""
    sizes: tuple[Callable[[PromptLengths], int], ...] = (
        lambda prompt: prompt.prefix,
        lambda prompt: sum(prompt.suffixes),
        lambda prompt: max(prompt.suffixes),
    )
    for size in sizes:
        yield sorted(range(len(lengths)), key=lambda number: -size(lengths[number]))


@dataclasses.dataclass
class _Group:
    """A group while it is filled. used: tokens of each lane, and of the prefix array; least: of the emptiest lane."""

    used: list[int]
    prefixes: dict[int, int] = dataclasses.field(default_factory=dict)
    used_prefix: int = 0
    rows: int = 0
    least: int = 0

    def put(self, number: int, prefix: int, size: int, width: int) -> tuple[int, int, int]:
        """Returns (row, lane, start) of a suffix, in the first lane with room; a new prompt's prefix is stored too."""
        if number not in self.prefixes:
            self.prefixes[number] = self.used_prefix
            self.used_prefix += prefix
        lane = next(i for i, used in enumerate(self.used) if used + size <= width)
        place = self.rows, lane, self.used[lane]
        self.used[lane] += size
        self.rows += 1
        self.least = min(self.used)
        return place


def _filled(
    lengths: Sequence[PromptLengths], shapes: BatchShapes, prefix: int, lane: int, order: Sequence[int]
) -> Layout:
    """Returns the layout of first fit: a prompt's longest row first, into groups that have its prefix, then others.

    A prompt opens a group only when none has room, and then fills its lanes before it opens another: there are never
    more groups than if each prompt had its own.
    """
    groups: list[_Group] = []
    places: list[list[Place]] = [[] for _ in lengths]
    for number in order:
        prompt = lengths[number]
        others = [index for index, group in enumerate(groups) if group.used_prefix + prompt.prefix <= prefix]
        mine: list[int] = []
        found: dict[int, Place] = {}
        for row in sorted(range(len(prompt.suffixes)), key=lambda r: -prompt.suffixes[r]):
            size = prompt.suffixes[row]
            with_room = (i for i in (*mine, *others) if groups[i].rows < shapes.rows and groups[i].least + size <= lane)
            index = next(with_room, len(groups))
            if index == len(groups):
                groups.append(_Group([0] * shapes.lanes))
            if index not in mine:
                mine.append(index)
            found[row] = Place(index, *groups[index].put(number, prompt.prefix, size, lane))
        places[number] = [found[row] for row in range(len(prompt.suffixes))]
    return Layout(prefix, lane, places, [group.prefixes for group in groups])
