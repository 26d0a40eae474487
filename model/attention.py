"""Grouped-query attention over up to two key-value sources: a prefix shared by a group of rows, and the row's own.

B rows come in N groups of B/N; group n's rows read prefix n without a copy per row. Each source is attended to
separately and the results are merged by log-sum-exp in float32, which is exact (Hydragen, arXiv 2402.05099). The keys
of a training row, of a prompt being prefilled and of a decode step all come through `attend`. Sliding windows are
measured in positions, wherever a token lies in its array. Calls that a kernel of the device can serve are handed to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.attention_kernels import REFERENCE, kernel_of, run_kernel
from model.stored_keys import factors

# Finite, so that a row without any visible key (padding) yields garbage instead of NaN.
_MASKED = -1e30


class KeyValues(NamedTuple):
    """Keys and values of one source in one layer, k and v: [rows, K, S, D], arrays or `stored_keys.Codes`.

    Heads before tokens, so that the batched products of attention read them as they lie.
    """

    k: Any
    v: Any


class Window(NamedTuple):
    """A sliding window: a query sees keys fewer than `size` positions back, in every source.

    size: int32 scalar; query int32[B, T], own int32[B, S], prefix int32[N, P]: positions of the queries, of the rows'
    own keys and of the prefix, where token p has position p if prefix is None.
    """

    size: jax.Array
    query: jax.Array
    own: jax.Array
    prefix: jax.Array | None = None


class _Partial(NamedTuple):
    """Unnormalised attention over one source: out [rows, K, Q, D], peak and total [rows, K, Q], all float32."""

    out: jax.Array
    peak: jax.Array
    total: jax.Array


def _over(q: jax.Array, source: KeyValues, mask: jax.Array) -> _Partial:
    """q: [rows, K, Q, D] scaled; mask: bool broadcastable to [rows, K, Q, S]."""
    (keys, key_scale), (values, value_scale) = (factors(each, q.dtype) for each in source)
    scores = jnp.einsum("bkqd,bksd->bkqs", q, keys, preferred_element_type=jnp.float32)
    scores = scores if key_scale is None else scores * key_scale
    scores = jnp.where(mask, scores, _MASKED)
    # The peak cancels in the merged result, so no gradient needs to flow through it.
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - peak[..., None])
    total = jnp.sum(weights, axis=-1)
    weights = weights if value_scale is None else weights * value_scale
    out = jnp.einsum("bkqs,bksd->bkqd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return _Partial(out, peak, total)


def attend(
    q: jax.Array,
    own: KeyValues,
    own_mask: jax.Array,
    prefix: KeyValues | None = None,
    prefix_valid: jax.Array | None = None,
    window: Window | None = None,
    kernel: str = REFERENCE,
) -> jax.Array:
    """Returns attention output [B, T, H, D] in q's dtype.

    q: [B, T, H, D]. own: the rows' own keys [B, K, S, D] with own_mask bool[B, T, S] (True = visible).
    prefix: shared keys [N, K, P, D], N dividing B, rows of a group adjacent; prefix_valid bool[N, P], or
    bool[N, rows * T, P] where a group's queries do not all see the same keys.
    window: None lets every query see as far as the masks do. A query without any visible key yields finite garbage.
    kernel: a name from `config.ATTENTION`; calls that it cannot serve take the path written here, the reference.
    """
    chosen = kernel_of(kernel, q, own.k, None if prefix is None else prefix.k)
    if chosen != REFERENCE:
        return run_kernel(chosen, q, *_joined(own, own_mask, prefix, prefix_valid, window))
    batch, length, heads, width = q.shape
    kv_heads = own.k.shape[1]
    per_head = heads // kv_heads
    # [B, K, T, q, D]: the query heads of one key head side by side, token after token.
    grouped = (q * width**-0.5).reshape(batch, length, kv_heads, per_head, width).swapaxes(1, 2)
    if window is not None:
        own_mask = own_mask & _within(window.query, window.own, window.size)
    part = _over(grouped.reshape(batch, kv_heads, -1, width), own, _per_query(own_mask, per_head))
    if prefix is not None and prefix_valid is not None:
        groups = prefix.k.shape[0]
        prefix_mask = _prefix_mask(prefix_valid, window)
        per_query = prefix_mask.shape[1] > 1
        prefix_mask = _per_query(prefix_mask, per_head) if per_query else prefix_mask[:, None]
        shared = _over(_fold(grouped, groups), prefix, prefix_mask)
        part = _merge(part, _Partial(*(_unfold(x, batch) for x in shared)))
    out = (part.out / part.total[..., None]).reshape(batch, kv_heads, length, per_head, width)
    return out.swapaxes(1, 2).reshape(batch, length, heads, width).astype(q.dtype)


def _joined(
    own: KeyValues, own_mask: jax.Array, prefix: KeyValues | None, prefix_valid: jax.Array | None, window: Window | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(keys [B, K, P + S, D], values, bool[B, T, P + S]): both sources as one, a copy of its prefix for every row."""
    if window is not None:
        own_mask = own_mask & _within(window.query, window.own, window.size)
    if prefix is None or prefix_valid is None:
        return own.k, own.v, own_mask
    (rows, length, _), (groups, _, width, _) = own_mask.shape, prefix.k.shape
    copies = rows // groups
    seen = jnp.broadcast_to(_prefix_mask(prefix_valid, window), (groups, copies * length, width))
    seen = seen.reshape(rows, length, width)
    k, v = (
        jnp.concatenate([jnp.repeat(shared, copies, axis=0), mine], axis=2)
        for shared, mine in zip(prefix, own, strict=True)
    )
    return k, v, jnp.concatenate([seen, own_mask], axis=-1)


def _prefix_mask(valid: jax.Array, window: Window | None) -> jax.Array:
    """bool[N, 1 or rows * T, P]: which keys of its prefix each query of a group sees."""
    mask = valid if valid.ndim == 3 else valid[:, None]
    if window is None:
        return mask
    positions = window.prefix
    if positions is None:
        positions = jnp.arange(valid.shape[-1], dtype=jnp.int32)[None]
    return mask & _within(window.query.reshape(valid.shape[0], -1), positions, window.size)


def _per_query(mask: jax.Array, per_head: int) -> jax.Array:
    """bool[rows, T, S] → bool[rows, 1, T * q, S]: one row of the mask for each of the q heads that share a key head."""
    rows, length, keys = mask.shape
    return jnp.broadcast_to(mask[:, None, :, None], (rows, 1, length, per_head, keys)).reshape(rows, 1, -1, keys)


def _within(query: jax.Array, key: jax.Array, size: jax.Array) -> jax.Array:
    """bool[rows, queries, keys] of positions int32[rows, queries] and int32[rows or 1, keys]."""
    return query[:, :, None] - key[:, None, :] < size


def _fold(q: jax.Array, groups: int) -> jax.Array:
    """[B, K, T, q, D] → [N, K, rows * T * q, D]: the queries of a group's rows together."""
    batch, kv_heads, length, per_head, width = q.shape
    split = q.reshape(groups, batch // groups, kv_heads, length, per_head, width)
    return split.swapaxes(1, 2).reshape(groups, kv_heads, -1, width)


def _unfold(x: jax.Array, batch: int) -> jax.Array:
    """[N, K, rows * Q, ...] → [B, K, Q, ...]: a group's rows apart again."""
    groups, kv_heads = x.shape[:2]
    split = x.reshape(groups, kv_heads, batch // groups, -1, *x.shape[3:])
    return split.swapaxes(1, 2).reshape(batch, kv_heads, -1, *x.shape[3:])


def _merge(a: _Partial, b: _Partial) -> _Partial:
    peak = jnp.maximum(a.peak, b.peak)
    wa, wb = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
    return _Partial(a.out * wa[..., None] + b.out * wb[..., None], peak, a.total * wa + b.total * wb)


def segment_mask(segments: jax.Array) -> jax.Array:
    """Returns bool[B, T, T]: position t sees s iff s <= t and both lie in the same segment; segment 0 is padding."""
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))[None]
    return causal & (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0)
