"""Log-probabilities of given tokens, for groups of rows that share a token prefix; never all logits at once.

The prefix of a group runs once and its keys serve every row of the group, in the forward and in the backward pass.
The head is applied to chunks of positions whose logits are recomputed in the backward pass, so that peak memory does
not grow with rows x tokens x vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.llama import Params, Prefix, forward, logits

Array = Any  # NumPy on the host, jax inside jitted code


class GroupedIds(NamedTuple):
    """N groups of rows, packed: row = prefix[n] + suffix, several suffixes side by side in one of C lanes of W tokens.

    prefix_ids int32[N, P] right-padded, prefix_length int32[N]. lane_ids, lane_positions, lane_segments int32[N, C,
    W]: each suffix is a segment (numbered from 1; 0 is padding) whose positions continue its prefix. row_tokens
    int32[N, S, T]: where in its group's C * W lane tokens token t of row s lies. A suffix starts with at least one
    context token, whose own log-prob is not needed.
    """

    prefix_ids: Array
    prefix_length: Array
    lane_ids: Array
    lane_positions: Array
    lane_segments: Array
    row_tokens: Array


def token_logprobs(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = 4096,
) -> jax.Array:
    """Returns float32[R]: log p(targets[r] | hidden[r]) at `temperature`; hidden [R, E], targets int32[R].

    `chunk` positions are projected to the vocabulary at a time.
    """

    def some(args):
        piece, wanted = args
        scores = logits(params, config, piece) / temperature
        chosen = jnp.take_along_axis(scores, wanted[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(scores, axis=-1)

    count = hidden.shape[0]
    if count <= chunk:
        return some((hidden, targets))
    padding = -count % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[-1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    return jax.lax.map(jax.checkpoint(some), (hidden, targets)).reshape(-1)[:count]


def _shifted(params, config, hidden, ids, temperature, chunk) -> jax.Array:
    """float32[B, T]: entry t is log p(ids[t] | earlier); entry 0, which has no predecessor here, is 0."""
    batch, length, width = hidden.shape
    flat = token_logprobs(
        params,
        config,
        hidden[:, :-1].reshape(-1, width),
        ids[:, 1:].reshape(-1),
        temperature=temperature,
        chunk=chunk,
    )
    return jnp.pad(flat.reshape(batch, length - 1), ((0, 0), (1, 0)))


def grouped_logprobs(
    params: Params,
    config: ModelConfig,
    grouped: GroupedIds,
    *,
    temperature: float = 1.0,
    remat: bool = False,
    chunk: int = 4096,
) -> jax.Array:
    """Returns float32[N, S, T]: log p(suffix token t | prefix, suffix tokens before t).

    The first token of a suffix and padding hold finite garbage: mask them. Differentiable in params.
    """
    _, prefix = _prefix_of(params, config, grouped, remat)
    return _suffix_logprobs(params, config, grouped, prefix, temperature, remat, chunk)


def grouped_and_prefix_logprobs(
    params: Params, config: ModelConfig, grouped: GroupedIds, *, remat: bool = False, chunk: int = 4096
) -> tuple[jax.Array, jax.Array]:
    """Returns suffix log-probs as `grouped_logprobs`, and float32[N, P]: log p(prefix token t | tokens before t)."""
    hidden, prefix = _prefix_of(params, config, grouped, remat)
    suffix_lp = _suffix_logprobs(params, config, grouped, prefix, 1.0, remat, chunk)
    return suffix_lp, _shifted(params, config, hidden, grouped.prefix_ids, 1.0, chunk)


def _prefix_of(params, config, grouped: GroupedIds, remat: bool) -> tuple[jax.Array, Prefix]:
    ids = grouped.prefix_ids
    valid = jnp.arange(ids.shape[1]) < grouped.prefix_length[:, None]
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    hidden, keys = forward(params, config, ids, positions, valid.astype(jnp.int32), keep_keys=True, remat=remat)
    return hidden, Prefix(keys.k, keys.v, valid)


def _suffix_logprobs(params, config, grouped: GroupedIds, prefix: Prefix, temperature, remat, chunk) -> jax.Array:
    groups, lanes, width = grouped.lane_ids.shape
    ids, positions, segments = (
        array.reshape(groups * lanes, width)
        for array in (grouped.lane_ids, grouped.lane_positions, grouped.lane_segments)
    )
    hidden, _ = forward(params, config, ids, positions, segments, prefix, remat=remat)
    lp = _shifted(params, config, hidden, ids, temperature, chunk).reshape(groups, lanes * width)
    rows = grouped.row_tokens.reshape(groups, -1)
    return jnp.take_along_axis(lp, rows, axis=1).reshape(grouped.row_tokens.shape)


def sequence_logprobs(
    params: Params, config: ModelConfig, ids: jax.Array, valid: jax.Array, *, chunk: int = 4096
) -> jax.Array:
    """Returns float32[B, T]: log p(ids[t] | ids[:t]) of right-padded sequences; 0 at t = 0."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    hidden, _ = forward(params, config, ids, positions, valid.astype(jnp.int32))
    return _shifted(params, config, hidden, ids, 1.0, chunk)
