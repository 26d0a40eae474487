"""Which tokens may stand in a place, one bit a token: logits of the others are taken out of a distribution.

Masks are int32 words, bit j of word i for token 32 i + j: 19 kB of them for a vocabulary of 151,936. Where many places
share few masks, the words are kept once and each place names its own. Pure; who makes masks is not known here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

EXCLUDED = -1e30  # in the place of a logit: finite, so that 0 times it is 0


class Allowed(NamedTuple):
    """words int32[K, ceil(V / 32)]: masks, of which the first allows everything. index int32[...]: each place's mask,
    by number.
    """

    words: Any
    index: Any


def only_allowed(logits: jax.Array, words: jax.Array) -> jax.Array:
    """Returns float32[R, V] with EXCLUDED for tokens that are not allowed; words: int32[R, ceil(V / 32)]."""
    return jnp.where(_bits(words, logits.shape[-1]), logits, EXCLUDED)


def only_allowed_at(logits: jax.Array, allowed: Allowed, first: jax.Array | int = 0) -> jax.Array:
    """Returns the same for float32[R, columns] of a vocabulary, the first of them token number `first`; allowed.index:
    int32[R].
    """
    count = logits.shape[-1]
    padded = jnp.pad(allowed.words, ((0, 0), (0, 2)))  # a window of whole words holds columns that begin anywhere
    window = jax.lax.dynamic_slice_in_dim(padded, first // 32, count // 32 + 2, axis=1)
    bits = _bits(window[allowed.index], 32 * window.shape[1])
    return jnp.where(jax.lax.dynamic_slice_in_dim(bits, first % 32, count, axis=1), logits, EXCLUDED)


def _bits(words: jax.Array, count: int) -> jax.Array:
    """bool[R, count]; tokens beyond the words are not allowed."""
    bits = (words[:, :, None] >> jnp.arange(32)) & 1
    flat = bits.reshape(words.shape[0], -1)[:, :count].astype(bool)
    return jnp.pad(flat, ((0, 0), (0, count - flat.shape[1])))
