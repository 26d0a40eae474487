"""Jitted admission of prompts into slots and chunk-stepped decode: what the sampler runs between two looks of the host.

S slots hold up to B/S rows each; the rows of a slot share a token prefix, whose keys lie in a table of their own.
`admit` runs prefixes and tails of new prompts and puts them into free slots while the other slots' rows wait;
`decode_chunk` draws up to `steps` tokens for every live row. Both donate the state. All rows write one common column of
a ring of key columns, so a row that comes later stands beside older ones without moving them. Nothing here knows about
text, episodes or judges.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.llama import Cache, Params, Prefix, extend, logits, make_prefix
from model.sampling import SamplingParams, draw

Array = Any  # NumPy on the host, jax inside jitted code


class PromptBatch(NamedTuple):
    """Shape-static prompts of N slots with R rows each, for admission.

    prefix_ids int32[N, P] right-padded, prefix_length int32[N]; tail_ids int32[N * R, T] LEFT-padded with at least one
    real token, tail_length int32[N * R]; row_keys uint32[N * R, 2]; limits int32[N * R]: tokens the row may draw (0 =
    padding row). source int32[S]: which of the N prompts each slot takes, -1 to keep what it holds; on D row shards
    the prompts of a slot are counted within its own shard.
    """

    prefix_ids: Array
    prefix_length: Array
    tail_ids: Array
    tail_length: Array
    row_keys: Array
    limits: Array
    source: Array


class DecodeState(NamedTuple):
    """Everything that changes while decoding; donated from call to call.

    cache: the rows' own keys. prefix: the slots' shared keys. last int32[B]: the token drawn last. drawn int32[B]: how
    many were drawn; limits int32[B]: how many may be. position int32[B]: of the next token to run. row_keys uint32[B,
    2]. done bool[B].
    """

    cache: Cache
    prefix: Prefix
    last: jax.Array
    drawn: jax.Array
    limits: jax.Array
    position: jax.Array
    row_keys: jax.Array
    done: jax.Array


class Drawn(NamedTuple):
    """What one call drew: tokens int32[B, K], logprobs float32[B, K], valid up to count int32[B]; done bool[B]."""

    tokens: jax.Array
    logprobs: jax.Array
    count: jax.Array
    done: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "slots", "rows", "prefix_width", "width"))
def empty_state(*, config: ModelConfig, slots: int, rows: int, prefix_width: int, width: int) -> DecodeState:
    """Returns a state of `slots` slots without prompts, for `rows` rows over a ring of `width` columns."""
    return DecodeState(
        cache=_empty_cache(config, rows, width),
        prefix=_empty_prefix(config, slots, prefix_width),
        last=jnp.zeros(rows, jnp.int32),
        drawn=jnp.zeros(rows, jnp.int32),
        limits=jnp.zeros(rows, jnp.int32),
        position=jnp.zeros(rows, jnp.int32),
        row_keys=jnp.zeros((rows, 2), jnp.uint32),
        done=jnp.ones(rows, bool),
    )


def _empty_keys(config: ModelConfig, rows: int, width: int) -> tuple[jax.Array, jax.Array]:
    shape = (config.num_layers, rows, width, config.num_kv_heads, config.head_dim)
    return jnp.zeros(shape, jnp.dtype(config.compute_dtype)), jnp.zeros(shape, jnp.dtype(config.compute_dtype))


def _empty_prefix(config: ModelConfig, slots: int, width: int) -> Prefix:
    return Prefix(*_empty_keys(config, slots, width), jnp.zeros((slots, width), bool))


def _empty_cache(config: ModelConfig, rows: int, width: int) -> Cache:
    return Cache(*_empty_keys(config, rows, width), jnp.full((rows, width), -1, jnp.int32), jnp.int32(0))


@functools.partial(
    jax.jit, static_argnames=("config", "sampling", "stop_ids", "shards"), donate_argnames="state", inline=False
)
def admit(
    params: Params,
    state: DecodeState,
    prompts: PromptBatch,
    *,
    config: ModelConfig,
    sampling: SamplingParams,
    stop_ids: tuple[int, ...],
    shards: int = 1,
) -> tuple[DecodeState, Drawn]:
    """Returns the state with the prompts in their slots and one token drawn for each of their rows.

    `shards` is how many devices the slot axis is split over: prompts go to slots of their own shard only, so that no
    key crosses devices. Rows of other slots draw nothing.
    """
    rows, tail = prompts.tail_ids.shape
    slots, width = prompts.prefix_ids.shape
    prefix = None
    if width:
        prefix_valid = jnp.arange(width) < prompts.prefix_length[:, None]
        prefix = make_prefix(params, config, prompts.prefix_ids, prefix_valid)
    start = jnp.repeat(prompts.prefix_length, rows // slots)
    offset = jnp.arange(tail) - (tail - prompts.tail_length)[:, None]
    positions = jnp.where(offset >= 0, start[:, None] + offset, -1)
    hidden, own = extend(params, config, prompts.tail_ids, positions, _empty_cache(config, rows, tail), prefix)
    drawn = jnp.zeros(rows, jnp.int32)
    tokens, logprobs = draw(logits(params, config, hidden[:, -1]), prompts.row_keys, drawn, sampling)
    live = prompts.limits > 0
    entering = DecodeState(
        cache=own,
        prefix=prefix or _empty_prefix(config, slots, 0),
        last=tokens,
        drawn=drawn + live,
        limits=prompts.limits,
        position=start + prompts.tail_length,
        row_keys=prompts.row_keys,
        done=~live | _is_stop(tokens, stop_ids) | (prompts.limits <= 1),
    )
    return _enter(state, entering, logprobs, prompts.source, shards)


def _is_stop(tokens: jax.Array, stop_ids: tuple[int, ...]) -> jax.Array:
    return jnp.isin(tokens, jnp.asarray(stop_ids, jnp.int32)) if stop_ids else jnp.zeros(tokens.shape, bool)


def _enter(state: DecodeState, entering: DecodeState, logprobs, source, shards: int) -> tuple[DecodeState, Drawn]:
    """Puts the entering slots where `source` says, in place of what was there."""
    rows_per_slot = state.done.shape[0] // source.shape[0]
    into_slot = _Replace(source, shards)
    within = jnp.arange(rows_per_slot)
    row_source = jnp.where(source[:, None] >= 0, source[:, None] * rows_per_slot + within, -1).reshape(-1)
    into_row = _Replace(row_source, shards)
    ring = state.cache.positions.shape[1]
    grow = ring - entering.cache.positions.shape[1]

    def turned(array, axis, fill=0):
        """Columns moved so that the entering rows' last one lies just before the common column."""
        padding = [(0, 0)] * array.ndim
        padding[axis] = (grow, 0)
        return jnp.roll(jnp.pad(array, padding, constant_values=fill), state.cache.column, axis)

    cache = Cache(
        into_row(state.cache.k, turned(entering.cache.k, 2), axis=1),
        into_row(state.cache.v, turned(entering.cache.v, 2), axis=1),
        into_row(state.cache.positions, turned(entering.cache.positions, 1, -1)),
        state.cache.column,
    )
    missing = state.prefix.valid.shape[1] - entering.prefix.valid.shape[1]
    widen = ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0))
    prefix = Prefix(
        into_slot(state.prefix.k, jnp.pad(entering.prefix.k, widen), axis=1),
        into_slot(state.prefix.v, jnp.pad(entering.prefix.v, widen), axis=1),
        into_slot(state.prefix.valid, jnp.pad(entering.prefix.valid, widen[1:3])),
    )
    names = ("last", "drawn", "limits", "position", "row_keys", "done")
    rest = {name: into_row(getattr(state, name), getattr(entering, name)) for name in names}
    entered = DecodeState(cache=cache, prefix=prefix, **rest)
    count = into_row(jnp.zeros_like(state.drawn), entering.drawn)
    zeros = jnp.zeros(state.done.shape, jnp.float32)
    return entered, Drawn(entered.last[:, None], into_row(zeros, logprobs)[:, None], count, entered.done)


class _Replace:
    """Takes entry source[i] of the new array where source[i] >= 0, else keeps entry i of the old one.

    A gather and a select rather than a scatter: both stay within a shard, and the select runs in place.
    """

    def __init__(self, source: jax.Array, shards: int):
        self._source = source
        self._shards = shards

    def __call__(self, old: jax.Array, new: jax.Array, axis: int = 0) -> jax.Array:
        split = self._shards
        index = jnp.maximum(self._source, 0).reshape(split, -1)
        apart = new.reshape(*new.shape[:axis], split, new.shape[axis] // split, *new.shape[axis + 1 :])
        taken = jax.vmap(lambda array, at: jnp.take(array, at, axis=axis), in_axes=(axis, 0), out_axes=axis)(
            apart, index
        ).reshape(old.shape)
        chosen = (self._source >= 0).reshape(-1, *(1,) * (old.ndim - axis - 1))
        return jnp.where(chosen, taken, old)


@functools.partial(jax.jit, static_argnames="width")
def widen(cache: Cache, *, width: int) -> Cache:
    """Returns the cache with a ring of `width` columns, oldest column first."""
    grow = width - cache.positions.shape[1]

    def unrolled(array, axis, fill=0):
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, grow)
        return jnp.pad(jnp.roll(array, -cache.column, axis), padding, constant_values=fill)

    column = jnp.int32(cache.positions.shape[1])
    return Cache(unrolled(cache.k, 2), unrolled(cache.v, 2), unrolled(cache.positions, 1, -1), column)


@functools.partial(
    jax.jit, static_argnames=("config", "sampling", "stop_ids", "steps"), donate_argnames="state", inline=False
)
def decode_chunk(
    params: Params,
    state: DecodeState,
    cancelled: jax.Array,
    *,
    config: ModelConfig,
    sampling: SamplingParams,
    stop_ids: tuple[int, ...],
    steps: int,
) -> tuple[DecodeState, Drawn]:
    """Returns the state after up to `steps` more tokens a row, and these; `cancelled` bool[B] rows stop at once."""
    rows = state.done.shape[0]
    kept = state.prefix  # outside the loop's carry: it is only read
    prefix = kept if kept.valid.shape[1] else None
    before = state.drawn

    def unfinished(carry):
        count, state, _, _ = carry
        return (count < steps) & jnp.any(~state.done)

    def step(carry):
        count, state, tokens, logprobs = carry
        live = ~state.done
        position = jnp.where(live, state.position, -1)
        hidden, cache = extend(params, config, state.last[:, None], position[:, None], state.cache, prefix)
        token, logprob = draw(logits(params, config, hidden[:, 0]), state.row_keys, state.drawn, sampling)
        at = (jnp.int32(0), count)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], at)
        logprobs = jax.lax.dynamic_update_slice(logprobs, logprob[:, None], at)
        drawn = state.drawn + live
        state = state._replace(
            cache=cache,
            last=jnp.where(live, token, state.last),
            drawn=drawn,
            position=state.position + live,
            done=state.done | _is_stop(token, stop_ids) | (drawn >= state.limits),
        )
        return count + 1, state, tokens, logprobs

    state = state._replace(done=state.done | cancelled, prefix=None)
    start = (jnp.int32(0), state, jnp.zeros((rows, steps), jnp.int32), jnp.zeros((rows, steps), jnp.float32))
    _, state, tokens, logprobs = jax.lax.while_loop(unfinished, step, start)
    return state._replace(prefix=kept), Drawn(tokens, logprobs, state.drawn - before, state.done)
