"""How parameters and activations lie on a device mesh: one table from names to mesh axes.

Mesh axes are `data` (replicas), `fsdp` (parameters and rows both split) and `tensor` (heads, MLP width and vocabulary
split). Axes are `AxisType.Auto`: the compiler propagates shardings, and the constraints made here fix the ends. This
replaces what older code did with pmap or pjit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # mesh axes over which groups of rows are split

VOCABULARY = ("fsdp", "tensor")  # mesh axes over which embedding, head and logits are split

# Logical axis names used by activations (flax.linen.logical_axis_rules).
ACTIVATION_RULES = (("row", ROWS), ("length", None), ("embed", None))

# Last two path names of a parameter → mesh axis of each dimension. Leading `None` is the stacked layer axis.
PARAMETER_AXES: dict[tuple[str, ...], tuple[str | tuple[str, ...] | None, ...]] = {
    # Several layers large: neither is ever gathered, the hidden states of a chunk are. A tied head is the embedding.
    ("embed", "embedding"): (VOCABULARY, None),
    ("head", "kernel"): (None, VOCABULARY),
    ("q", "kernel"): (None, "fsdp", "tensor"),
    ("k", "kernel"): (None, "fsdp", "tensor"),
    ("v", "kernel"): (None, "fsdp", "tensor"),
    ("o", "kernel"): (None, "tensor", "fsdp"),
    ("gate", "kernel"): (None, "fsdp", "tensor"),
    ("up", "kernel"): (None, "fsdp", "tensor"),
    ("down", "kernel"): (None, "tensor", "fsdp"),
    # A bias is split like the columns that it is added to; what is added to the residual stream is small and whole.
    ("q", "bias"): (None, "tensor"),
    ("k", "bias"): (None, "tensor"),
    ("v", "bias"): (None, "tensor"),
    ("o", "bias"): (None, None),
    ("gate", "bias"): (None, "tensor"),
    ("up", "bias"): (None, "tensor"),
    ("down", "bias"): (None, None),
    ("attn_norm", "scale"): (None, None),
    ("q_norm", "scale"): (None, None),
    ("k_norm", "scale"): (None, None),
    ("mlp_norm", "scale"): (None, None),
    ("final_norm", "scale"): (None,),
}


# Adapters are split like the kernel beside them, except that the rank stays whole; scales like the output channels.
for (_module, _leaf), _axes in list(PARAMETER_AXES.items()):
    if _leaf in ("kernel", "embedding"):
        *_layer, _in, _out = _axes
        PARAMETER_AXES[_module, f"{_leaf}_int8"] = _axes
        PARAMETER_AXES[_module, f"{_leaf}_scale"] = (*_layer, _in if _leaf == "embedding" else _out)
    if _leaf == "kernel" and _module != "head":
        PARAMETER_AXES[_module, "lora_a"] = (*_layer, _in, None)
        PARAMETER_AXES[_module, "lora_b"] = (*_layer, None, _out)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: list[Any] | None = None) -> Mesh:
    """Returns a mesh over `devices` (default: all); one size may be -1 and takes what is left.

    Raises ValueError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(data, fsdp, tensor, len(devices))
    grid = np.asarray(devices).reshape(tuple(sizes.values()))
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_sizes(data: int, fsdp: int, tensor: int, devices: int) -> dict[str, int]:
    """Returns the size of each mesh axis over so many devices; one may be given as -1 and takes what is left.

    Raises ValueError if the sizes do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    named = dict(zip(MESH_AXES, sizes, strict=True))
    if sum(size == -1 for size in sizes) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"mesh {named}: sizes are positive and at most one is -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 not in sizes and known != devices:
        raise ValueError(f"mesh {named}: needs {known} devices, {devices} are present; set one size to -1")
    if devices % known:
        raise ValueError(f"mesh {named}: {devices} devices are not divisible by {known}")
    return {axis: devices // known if size == -1 else size for axis, size in named.items()}


def parameter_spec(path: tuple[Any, ...]) -> PartitionSpec:
    """Returns the spec of one parameter by its tree path; an unknown name is an error, never silently replicated."""
    names = tuple(str(getattr(entry, "key", entry)) for entry in path)
    try:
        return PartitionSpec(*PARAMETER_AXES[names[-2:]])
    except KeyError:
        raise ValueError(f"parameter {'/'.join(names)} has no entry in PARAMETER_AXES") from None


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """Returns a tree of NamedSharding shaped like params. Dimensions that a mesh axis does not divide stay whole."""

    def sharding(path, leaf):
        spec = parameter_spec(path)
        return NamedSharding(mesh, PartitionSpec(*_fitted(spec, leaf.shape, mesh)))

    return jax.tree_util.tree_map_with_path(sharding, params)


def _fitted(spec: Iterable[Any], shape: tuple[int, ...], mesh: Any) -> list[Any]:
    return [
        axis if axis is not None and size % _axis_size(mesh, axis) == 0 else None
        for axis, size in zip(spec, shape, strict=True)
    ]


def _axis_size(mesh: Any, axis: str | tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))


def split_logits(scores: jax.Array) -> jax.Array:
    """Returns logits [..., V] unchanged and split like the head on the current mesh.

    Left to itself the compiler would keep the rows split over `fsdp` instead, and gather the head.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or scores.shape[-1] % _axis_size(mesh, VOCABULARY):
        return scores
    rows = "data" if scores.shape[0] % mesh.shape["data"] == 0 else None
    return jax.lax.with_sharding_constraint(
        scores, PartitionSpec(rows, *(PartitionSpec.UNCONSTRAINED,) * (scores.ndim - 2), VOCABULARY)
    )


def splits_vocabulary() -> bool:
    """Returns whether the columns of a head lie on several devices of the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and _axis_size(mesh, VOCABULARY) > 1


def row_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Returns the sharding of arrays whose axis number `leading` counts groups or rows."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, ROWS))


def decode_state_shardings(state: Any, mesh: Mesh) -> Any:
    """Returns shardings of a `generate.DecodeState`: rows and slots split, heads over `tensor`."""

    def sharding(leaf):
        if leaf.ndim == 0:
            return replicated(mesh)
        if leaf.ndim >= 4:
            return NamedSharding(mesh, _key_spec(leaf.shape, mesh))
        return row_sharding(mesh)

    return jax.tree.map(sharding, state)


def _key_spec(shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
    """Of keys and values: (layer,) row or slot, head, column, width."""
    heads = "tensor" if shape[-3] % mesh.shape["tensor"] == 0 else None
    return PartitionSpec(*(None,) * (len(shape) - 4), ROWS, heads, None, None)


def in_stored_order(keys: jax.Array) -> jax.Array:
    """Returns the cache [L, B, K, C, D] unchanged, on TPU with the order to keep in memory inside loops: row-major.

    The TPU compiler would else turn the cache around for the loop that writes it, and back: a second cache in memory
    and four copies of it a call. Compilers for other devices do not, and are told nothing.
    """
    return _ordered(keys, tuple(range(keys.ndim)), lambda mesh: _key_spec(keys.shape, mesh))


def rank_first(a: jax.Array, module: str) -> jax.Array:
    """Returns one layer's adapter A [in, r] of a module unchanged, on TPU with the order to read it in: as [r, in].

    The TPU compiler would else turn all layers' A around before the loop over layers, where a rank of 32 takes as much
    memory as one of 128.
    """
    return _ordered(
        a, (1, 0), lambda mesh: PartitionSpec(*_fitted(PARAMETER_AXES[module, "lora_a"][1:], a.shape, mesh))
    )


def _ordered(array: jax.Array, order: tuple[int, ...], spec: Callable[[Any], PartitionSpec]) -> jax.Array:
    """`spec` yields how the array lies on a mesh."""
    layout = Layout(major_to_minor=order)
    mesh = jax.sharding.get_abstract_mesh()

    def ordered(part: jax.Array) -> jax.Array:
        return with_layout_constraint(part, layout)

    if not mesh.empty:  # a constraint is not divided over devices by itself: each device orders its part
        ordered = jax.shard_map(ordered, mesh=mesh, in_specs=spec(mesh), out_specs=spec(mesh))
    return jax.lax.platform_dependent(array, tpu=ordered, default=lambda whole: whole)


def before_its_split(flat: jax.Array) -> jax.Array:
    """Returns the result of a product, [..., heads * D], unchanged, on TPU as an array of its own.

    The TPU compiler would else make the split into heads a part of the product, and turn the kernels of all layers
    around for it before the loop over layers: a second copy of them.
    """
    return jax.lax.platform_dependent(flat, tpu=jax.lax.optimization_barrier, default=lambda whole: whole)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
