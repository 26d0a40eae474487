"""Log-probabilities of given tokens, for groups of rows that share a token prefix; never all logits at once.

The prefix of a group runs once and its keys serve every row of the group, in the forward and in the backward pass.
The head is applied by `model.token_scores`, so that peak memory does not grow with rows x tokens x vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.llama import Params, Prefix, forward, run_prefix
from model.remat import Remat
from model.token_scores import CHUNK, TokenScores, token_scores

Array = Any  # NumPy on the host, jax inside jitted code


class GroupedIds(NamedTuple):
    """N groups of packed rows: row = a prefix of its group + suffix, suffixes side by side in C lanes of W tokens.

    prefix_ids, prefix_positions, prefix_segments int32[N, P]: each prefix is a segment (numbered from 1; 0 is padding)
    with positions from 0. lane_ids, lane_positions, lane_segments, lane_prefixes int32[N, C, W]: each suffix is a
    segment whose positions continue its prefix, the segment of that number. row_tokens int32[N, S, T]: where in its
    group's C * W lane tokens token t of row s lies. A suffix starts with at least one context token, whose own log-prob
    is not needed.
    """

    prefix_ids: Array
    prefix_positions: Array
    prefix_segments: Array
    lane_ids: Array
    lane_positions: Array
    lane_segments: Array
    lane_prefixes: Array
    row_tokens: Array


def _shifted(params, config, hidden, ids, temperature, chunk, entropy=False) -> TokenScores:
    """float32[B, T] each: entry t is about p(ids[t] | earlier); entry 0, which has no predecessor here, is 0."""
    batch, length, width = hidden.shape
    # The last position has no successor; it stays, so that rows divide among pieces and devices as they did before.
    found = token_scores(
        params,
        config,
        hidden.reshape(-1, width),
        jnp.roll(ids, -1, axis=1).reshape(-1),
        temperature=temperature,
        entropy=entropy,
        chunk=chunk,
    )
    return jax.tree.map(lambda flat: jnp.pad(flat.reshape(batch, length)[:, :-1], ((0, 0), (1, 0))), found)


def grouped_logprobs(
    params: Params,
    config: ModelConfig,
    grouped: GroupedIds,
    *,
    temperature: float = 1.0,
    remat: Remat = "none",
    chunk: int = CHUNK,
) -> jax.Array:
    """Returns float32[N, S, T]: log p(suffix token t | prefix, suffix tokens before t).

    The first token of a suffix and padding hold finite garbage: mask them. Differentiable in params.
    """
    return grouped_scores(
        params, config, grouped, temperature=temperature, remat=remat, chunk=chunk, entropy=False
    ).logprob


def grouped_scores(
    params: Params,
    config: ModelConfig,
    grouped: GroupedIds,
    *,
    temperature: float = 1.0,
    remat: Remat = "none",
    chunk: int = CHUNK,
    entropy: bool = True,
) -> TokenScores:
    """Returns log-probs as `grouped_logprobs`, and the entropies of the distributions that they are taken from."""
    _, prefix = _prefix_of(params, config, grouped, remat)
    return _suffix_scores(params, config, grouped, prefix, temperature, remat, chunk, entropy)


def grouped_and_prefix_logprobs(
    params: Params, config: ModelConfig, grouped: GroupedIds, *, remat: Remat = "none", chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """Returns suffix log-probs as `grouped_logprobs`, and float32[N, P]: log p(prefix token t | tokens of the
    same prefix before t), garbage at the first token of each."""
    hidden, prefix = _prefix_of(params, config, grouped, remat)
    suffix = _suffix_scores(params, config, grouped, prefix, 1.0, remat, chunk)
    return suffix.logprob, _shifted(params, config, hidden, grouped.prefix_ids, 1.0, chunk).logprob


def _prefix_of(params, config, grouped: GroupedIds, remat: Remat) -> tuple[jax.Array, Prefix]:
    """Hidden states of the prefixes and their keys, each visible to the lane tokens that continue it."""
    segments = grouped.prefix_segments
    hidden, prefix = run_prefix(params, config, grouped.prefix_ids, segments, grouped.prefix_positions, remat=remat)
    continued = grouped.lane_prefixes.reshape(len(segments), -1, 1)
    visible = (continued == segments[:, None, :]) & (continued > 0)
    return hidden, prefix._replace(valid=visible, positions=grouped.prefix_positions)


def _suffix_scores(
    params, config, grouped: GroupedIds, prefix: Prefix, temperature, remat, chunk, entropy=False
) -> TokenScores:
    groups, lanes, width = grouped.lane_ids.shape
    ids, positions, segments = (
        array.reshape(groups * lanes, width)
        for array in (grouped.lane_ids, grouped.lane_positions, grouped.lane_segments)
    )
    hidden, _ = forward(params, config, ids, positions, segments, prefix, remat=remat)
    found = _shifted(params, config, hidden, ids, temperature, chunk, entropy)
    rows = grouped.row_tokens.reshape(groups, -1)

    def by_row(flat):
        picked = jnp.take_along_axis(flat.reshape(groups, lanes * width), rows, axis=1)
        return picked.reshape(grouped.row_tokens.shape)

    return jax.tree.map(by_row, found)


def sequence_logprobs(
    params: Params, config: ModelConfig, ids: jax.Array, valid: jax.Array, *, chunk: int = CHUNK
) -> jax.Array:
    """Returns float32[B, T]: log p(ids[t] | ids[:t]) of right-padded sequences; 0 at t = 0."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    hidden, _ = forward(params, config, ids, positions, valid.astype(jnp.int32))
    return _shifted(params, config, hidden, ids, 1.0, chunk).logprob
