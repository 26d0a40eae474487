"""Configured buckets → the static shapes of a sampler call, and all that can occur: what programs are compiled for.

In: `SamplerShapes` of a configuration, and how long a call's prompts are. Out: `CallShapes`, and with `reachable` every
one of them for prompts up to a length, so that a run can compile its programs before its first step. Knows no request.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

from ditto_jax.errors import ConfigError
from model.stored_keys import KEY_DTYPES

_RING_STEPS = 4  # attention reads the whole ring, so a long one grows to its full width in so many steps
_SHRINK = (2, 4, 8)  # parts of the slots in which the last rows of a call are decoded
_SHORT_RING = 128  # below this a wider ring costs less than a second program


@dataclasses.dataclass(frozen=True)
class SamplerShapes:
    """Static shapes. `prefix` and `tail` are ascending buckets of prompt lengths; a longer prompt is refused.

    max_rows: rows decoded together, always; missing ones are padding. rows_per_prefix: buckets of how many of them
    share one prefix (samples of one prompt). chunk: decode steps between two looks of the host, when finished rows
    leave and waiting ones take their place. max_prefill_tokens: prompt tokens run together; fewer prompts at a time
    when they are long. shrink: once nothing waits and half of the slots or more are empty, the rest goes on without
    them, for which more programs are compiled. unstack_layers: decode from a copy of the weights that has every layer
    apart, which saves copying them at every step where a stack cannot be sliced in place; None does so on CPU.
    merge_adapters: sample from a copy of the base into which the adapters were added, made once a step. warm_up:
    compile all programs that training can meet before its first step, instead of each where it is met first; their
    number is a product of the buckets here, so that few of them make it quick (docs/performance.md). kv_dtype: how keys
    and values are kept while decoding: in the dtype of activations (compute), another one, or as int8 codes.
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
    warm_up: bool = False
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


@dataclasses.dataclass(frozen=True)
class CallShapes:
    """The static shapes of one sampler call: two calls of equal shapes run the same programs.

    rows_per_slot: rows decoded side by side over one prefix. slots: how many are decoded together, a multiple of the
    shards. fewer_slots: descending sizes, each half of the one before, to which they shrink once nothing waits. prefix,
    history, tail: widths of an admission; history is 0 where no row continues one of an earlier call. ring: ascending
    widths of the rows' own keys. admissions: how many slots are filled at once, the first time and later. own_columns:
    rows write columns of their own, so that sums do not depend on when a row came.
    """

    rows_per_slot: int
    slots: int
    fewer_slots: tuple[int, ...]
    prefix: int
    history: int
    tail: int
    ring: tuple[int, ...]
    admissions: tuple[int, int]
    own_columns: bool = False


def rows_per_slot(members: int, shapes: SamplerShapes) -> int:
    """Returns how many rows a slot has where the largest group of a call has so many members."""
    largest = shapes.rows_per_prefix[-1]
    return min(next((rows for rows in shapes.rows_per_prefix if rows >= members), largest), shapes.max_rows)


def call_shapes(rows: int, prefix: int, history: int, tail: int, shapes: SamplerShapes, shards: int = 1) -> CallShapes:
    """Returns the shapes of a call with `rows` rows a slot and the given buckets; slots are split over `shards`."""
    slots = _multiple(max(1, shapes.max_rows // rows), shards)
    # Attention scores of a prefill grow with rows times length squared: long prompts go a few at a time.
    at_once = _multiple(max(1, min(slots, shapes.max_prefill_tokens // (prefix + rows * tail))), shards)
    return CallShapes(
        rows_per_slot=rows,
        slots=slots,
        fewer_slots=tuple(slots // part for part in _SHRINK if slots % (part * shards) == 0) if shapes.shrink else (),
        prefix=prefix,
        history=history,
        tail=tail,
        ring=_ring_widths(history + tail, shapes),
        admissions=(at_once, _multiple(max(1, at_once // 8), shards)),
    )


def open_shapes(
    shapes: SamplerShapes, members: int, prompt: int, words: int, shards: int = 1
) -> tuple[SamplerShapes, CallShapes]:
    """Returns (the buckets of all requests, the one shape) of a call that takes requests while it runs.

    members: the most of one group; prompt: tokens of the longest prompt before words; words: tokens that these may add.
    No size of it changes with what stands in it or when that came: the same program then draws the same for a row. So
    the ring has its full width at once, no slot is left behind, and slots are filled one by one on each shard.
    """
    rows = rows_per_slot(members, shapes)
    prefix = tuple(size for size in shapes.prefix if size <= _first_from(prompt, shapes.prefix))
    tail = tuple(size for size in shapes.tail if size <= _first_from(max(0, prompt - prefix[-1]) + words, shapes.tail))
    buckets = dataclasses.replace(shapes, prefix=prefix, tail=tail, rows_per_prefix=(rows,), shrink=False)
    call = call_shapes(rows, prefix[-1], 0, tail[-1], buckets, shards)
    return buckets, dataclasses.replace(call, ring=call.ring[-1:], admissions=(shards, shards), own_columns=True)


def _first_from(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds so many tokens, else the largest."""
    return next((size for size in buckets if size >= length), buckets[-1])


def reachable(
    shapes: SamplerShapes, members: int, longest: int, many_turns: bool, shards: int = 1
) -> tuple[CallShapes, ...]:
    """Returns the shapes of every call of groups of up to `members` prompts of up to `longest` tokens.

    many_turns: whether rows may continue those of an earlier call.
    """
    rows = sorted({rows_per_slot(count, shapes) for count in range(1, members + 1)})
    prefixes, tails = _met(shapes.prefix, longest), _met(shapes.tail, longest)
    histories = (0, *(tails if many_turns else ()))
    return tuple(
        call_shapes(count, prefix, history, tail, shapes, shards)
        for count, prefix, history, tail in itertools.product(rows, prefixes, histories, tails)
    )


def _met(buckets: Sequence[int], longest: int) -> tuple[int, ...]:
    """The buckets that some length up to `longest` falls into."""
    return tuple(size for size, smaller in zip(buckets, (0, *buckets), strict=False) if smaller < longest)


def _multiple(value: int, of: int) -> int:
    return -(-value // of) * of


def _ring_widths(tail: int, shapes: SamplerShapes) -> tuple[int, ...]:
    widest = tail + shapes.max_new_tokens
    if widest <= _SHORT_RING:
        return (widest,)
    steps = (-(-widest * i // _RING_STEPS) for i in range(1, _RING_STEPS + 1))
    return tuple(width for width in steps if width >= tail + shapes.chunk or width == widest)
