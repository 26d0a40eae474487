"""Which attention kernel serves a call, and the one form in which kernels are given calls.

Out: the name of a kernel (`kernel_of`), and its result (`run_kernel`). A kernel gets keys of all sources beside each
other and a mask that says for every pair who sees what, so that windows, segments and padding mean the same to all of
them. What a kernel cannot serve is the reference's (`model.attention`): the choice is a function of shapes and dtypes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.partition import MESH_AXES, ROWS

REFERENCE = "reference"
_MODULES = {"cudnn": "model.attention_cudnn", "splash": "model.attention_splash"}
_SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention"
_CUDNN_WIDTH = 128  # of a head, on every card with flash attention
LANES = 128  # splash reads queries and keys in blocks of a multiple of it


def kernel_of(setting: str, q: jax.Array, own: Any, prefix: Any | None) -> str:
    """Returns the kernel of a call with queries [B, T, H, D], own keys [B, K, S, D] and shared ones [N, K, P, D].

    `auto` means cuDNN on NVIDIA GPUs since Ampere, splash on a TPU, else the reference. A named kernel that cannot
    serve the call gives way to the reference: one query a row, which reads keys once anyway; codes; lengths or dtypes
    that it does not know; rows or heads that the mesh does not divide; few queries over a prefix of many rows, whose
    copies would be larger than the scores that are saved.
    """
    name = kernel_of_device() if setting == "auto" else setting
    keys = {leaf.dtype for leaf in jax.tree.leaves((own, prefix))}
    if name == REFERENCE or q.shape[1] == 1 or keys != {q.dtype} or not _divides(q.shape[0], own.shape[1]):
        return REFERENCE
    shared = 0 if prefix is None else prefix.shape[2]
    if shared and prefix.shape[0] < q.shape[0]:  # pyright: ignore[reportOptionalMemberAccess]
        copies, scores = 2 * q.shape[-1] * q.dtype.itemsize, q.shape[1] * q.shape[2] // own.shape[1] * 4
        if copies > scores:
            return REFERENCE
    return name if _fits(name, q, own.shape[2] + shared) else REFERENCE


@functools.cache
def kernel_of_device() -> str:
    """Returns the kernel that `auto` means on the devices of this process."""
    device = jax.local_devices()[0]
    if device.platform == "gpu" and "NVIDIA" in device.device_kind and float(device.compute_capability) >= 8:
        return "cudnn"
    return "splash" if device.platform == "tpu" else REFERENCE


def _fits(name: str, q: jax.Array, keys: int) -> bool:
    length, width = q.shape[1], q.shape[-1]
    if name == "cudnn":
        even = length % 2 == 0 and keys % 2 == 0
        return q.dtype in (jnp.bfloat16, jnp.float16) and even and width % 8 == 0 and width <= _CUDNN_WIDTH
    blocks = length % LANES == 0 and keys % LANES == 0
    return blocks and q.dtype in (jnp.bfloat16, jnp.float32) and _installed(_SPLASH)


@functools.cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _divides(rows: int, heads: int) -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return True
    known = set(MESH_AXES) <= set(mesh.axis_names)
    return known and rows % math.prod(mesh.shape[axis] for axis in ROWS) == 0 and heads % mesh.shape["tensor"] == 0


def run_kernel(name: str, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns attention output [B, T, H, D] in q's dtype, differentiable in q, k and v.

    q [B, T, H, D]; k, v [B, K, S, D]; mask bool[B, T, S]. On a mesh each device runs its own rows and heads. A query
    that sees nothing sees the first key instead: its row is finite, as the reference's is, and as meaningless.
    """
    blind = ~jnp.any(mask, axis=-1, keepdims=True)
    mask = mask | (blind & (jnp.arange(mask.shape[-1]) == 0))
    attend = importlib.import_module(_MODULES[name]).attend
    if jax.sharding.get_abstract_mesh().empty:
        return attend(q, k, v, mask)
    queries, keys = PartitionSpec(ROWS, None, "tensor"), PartitionSpec(ROWS, "tensor")
    specs = (queries, keys, keys, PartitionSpec(ROWS))
    return jax.shard_map(attend, in_specs=specs, out_specs=queries, check_vma=False)(q, k, v, mask)
