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
from model.token_masks import Allowed
from model.token_scores import CHUNK, TokenScores, TopTokens, token_scores, token_top_k

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


def _next(array: jax.Array) -> jax.Array:
    """[B, T, ...] → [B * T, ...], each entry that of the token behind it.

    The last position has no successor; it stays, so that rows divide among pieces and devices as they did before.
    """
    return jnp.roll(array, -1, axis=1).reshape(-1, *array.shape[2:])


def _shifted(found: Any, hidden: jax.Array) -> Any:
    """Undoes `_next`: arrays [B, T, ...] whose entry t is about p(ids[t] | earlier); entry 0, which has no predecessor
    here, is 0."""
    batch, length, _ = hidden.shape

    def shifted(flat):
        whole = flat.reshape(batch, length, *flat.shape[1:])[:, :-1]
        return jnp.pad(whole, ((0, 0), (1, 0), *((0, 0) for _ in flat.shape[1:])))

    return jax.tree.map(shifted, found)


def _scores(
    params, config, hidden, ids, temperature, chunk, entropy=False, candidates=None, allowed: Allowed | None = None
) -> TokenScores:
    """Each [B, T] or [B, T, K]: scores of ids int32[B, T], and of candidates int32[B, T, K] in their places."""
    found = token_scores(
        params,
        config,
        hidden.reshape(-1, hidden.shape[-1]),
        _next(ids),
        temperature=temperature,
        entropy=entropy,
        candidates=None if candidates is None else _next(candidates),
        allowed=None if allowed is None else allowed._replace(index=_next(allowed.index)),
        chunk=chunk,
    )
    return _shifted(found, hidden)


def grouped_logprobs(
    params: Params,
    config: ModelConfig,
    grouped: GroupedIds,
    *,
    temperature: float = 1.0,
    remat: Remat = "none",
    chunk: int = CHUNK,
    allowed: Allowed | None = None,
) -> jax.Array:
    """Returns float32[N, S, T]: log p(suffix token t | prefix, suffix tokens before t).

    The first token of a suffix and padding hold finite garbage: mask them. Differentiable in params.
    """
    return grouped_scores(
        params, config, grouped, temperature=temperature, remat=remat, chunk=chunk, entropy=False, allowed=allowed
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
    candidates: jax.Array | None = None,
    wanted: jax.Array | None = None,
    allowed: Allowed | None = None,
) -> TokenScores:
    """Returns log-probs as `grouped_logprobs`, and the entropies of the distributions that they are taken from.

    candidates int32[N, S, T, K]: further tokens in the place of suffix token t, whose log-probs [N, S, T, K] are
    returned too where `wanted` bool[N, S, T] holds, which must be False in padding; elsewhere they are garbage.
    allowed: the tokens over which distributions are taken; index int32[N, S, T], 0 (everything) in padding.
    """
    _, prefix = _prefix_of(params, config, grouped, remat)
    hidden, ids = _lanes(params, config, grouped, prefix, remat)
    if candidates is not None:
        candidates = _by_lane(candidates, wanted, grouped).reshape(*ids.shape, -1)
    if allowed is not None:
        index = _by_lane(allowed.index[..., None], allowed.index > 0, grouped)
        allowed = allowed._replace(index=index.reshape(ids.shape))
    found = _scores(params, config, hidden, ids, temperature, chunk, entropy, candidates, allowed)
    return _by_row(found, grouped)


def grouped_top_k(
    params: Params,
    config: ModelConfig,
    grouped: GroupedIds,
    k: int,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> TopTokens:
    """Returns log-probs as `grouped_logprobs`, and the `k` likeliest tokens in the place of each suffix token: ids
    int32[N, S, T, k] and log-probs float32[N, S, T, k] over the full vocabulary.
    """
    _, prefix = _prefix_of(params, config, grouped, "none")
    hidden, ids = _lanes(params, config, grouped, prefix, "none")
    flat = hidden.reshape(-1, hidden.shape[-1])
    found = token_top_k(params, config, flat, _next(ids), k, temperature=temperature, chunk=chunk)
    return _by_row(_shifted(found, hidden), grouped)


def grouped_and_prefix_logprobs(
    params: Params, config: ModelConfig, grouped: GroupedIds, *, remat: Remat = "none", chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """Returns suffix log-probs as `grouped_logprobs`, and float32[N, P]: log p(prefix token t | tokens of the
    same prefix before t), garbage at the first token of each."""
    hidden, prefix = _prefix_of(params, config, grouped, remat)
    in_lanes, ids = _lanes(params, config, grouped, prefix, remat)
    suffix = _by_row(_scores(params, config, in_lanes, ids, 1.0, chunk), grouped)
    return suffix.logprob, _scores(params, config, hidden, grouped.prefix_ids, 1.0, chunk).logprob


def _prefix_of(params, config, grouped: GroupedIds, remat: Remat) -> tuple[jax.Array, Prefix]:
    """Hidden states of the prefixes and their keys, each visible to the lane tokens that continue it."""
    segments = grouped.prefix_segments
    hidden, prefix = run_prefix(params, config, grouped.prefix_ids, segments, grouped.prefix_positions, remat=remat)
    continued = grouped.lane_prefixes.reshape(len(segments), -1, 1)
    visible = (continued == segments[:, None, :]) & (continued > 0)
    return hidden, prefix._replace(valid=visible, positions=grouped.prefix_positions)


def _lanes(params, config, grouped: GroupedIds, prefix: Prefix, remat: Remat) -> tuple[jax.Array, jax.Array]:
    """Returns hidden states [N * C, W, E] and ids [N * C, W] of the lanes."""
    groups, lanes, width = grouped.lane_ids.shape
    ids, positions, segments = (
        array.reshape(groups * lanes, width)
        for array in (grouped.lane_ids, grouped.lane_positions, grouped.lane_segments)
    )
    return forward(params, config, ids, positions, segments, prefix, remat=remat)[0], ids


def _by_row(found: Any, grouped: GroupedIds) -> Any:
    """Arrays [N * C, W, ...] of lane tokens → [N, S, T, ...] of the rows' tokens."""
    groups, lanes, width = grouped.lane_ids.shape
    rows = grouped.row_tokens.reshape(groups, -1)

    def by_row(flat):
        rest = flat.shape[2:]
        where = rows.reshape(*rows.shape, *(1 for _ in rest))
        picked = jnp.take_along_axis(flat.reshape(groups, lanes * width, *rest), where, axis=1)
        return picked.reshape(*grouped.row_tokens.shape, *rest)

    return jax.tree.map(by_row, found)


def _by_lane(array: jax.Array, wanted: Any, grouped: GroupedIds) -> jax.Array:
    """[N, S, T, K] of the rows' wanted tokens → [N, C * W, K] of lane tokens; 0 elsewhere."""
    groups, lanes, width = grouped.lane_ids.shape
    # A place behind the last lane is dropped: padding all points at token 0, which belongs to a row.
    where = jnp.where(wanted, grouped.row_tokens, lanes * width).reshape(groups, -1)
    empty = jnp.zeros((groups, lanes * width, array.shape[-1]), array.dtype)
    values = array.reshape(groups, -1, array.shape[-1])
    return jax.vmap(lambda row, at, value: row.at[at].set(value, mode="drop"))(empty, where, values)


def sequence_logprobs(
    params: Params, config: ModelConfig, ids: jax.Array, valid: jax.Array, *, chunk: int = CHUNK
) -> jax.Array:
    """Returns float32[B, T]: log p(ids[t] | ids[:t]) of right-padded sequences; 0 at t = 0."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    hidden, _ = forward(params, config, ids, positions, valid.astype(jnp.int32))
    return _scores(params, config, hidden, ids, 1.0, chunk).logprob
