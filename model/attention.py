"""Grouped-query attention over up to two key-value sources: a prefix shared by a group of rows, and the row's own.

B rows come in N groups of B/N; group n's rows read prefix n without a copy per row. Each source is attended to
separately and the results are merged by log-sum-exp in float32, which is exact (Hydragen, arXiv 2402.05099). The keys
of a training row, of a prompt being prefilled and of a decode step all come through `attend`. Sliding windows are
measured in positions, wherever a token lies in its array.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Finite, so that a row without any visible key (padding) yields garbage instead of NaN.
_MASKED = -1e30


class KeyValues(NamedTuple):
    """Keys and values of one source in one layer, k and v: [rows, S, K, D]."""

    k: jax.Array
    v: jax.Array


class Window(NamedTuple):
    """A sliding window: a query sees keys fewer than `size` positions back, in every source.

    size: int32 scalar; query int32[B, T], own int32[B, S]: positions of the queries and of the rows' own keys. Token p
    of a prefix has position p.
    """

    size: jax.Array
    query: jax.Array
    own: jax.Array


class _Partial(NamedTuple):
    """Unnormalised attention over one source: out [B, K, T, q, D], peak and total [B, K, T, q], all float32."""

    out: jax.Array
    peak: jax.Array
    total: jax.Array


def _over(q: jax.Array, source: KeyValues, mask: jax.Array) -> _Partial:
    """q: [B, T, K, q, D] scaled; source rows match B; mask: bool broadcastable to [B, 1, T, 1, S]."""
    # Axis orders are those that a batched matrix product yields, so that no score is ever transposed.
    scores = jnp.einsum("btkqd,bskd->bktqs", q, source.k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, _MASKED)
    # The peak cancels in the merged result, so no gradient needs to flow through it.
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - peak[..., None])
    total = jnp.sum(weights, axis=-1)
    out = jnp.einsum("bktqs,bskd->bktqd", weights.astype(source.v.dtype), source.v, preferred_element_type=jnp.float32)
    return _Partial(out, peak, total)


def attend(
    q: jax.Array,
    own: KeyValues,
    own_mask: jax.Array,
    prefix: KeyValues | None = None,
    prefix_valid: jax.Array | None = None,
    window: Window | None = None,
) -> jax.Array:
    """Returns attention output [B, T, H, D] in q's dtype.

    q: [B, T, H, D]. own: the rows' own keys [B, S, K, D] with own_mask bool[B, T, S] (True = visible).
    prefix: shared keys [N, P, K, D], N dividing B, rows of a group adjacent; prefix_valid bool[N, P].
    window: None lets every query see as far as the masks do. A query without any visible key yields finite garbage.
    """
    batch, length, heads, width = q.shape
    kv_heads = own.k.shape[2]
    grouped = (q * width**-0.5).reshape(batch, length, kv_heads, heads // kv_heads, width)
    if window is not None:
        own_mask = own_mask & _within(window.query, window.own, window.size)
    part = _over(grouped, own, own_mask[:, None, :, None])
    if prefix is not None and prefix_valid is not None:
        groups = prefix.k.shape[0]
        folded = grouped.reshape(groups, -1, *grouped.shape[2:])
        prefix_mask = prefix_valid[:, None]
        if window is not None:
            positions = jnp.arange(prefix.k.shape[1], dtype=jnp.int32)[None]
            prefix_mask = prefix_mask & _within(window.query.reshape(groups, -1), positions, window.size)
        shared = _over(folded, prefix, prefix_mask[:, None, :, None])
        shared = _Partial(*(_unfold(x, batch, length) for x in shared))
        part = _merge(part, shared)
    out = part.out / part.total[..., None]
    return out.swapaxes(1, 2).reshape(batch, length, heads, width).astype(q.dtype)


def _within(query: jax.Array, key: jax.Array, size: jax.Array) -> jax.Array:
    """bool[rows, queries, keys] of positions int32[rows, queries] and int32[rows or 1, keys]."""
    return query[:, :, None] - key[:, None, :] < size


def _unfold(x: jax.Array, batch: int, length: int) -> jax.Array:
    """[N, K, rows * T, ...] → [B, K, T, ...]: a group's rows apart again."""
    groups, kv_heads = x.shape[:2]
    split = x.reshape(groups, kv_heads, batch // groups, length, *x.shape[3:])
    return split.swapaxes(1, 2).reshape(batch, kv_heads, length, *x.shape[3:])


def _merge(a: _Partial, b: _Partial) -> _Partial:
    peak = jnp.maximum(a.peak, b.peak)
    wa, wb = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
    return _Partial(a.out * wa[..., None] + b.out * wb[..., None], peak, a.total * wa + b.total * wb)


def segment_mask(segments: jax.Array) -> jax.Array:
    """Returns bool[B, T, T]: position t sees s iff s <= t and both lie in the same segment; segment 0 is padding."""
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))[None]
    return causal & (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
