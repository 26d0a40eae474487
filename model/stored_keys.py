"""Keys and values as the sampler's cache stores them: in a dtype of their own, or as int8 codes with scales.

keys of the model [..., S, D] → **stored keys**, an array or `Codes`. Attention multiplies with the codes and applies
the scales to scores and weights, one per key, so that no full copy is made. Codes have no gradient; training does not
store keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.quantization import quantize

KEY_DTYPES = ("compute", "float32", "bfloat16", "float16", "int8")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codes:
    """values int8[..., S, D] and scale float32[..., 1, S]: key s of a row and head is values[s] * scale[s].

    Tokens come last in `scale`: a last axis of one number would take 128 on a TPU.
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> Any:
        return self.values.dtype


Stored = jax.Array | Codes


def empty_keys(shape: tuple[int, ...], dtype: Any) -> Stored:
    """Returns stored keys of zeros; int8 means codes."""
    values = jnp.zeros(shape, dtype)
    if values.dtype != jnp.int8:
        return values
    return Codes(values, jnp.zeros((*shape[:-2], 1, shape[-2]), jnp.float32))


def store(keys: jax.Array, dtype: Any) -> Stored:
    """Returns keys as stored in `dtype`; int8 means codes, with a scale for each token of each head."""
    if jnp.dtype(dtype) != jnp.int8:
        return keys.astype(dtype)
    values, scale = quantize(keys, -1)
    return Codes(values, scale[..., None, :])


def dtype_of(keys: Any) -> Any:
    """Returns the dtype of stored keys, stacked or layer by layer, as `store` and `empty_keys` take it."""
    return jax.tree.leaves(keys)[0].dtype


def layers_of(keys: Stored) -> tuple[Stored, ...]:
    """Returns stored keys [L, ...] as one entry for each layer."""
    return tuple(jax.tree.map(lambda leaf, n=n: leaf[n], keys) for n in range(keys.shape[0]))


def stacked(keys: Any) -> Stored:
    """Returns stored keys [L, ...], from a tuple of layers or as they are."""
    return jax.tree.map(lambda *layers: jnp.stack(layers), *keys) if isinstance(keys, tuple) else keys


def factors(keys: Stored, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """Returns what products are made with, [..., S, D] in `dtype`, and the factor [..., 1, S] of results or None."""
    return (keys.values.astype(dtype), keys.scale) if isinstance(keys, Codes) else (keys.astype(dtype), None)


def map_tokens(change: Callable[..., jax.Array], keys: Any, *others: Any) -> Any:
    """Returns `change(axis, array, ...)` of each array of stored keys; `axis` (negative) is where it counts tokens."""

    def one(held: Stored, *rest: Any) -> Stored:
        if not isinstance(held, Codes):
            return change(-2, held, *rest)
        return Codes(
            change(-2, held.values, *(r.values for r in rest)), change(-1, held.scale, *(r.scale for r in rest))
        )

    return jax.tree.map(one, keys, *others, is_leaf=lambda held: isinstance(held, Codes))
