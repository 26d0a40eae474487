"""Jitted prefill and chunk-stepped decode over groups of rows that share a token prefix.

`prefill` runs each group's common prefix once, then every row's own tail, and draws the first token; `decode_chunk`
draws up to `steps` more with the state donated, leaving early when all rows are done. Between chunks the host may
read finished rows and cancel others. Nothing here knows about text, episodes or judges.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.llama import Cache, Params, Prefix, decode, forward, logits, make_prefix
from model.sampling import SamplingParams, draw

Array = Any  # NumPy on the host, jax inside jitted code


class PromptBatch(NamedTuple):
    """Shape-static prompts of N groups with B/N rows each.

    prefix_ids int32[N, P] right-padded, prefix_length int32[N]; tail_ids int32[B, T] LEFT-padded with at least one
    real token, tail_length int32[B]; row_keys uint32[B, 2]; limits int32[B]: tokens the row may still draw (0 =
    padding row).
    """

    prefix_ids: Array
    prefix_length: Array
    tail_ids: Array
    tail_length: Array
    row_keys: Array
    limits: Array


class DecodeState(NamedTuple):
    """Everything that changes while decoding; donated from chunk to chunk.

    tokens int32[B, M], logprobs float32[B, M]: what was drawn, valid up to `drawn` int32[B]; positions int32[B]:
    position of the next token; done bool[B].
    """

    cache: Cache
    tokens: jax.Array
    logprobs: jax.Array
    drawn: jax.Array
    positions: jax.Array
    done: jax.Array


def _record(state: DecodeState, tokens, logprobs, limits, stop_ids: tuple[int, ...]) -> DecodeState:
    """Returns the state with one drawn token appended to every row that is not done."""
    live = ~state.done
    rows = jnp.arange(tokens.shape[0])
    column = jnp.where(live, state.drawn, state.tokens.shape[1])
    drawn = state.drawn + live
    stopped = jnp.isin(tokens, jnp.asarray(stop_ids, jnp.int32)) if stop_ids else jnp.zeros_like(live)
    return state._replace(
        tokens=state.tokens.at[rows, column].set(tokens, mode="drop"),
        logprobs=state.logprobs.at[rows, column].set(logprobs, mode="drop"),
        drawn=drawn,
        done=state.done | (live & stopped) | (drawn >= limits),
    )


@functools.partial(jax.jit, static_argnames=("config", "sampling", "stop_ids", "max_new_tokens"))
def prefill(
    params: Params,
    batch: PromptBatch,
    *,
    config: ModelConfig,
    sampling: SamplingParams,
    stop_ids: tuple[int, ...],
    max_new_tokens: int,
) -> tuple[DecodeState, Prefix]:
    """Returns the state after the first drawn token, and the read-only prefix keys."""
    rows, tail = batch.tail_ids.shape
    groups, prefix_width = batch.prefix_ids.shape
    prefix_valid = jnp.arange(prefix_width) < batch.prefix_length[:, None]
    prefix = make_prefix(params, config, batch.prefix_ids, prefix_valid)
    own_start = jnp.repeat(batch.prefix_length, rows // groups)
    padding = tail - batch.tail_length
    offset = jnp.arange(tail) - padding[:, None]
    positions = own_start[:, None] + jnp.maximum(offset, 0)
    segments = (offset >= 0).astype(jnp.int32)
    hidden, keys = forward(params, config, batch.tail_ids, positions, segments, prefix, keep_keys=True)
    width = tail + max_new_tokens
    grow = ((0, 0), (0, 0), (0, width - tail), (0, 0), (0, 0))
    cache = Cache(
        jnp.pad(keys.k, grow),
        jnp.pad(keys.v, grow),
        jnp.pad(jnp.where(offset >= 0, positions, -1), ((0, 0), (0, width - tail)), constant_values=-1),
        jnp.int32(tail),
    )
    state = DecodeState(
        cache=cache,
        tokens=jnp.zeros((rows, max_new_tokens), jnp.int32),
        logprobs=jnp.zeros((rows, max_new_tokens), jnp.float32),
        drawn=jnp.zeros(rows, jnp.int32),
        positions=own_start + batch.tail_length,
        done=batch.limits <= 0,
    )
    first = draw(logits(params, config, hidden[:, -1]), batch.row_keys, state.drawn, sampling)
    return _record(state, *first, batch.limits, stop_ids), prefix


@functools.partial(
    jax.jit, static_argnames=("config", "sampling", "stop_ids", "steps"), donate_argnames="state", inline=False
)
def decode_chunk(
    params: Params,
    state: DecodeState,
    prefix: Prefix,
    batch: PromptBatch,
    cancelled: jax.Array,
    *,
    config: ModelConfig,
    sampling: SamplingParams,
    stop_ids: tuple[int, ...],
    steps: int,
) -> DecodeState:
    """Returns the state after up to `steps` more tokens a row; `cancelled` bool[B] rows stop at once."""

    def unfinished(carry):
        count, state = carry
        return (count < steps) & jnp.any(~state.done)

    def step(carry):
        count, state = carry
        rows = jnp.arange(state.tokens.shape[0])
        last = state.tokens[rows, jnp.maximum(state.drawn - 1, 0)]
        hidden, cache = decode(params, config, last, state.positions, state.cache, prefix)
        drawn = draw(logits(params, config, hidden), batch.row_keys, state.drawn, sampling)
        state = state._replace(cache=cache, positions=state.positions + 1)
        return count + 1, _record(state, *drawn, batch.limits, stop_ids)

    state = state._replace(done=state.done | cancelled)
    return jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]
