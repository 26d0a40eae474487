"""A frozen base in 8 bits: weights as int8 with one float32 scale per output channel, multiplied without a full copy.

In: a matrix. Out: symmetric codes q and scale = absmax / 127, with W ≈ q * scale. Products run in the dtype of the
activations and accumulate in float32; the scale is applied to the result, so that the compiler reads 8 bits a weight.
Activations are never quantised, and int8 weights get no gradient: adapters beside them do.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

LEVELS = 127
QUANTIZATIONS = ("none", "int8", "int8_all")


def quantized_axis(path: str, quantization: str) -> int | None:
    """Returns the axis that a leaf is reduced over to find its scales, None if the leaf stays as it is.

    "int8": kernels of the layers. "int8_all": the embedding and the head too (the embedding has one scale a token,
    which serves a tied head as well). Raises ValueError for another name.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization={quantization!r}: choose one of {', '.join(QUANTIZATIONS)}")
    if quantization == "none":
        return None
    if path.endswith("/kernel") and (path.startswith("layers/") or quantization == "int8_all"):
        return -2
    return -1 if path == "embed/embedding" and quantization == "int8_all" else None


def quantize(weight: Any, axis: int) -> tuple[Any, Any]:
    """Returns (int8 codes, float32 scales without `axis`) of a NumPy or jax array; W ≈ codes * scales.

    A channel of zeros has scale 0. The error of an entry is at most half its channel's scale.
    """
    scale = abs(weight.astype(np.float32)).max(axis=axis) / np.float32(LEVELS)
    return encode(weight, scale, axis), scale


def encode(weight: Any, scale: Any, axis: int) -> Any:
    """Returns the int8 codes of a matrix for scales that are given."""
    xp: Any = np if isinstance(weight, np.ndarray) else jnp
    divisor = xp.expand_dims(xp.where(scale > 0, scale, np.float32(1)), axis)
    return xp.clip(xp.round(weight.astype(np.float32) / divisor), -LEVELS, LEVELS).astype(np.int8)


def flat(params: Any) -> dict[str, Any]:
    """Returns leaves by path, "layers/attn/q/kernel"."""
    return cast(dict[str, Any], flatten_dict(params, sep="/"))


def quantize_params(params: Any, quantization: str) -> Any:
    """Returns the tree with the leaves that `quantization` names replaced by their codes and scales."""
    leaves: dict[str, Any] = {}
    for path, leaf in flat(params).items():
        axis = quantized_axis(path, quantization)
        if axis is None:
            leaves[path] = leaf
        else:
            leaves[f"{path}_int8"], leaves[f"{path}_scale"] = quantize(leaf, axis)
    return unflatten_dict(leaves, sep="/")


def dequantize_params(params: Any) -> Any:
    """Returns the tree with float32 matrices in place of codes and scales: the weights that a quantised policy has."""
    leaves = dict(flat(params))
    for codes in [path for path in leaves if path.endswith("_int8")]:
        path = codes.removesuffix("_int8")
        axis = quantized_axis(path, "int8_all")
        leaves[path] = dequantize(leaves.pop(codes), leaves.pop(f"{path}_scale"), -1 if axis is None else axis)
    return unflatten_dict(leaves, sep="/")


def dequantize(codes: Any, scale: Any, axis: int) -> Any:
    """Returns the float32 matrix whose `axis` has been reduced to `scale`."""
    xp: Any = np if isinstance(codes, np.ndarray) else jnp
    return codes.astype(np.float32) * xp.expand_dims(scale, axis)


def is_quantized(leaves: Mapping[str, Any], name: str) -> bool:
    """Returns whether the matrix `name` among the leaves of one module is kept as codes."""
    return f"{name}_int8" in leaves


def int8_product(x: jax.Array, codes: jax.Array, scale: jax.Array, axis: int) -> jax.Array:
    """Returns float32[..., out] = x · W, where x [..., in] meets `axis` of the codes and W = codes * scale [out].

    Only x has a gradient; it is computed in x's dtype.
    """
    return _product(x, codes, scale, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x, codes, scale, axis):
    return contract(x, codes.astype(x.dtype), axis) * scale


def _forward(x, codes, scale, axis):
    return _product(x, codes, scale, axis), (codes, scale, jnp.zeros((0,), x.dtype))


def _backward(axis, kept, gradient):
    # By hand, because the automatic rule would multiply a float32 gradient with the codes: a full-precision product.
    codes, scale, like = kept
    scaled = (gradient * scale).astype(like.dtype)
    towards_x = contract(scaled, codes.astype(like.dtype), -1 if axis == -2 else -2).astype(like.dtype)
    return towards_x, np.zeros(codes.shape, jax.dtypes.float0), jnp.zeros_like(scale)


_product.defvjp(_forward, _backward)


def contract(x: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """Returns float32[..., out]: the last axis of x against `axis` (-1 or -2) of a matrix."""
    dims = (((x.ndim - 1,), (matrix.ndim + axis,)), ((), ()))
    return jax.lax.dot_general(x, matrix, dims, preferred_element_type=jnp.float32)
