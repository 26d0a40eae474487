"""Jitted admission of prompts into slots and chunk-stepped decode: what the sampler runs between two looks of the host.

S slots hold up to B/S rows each; the rows of a slot share a token prefix, whose keys lie in a table of their own.
`admit` runs prefixes and tails of new prompts and puts them into free slots while the other slots' rows wait;
`decode_chunk` draws up to `steps` tokens for every live row. Both donate the state. All rows write one common column of
a ring of key columns, so a row that comes later stands beside older ones without moving them; or each a column of its
own, so that it draws the same, to the bit, whenever it came. Nothing here knows about text, episodes or judges.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.llama import Cache, Params, Prefix, extend, logits, make_prefix
from model.sampling import RowSampling, SamplingParams, draw
from model.stored_keys import dtype_of, empty_keys, layers_of, map_tokens, stacked, store

Array = Any  # NumPy on the host, jax inside jitted code


class PromptBatch(NamedTuple):
    """Shape-static prompts of N slots with R rows each, for admission.

    prefix_ids int32[N, P] right-padded, prefix_length int32[N]; tail_ids int32[N * R, T] LEFT-padded with at least one
    real token, tail_length int32[N * R]; row_keys uint32[N * R, 2]; limits int32[N * R]: tokens the row may draw (0 =
    padding row). source int32[S]: which of the N prompts each slot takes, -1 to keep what it holds; on D row shards
    the prompts of a slot are counted within its own shard. kept int32[N]: the slot of an earlier call, within the
    shard, that holds the prefix's keys. kept_rows int32[N * R]: the row of that call, within the shard, that holds keys
    of the tokens between prefix and tail, in kept_columns int32[N * R, H] of its ring, left-padded with -1.
    """

    prefix_ids: Array
    prefix_length: Array
    tail_ids: Array
    tail_length: Array
    row_keys: Array
    limits: Array
    source: Array
    kept: Array
    kept_rows: Array
    kept_columns: Array


class Kept(NamedTuple):
    """Keys of an earlier call of the same weights: prefixes, and what rows ran after them if rows go on from there.

    Of that call's slots and rows as it left them, or of the prompts to be admitted (`carry_over`).
    """

    prefix: Prefix
    cache: Cache | None


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


@functools.partial(
    jax.jit, static_argnames=("config", "slots", "rows", "prefix_width", "width", "unstacked", "kv_dtype")
)
def empty_state(
    *,
    config: ModelConfig,
    slots: int,
    rows: int,
    prefix_width: int,
    width: int,
    unstacked: bool = False,
    kv_dtype: str = "compute",
) -> DecodeState:
    """Returns a state of `slots` slots without prompts, for `rows` rows over a ring of `width` columns.

    unstacked: keys lie layer by layer, for parameters from `llama.unstack`. kv_dtype: one of `stored_keys.KEY_DTYPES`.
    """
    dtype = config.compute_dtype if kv_dtype == "compute" else kv_dtype
    cache, prefix = _empty_cache(config, rows, width, dtype), _empty_prefix(config, slots, prefix_width, dtype)
    if unstacked:
        cache = cache._replace(k=layers_of(cache.k), v=layers_of(cache.v))
        prefix = prefix._replace(k=layers_of(prefix.k), v=layers_of(prefix.v))
    return DecodeState(
        cache=cache,
        prefix=prefix,
        last=jnp.zeros(rows, jnp.int32),
        drawn=jnp.zeros(rows, jnp.int32),
        limits=jnp.zeros(rows, jnp.int32),
        position=jnp.zeros(rows, jnp.int32),
        row_keys=jnp.zeros((rows, 2), jnp.uint32),
        done=jnp.ones(rows, bool),
    )


def _empty_keys(config: ModelConfig, rows: int, width: int, dtype: Any) -> tuple[Any, Any]:
    shape = (config.num_layers, rows, config.num_kv_heads, width, config.head_dim)
    return empty_keys(shape, dtype), empty_keys(shape, dtype)


def _empty_prefix(config: ModelConfig, slots: int, width: int, dtype: Any) -> Prefix:
    return Prefix(*_empty_keys(config, slots, width, dtype), jnp.zeros((slots, width), bool))


def _empty_cache(config: ModelConfig, rows: int, width: int, dtype: Any) -> Cache:
    return Cache(*_empty_keys(config, rows, width, dtype), jnp.full((rows, width), -1, jnp.int32), jnp.int32(0))


@functools.partial(jax.jit, static_argnames=("config", "sampling", "stop_ids", "shards"), donate_argnames="state")
def admit(
    params: Params,
    state: DecodeState,
    prompts: PromptBatch,
    kept: Kept | None = None,
    apart: RowSampling | None = None,
    allowed: jax.Array | None = None,
    *,
    config: ModelConfig,
    sampling: SamplingParams,
    stop_ids: tuple[int, ...],
    shards: int = 1,
) -> tuple[DecodeState, Drawn]:
    """Returns the state with the prompts in their slots and one token drawn for each of their rows, no others.

    With `kept` (of `carry_over`) the prompts' prefixes, and the first tokens after them, are taken instead of run.
    apart, allowed: settings of each row in place of `sampling`, and what it may draw, as in `draw`. shards: how many
    devices the slot axis is split over; prompts go to slots of their own shard, so that no key crosses devices.
    """
    rows, tail = prompts.tail_ids.shape
    slots, width = prompts.prefix_ids.shape
    dtype = dtype_of(state.cache.k)
    prefix = None
    if width:
        prefix = _prefix_of(params, config, prompts, dtype) if kept is None else kept.prefix
    history = prompts.kept_columns.shape[1]
    own = _empty_cache(config, rows, tail, dtype)
    if history:
        before = _empty_cache(config, rows, history, dtype) if kept is None or kept.cache is None else kept.cache
        own = _behind(before, tail)
    start = jnp.repeat(prompts.prefix_length, rows // slots) + jnp.sum(prompts.kept_columns >= 0, axis=1)
    offset = jnp.arange(tail) - (tail - prompts.tail_length)[:, None]
    positions = jnp.where(offset >= 0, start[:, None] + offset, -1)
    hidden, own = extend(params, config, prompts.tail_ids, positions, own, prefix)
    drawn = jnp.zeros(rows, jnp.int32)
    tokens, logprobs = draw(logits(params, config, hidden[:, -1]), prompts.row_keys, drawn, sampling, apart, allowed)
    live = prompts.limits > 0
    entering = DecodeState(
        cache=own,
        prefix=prefix or _empty_prefix(config, slots, 0, dtype),
        last=tokens,
        drawn=drawn + live,
        limits=prompts.limits,
        position=start + prompts.tail_length,
        row_keys=prompts.row_keys,
        done=~live | _is_stop(tokens, stop_ids) | (prompts.limits <= 1),
    )
    return _enter(state, entering, logprobs, prompts.source, shards)


def _prefix_of(params: Params, config: ModelConfig, prompts: PromptBatch, dtype: Any) -> Prefix:
    """The prompts' prefixes, run and stored."""
    valid = jnp.arange(prompts.prefix_ids.shape[1]) < prompts.prefix_length[:, None]
    prefix = make_prefix(params, config, prompts.prefix_ids, valid)
    return prefix._replace(k=store(prefix.k, dtype), v=store(prefix.v, dtype))


def _behind(cache: Cache, tail: int) -> Cache:
    """Returns the cache with `tail` empty columns to its right, which are written next."""
    k, v = map_tokens(lambda axis, array: _padded(axis, array, (0, tail)), (cache.k, cache.v))
    return Cache(k, v, _padded(-1, cache.positions, (0, tail), -1), jnp.int32(cache.positions.shape[1]))


@functools.partial(jax.jit, static_argnames=("prefix_width", "shards"))
def carry_over(
    kept: Kept, prefix_length: Array, slots: Array, rows: Array, columns: Array, *, prefix_width: int, shards: int = 1
) -> Kept:
    """Returns the keys that N prompts need of an earlier call: prefixes [L, N, K, P, D] and, where rows of that call
    are continued, the columns [L, N * R, K, H, D] of what they ran after the prefix; arrays as in `PromptBatch`.
    """
    # A program of its own, so that admission does not depend on the shapes of that call.
    valid = jnp.arange(prefix_width) < prefix_length[:, None]

    def fitted(axis, array):
        taken = jax.lax.slice_in_dim(array, 0, min(prefix_width, array.shape[axis]), axis=axis)
        return _padded(axis, taken, (0, prefix_width - taken.shape[axis]))

    def prefixes(held):
        return map_tokens(fitted, jax.tree.map(lambda array: _take(array, slots, shards, -4), stacked(held)))

    prefix = Prefix(prefixes(kept.prefix.k), prefixes(kept.prefix.v), valid)
    if kept.cache is None:
        return Kept(prefix, None)
    there = columns >= 0
    places = jnp.maximum(columns, 0)[None, :, None, :, None]

    def histories(held):
        taken = jax.tree.map(lambda array: _take(array, rows, shards, -4), stacked(held))
        return map_tokens(lambda axis, x: jnp.take_along_axis(x, places.swapaxes(-2, axis), axis=axis), taken)

    start = jnp.repeat(prefix_length, there.shape[0] // prefix_length.shape[0])[:, None]
    positions = jnp.where(there, start + jnp.cumsum(there, axis=1) - 1, -1).astype(jnp.int32)
    return Kept(prefix, Cache(histories(kept.cache.k), histories(kept.cache.v), positions, jnp.int32(0)))


def _is_stop(tokens: jax.Array, stop_ids: tuple[int, ...]) -> jax.Array:
    return jnp.isin(tokens, jnp.asarray(stop_ids, jnp.int32)) if stop_ids else jnp.zeros(tokens.shape, bool)


def _enter(state: DecodeState, entering: DecodeState, logprobs, source, shards: int) -> tuple[DecodeState, Drawn]:
    """Puts the entering slots where `source` says, in place of what was there."""
    rows_per_slot = state.done.shape[0] // source.shape[0]
    rows_of_slot = source[:, None] * rows_per_slot + jnp.arange(rows_per_slot)
    into_slot = _Replace(source, shards)
    into_row = _Replace(jnp.where(source[:, None] >= 0, rows_of_slot, -1).reshape(-1), shards)
    ring = state.cache.positions.shape[1]
    grow, column = ring - entering.cache.positions.shape[1], state.cache.column

    def turned(axis, array, fill=0):
        """Columns moved so that the entering rows' last one lies just before the common column, or before the first."""
        moved = _padded(axis, array, (grow, 0), fill)
        return moved if column.ndim else jnp.roll(moved, column, axis)

    def rows_of(old, new):
        return jax.tree.map(lambda o, n: into_row(o, n, -4), old, _like(old, map_tokens(turned, new)))

    def slots_of(old, new):
        wide = map_tokens(lambda axis, array: _padded(axis, array, (0, missing)), new)
        return jax.tree.map(lambda o, n: into_slot(o, n, -4), old, _like(old, wide))

    cache = Cache(
        rows_of(state.cache.k, entering.cache.k),
        rows_of(state.cache.v, entering.cache.v),
        into_row(state.cache.positions, turned(-1, entering.cache.positions, -1), -2),
        into_row(column, jnp.zeros_like(entering.drawn)) if column.ndim else column,
    )
    missing = state.prefix.valid.shape[1] - entering.prefix.valid.shape[1]
    prefix = Prefix(
        slots_of(state.prefix.k, entering.prefix.k),
        slots_of(state.prefix.v, entering.prefix.v),
        into_slot(state.prefix.valid, _padded(-1, entering.prefix.valid, (0, missing)), -2),
    )
    names = ("last", "drawn", "limits", "position", "row_keys", "done")
    rest = {name: into_row(getattr(state, name), getattr(entering, name)) for name in names}
    entered = DecodeState(cache=cache, prefix=prefix, **rest)
    count, zeros = into_row(jnp.zeros_like(state.drawn), entering.drawn), jnp.zeros(state.done.shape, jnp.float32)
    return entered, Drawn(entered.last[:, None], into_row(zeros, logprobs)[:, None], count, entered.done)


def _like(old: Any, new: Any) -> Any:
    """Keys of all layers as `old` has them: stacked, or a tuple of layers."""
    return layers_of(new) if isinstance(old, tuple) else new


def _padded(axis: int, array: jax.Array, width: tuple[int, int], fill: int = 0) -> jax.Array:
    padding = [(0, 0)] * array.ndim
    padding[axis] = width
    return jnp.pad(array, padding, constant_values=fill)


class _Replace:
    """Takes entry source[i] of the new array where source[i] >= 0, else keeps entry i of the old one.

    On one shard only the new entries are written. On several a gather and a select stay within each shard, where a
    scatter might not.
    """

    def __init__(self, source: jax.Array, shards: int):
        self._source = source
        self._shards = shards

    def __call__(self, old: jax.Array, new: jax.Array, axis: int = 0) -> jax.Array:
        axis %= old.ndim
        if self._shards == 1:
            count = new.shape[axis]
            nowhere = jnp.where(self._source >= 0, self._source, count)
            places = jnp.full(count, old.shape[axis]).at[nowhere].set(jnp.arange(old.shape[axis]), mode="drop")
            return old.at[(slice(None),) * axis + (places,)].set(new, mode="drop", unique_indices=True)
        taken = _take(new, jnp.maximum(self._source, 0), self._shards, axis)
        chosen = (self._source >= 0).reshape(-1, *(1,) * (old.ndim - axis - 1))
        return jnp.where(chosen, taken, old)


def _take(array: jax.Array, index: jax.Array, shards: int, axis: int) -> jax.Array:
    """Entries of one axis that is split over `shards` devices; `index` int32 counts within a shard."""
    axis %= array.ndim
    split = (*array.shape[:axis], shards, array.shape[axis] // shards, *array.shape[axis + 1 :])
    take = jax.vmap(lambda own, at: jnp.take(own, at, axis=axis), in_axes=(axis, 0), out_axes=axis)
    taken = take(array.reshape(split), index.reshape(shards, -1))
    return taken.reshape(*array.shape[:axis], index.shape[0], *array.shape[axis + 1 :])


@functools.partial(jax.jit, static_argnames="shards")
def compact(state: DecodeState, slots: jax.Array, *, shards: int = 1) -> DecodeState:
    """Returns the state with the given slots alone, int32[S'] counted within their shard; the others are dropped."""
    rows_per_slot = state.done.shape[0] // state.prefix.valid.shape[0]
    rows = (slots[:, None] * rows_per_slot + jnp.arange(rows_per_slot)).reshape(-1)

    def rows_of(array, axis=0):
        return _take(array, rows, shards, axis)

    def slots_of(array, axis=0):
        return _take(array, slots, shards, axis)

    cache, prefix = state.cache, state.prefix
    k, v = jax.tree.map(lambda array: rows_of(array, -4), (cache.k, cache.v))
    prefix_k, prefix_v = jax.tree.map(lambda array: slots_of(array, -4), (prefix.k, prefix.v))
    rest = state._replace(cache=None, prefix=None)
    return jax.tree.map(rows_of, rest)._replace(
        cache=Cache(k, v, rows_of(cache.positions), cache.column),
        prefix=Prefix(prefix_k, prefix_v, slots_of(prefix.valid)),
    )


@functools.partial(jax.jit, static_argnames="width")
def widen(cache: Cache, *, width: int) -> Cache:
    """Returns the cache with a ring of `width` columns, oldest column first."""
    grow = width - cache.positions.shape[1]

    def unrolled(axis, array, fill=0):
        return _padded(axis, jnp.roll(array, -cache.column, axis), (0, grow), fill)

    k, v = map_tokens(unrolled, (cache.k, cache.v))
    column = jnp.int32(cache.positions.shape[1])
    return Cache(k, v, unrolled(-1, cache.positions, -1), column)


@functools.partial(jax.jit, static_argnames=("config", "sampling", "stop_ids", "steps"), donate_argnames="state")
def decode_chunk(
    params: Params,
    state: DecodeState,
    cancelled: jax.Array,
    enough: jax.Array,
    apart: RowSampling | None = None,
    allowed: jax.Array | None = None,
    *,
    config: ModelConfig,
    sampling: SamplingParams,
    stop_ids: tuple[int, ...],
    steps: int,
) -> tuple[DecodeState, Drawn]:
    """Returns the state after up to `steps` more tokens a row, and these; `apart` and `allowed` as in `admit`.

    `cancelled` bool[B] rows stop at once. The call ends once `enough` (int32) rows are done: others take their slots.
    """
    rows = state.done.shape[0]
    kept = state.prefix  # outside the loop's carry: it is only read
    prefix = kept if kept.valid.shape[1] else None
    before = state.drawn

    def unfinished(carry):
        count, state, _, _ = carry
        return (count < steps) & (jnp.sum(state.done) < enough)

    def step(carry):
        count, state, tokens, logprobs = carry
        live = ~state.done
        position = jnp.where(live, state.position, -1)
        hidden, cache = extend(params, config, state.last[:, None], position[:, None], state.cache, prefix)
        found = logits(params, config, hidden[:, 0])
        token, logprob = draw(found, state.row_keys, state.drawn, sampling, apart, allowed)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, count))
        logprobs = jax.lax.dynamic_update_slice(logprobs, logprob[:, None], (0, count))
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
