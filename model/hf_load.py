"""A Hugging Face folder → config, and parameters that stream from the files straight into their device shards.

In: a folder (see `model.hf_files`), and a mesh or none. Out: a `ModelConfig`, and a nested dictionary of arrays (names
and shapes: `model.hf_layout`). Each host reads only the bytes of its own shards, a few megabytes at a time, so that
little host memory is needed beside the destination. Nothing is downloaded, unpickled or silently skipped.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.config import ModelConfig
from model.errors import WeightsError
from model.hf_files import (
    CONFIG_FILE,
    StoredTensor,
    check_dtype,
    check_header,
    check_headers,
    no_folder,
    open_tensors,
    read_block,
    read_json,
)
from model.hf_layout import HEAD_TENSOR, Slot, param_shapes, tensor_plan
from model.partition import parameter_shardings
from model.quantization import LEVELS, encode, quantized_axis

# How much is on its way at a time; every step from the file to the device holds about so many values.
PIECE_VALUES = 2**21


def load_config(folder: str | Path, *, param_dtype: str = "float32", compute_dtype: str = "float32") -> ModelConfig:
    """Returns the config of a model folder, with the stop tokens of its generation_config.json added.

    Raises WeightsError (no folder, no or unreadable config.json) or UnsupportedModel (a model this package cannot run).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise no_folder(folder)
    config = ModelConfig.from_hf(read_json(folder / CONFIG_FILE), param_dtype=param_dtype, compute_dtype=compute_dtype)
    generation = folder / "generation_config.json"
    if not generation.is_file():
        return config
    stops = read_json(generation).get("eos_token_id")
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    added = tuple(stop for stop in stops if stop not in config.eos_token_ids)
    return dataclasses.replace(config, eos_token_ids=config.eos_token_ids + added)


def load_params(
    folder: str | Path,
    config: ModelConfig,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    quantization: str = "none",
) -> dict[str, Any]:
    """Returns the parameter tree of a model folder in `dtype` (default: `config.param_dtype`).

    Matrices that `quantization` names (see `model.quantization`) become int8 codes and scales on their way, in two
    readings of the file. With a mesh the leaves are jax arrays, placed by `model.partition.parameter_shardings`;
    without one they are NumPy arrays. Names, shapes and dtypes of all files are checked before any value is read.
    Raises WeightsError for whatever is missing, unexpected, damaged or not finite.
    """
    folder = Path(folder)
    dtype = check_dtype(dtype or config.param_dtype)
    plan = tensor_plan(config)
    with open_tensors(folder) as tensors:
        check_headers(folder, config, tensors, plan)
        leaves = {path: _Leaf(shape, dtype, []) for path, shape in param_shapes(config).items()}
        for name, slot in plan.items():  # layers come in their order
            leaves[slot.path].parts.append((tensors[name], slot))
        if config.tie_embeddings and HEAD_TENSOR in tensors:
            _check_tied_copy(tensors[HEAD_TENSOR], leaves["embed/embedding"])
        stored = _quantized(leaves, quantization)
        if mesh is None:
            return unflatten_dict({path: leaf.on_host() for path, leaf in stored.items()}, sep="/")
        shapes = unflatten_dict(
            {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in stored.items()}, sep="/"
        )
        shardings = cast(dict[str, NamedSharding], flatten_dict(parameter_shardings(shapes, mesh), sep="/"))
        return unflatten_dict({path: leaf.on_mesh(shardings[path]) for path, leaf in stored.items()}, sep="/")


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A leaf to be filled from its tensors: one for each layer, or a single one."""

    shape: tuple[int, ...]
    dtype: str
    parts: list[tuple[StoredTensor, Slot]]

    @property
    def _stacked(self) -> bool:
        return self.parts[0][1].layer is not None

    def block(self, index: tuple[slice, ...]) -> np.ndarray:
        if not self._stacked:
            return read_block(*self.parts[0], index, self.dtype)
        rows = [read_block(*part, index[1:], self.dtype)[None] for part in self.parts[index[0]]]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    def on_host(self) -> np.ndarray:
        leaf = np.empty(self.shape, jnp.dtype(self.dtype))
        piece = self.piece_shape(self.shape)
        for start in _starts(self.shape, piece):
            index = tuple(slice(at, at + size) for at, size in zip(start, piece, strict=True))
            leaf[index] = self.block(index)
        return leaf

    def on_mesh(self, sharding: NamedSharding) -> jax.Array:
        """Fills all shards side by side: every step writes the same part of each, without any communication."""
        local = sharding.shard_shape(self.shape)
        piece = self.piece_shape(local)
        if piece == local:
            return jax.make_array_from_callback(self.shape, sharding, _once_a_block(self.block))
        leaf = jnp.zeros(self.shape, jnp.dtype(self.dtype), device=sharding)
        together = tuple(size * whole // part for size, whole, part in zip(piece, self.shape, local, strict=True))
        for start in _starts(local, piece):

            def read(index: tuple[slice, ...], start=start) -> np.ndarray:
                shard = [(axis.start or 0) // size for axis, size in zip(index, piece, strict=True)]
                corner = [s * width + at for s, width, at in zip(shard, local, start, strict=True)]
                return self.block(tuple(slice(at, at + size) for at, size in zip(corner, piece, strict=True)))

            pieces = jax.make_array_from_callback(together, sharding, _once_a_block(read))
            leaf = _written(leaf, pieces, np.asarray(start, np.int32), sharding)
            leaf.block_until_ready()  # or the host would run ahead of the device, with every piece in memory
        return leaf

    def piece_shape(self, local: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what is read at a time of a shard of shape `local`: whole layers, or part of one.

        A tensor is cut along the first axis of the file, so that a piece lies in one stretch there.
        """
        piece = list(local)
        tensor_values = math.prod(self.shape[1:] if self._stacked else self.shape)
        if self._stacked:
            piece[0] = min(max(PIECE_VALUES // tensor_values, 1), local[0])
        cut = -1 if self.parts[0][1].transposed else int(self._stacked)
        piece[cut] = math.ceil(local[cut] / min(math.ceil(tensor_values / PIECE_VALUES), local[cut]))
        return tuple(piece)


@dataclasses.dataclass(frozen=True)
class _Codes(_Leaf):
    """The int8 codes of a leaf, encoded piece by piece; `scale` lacks the reduced `axis`."""

    scale: np.ndarray
    axis: int

    def block(self, index: tuple[slice, ...]) -> np.ndarray:
        kept = index[: self.axis] + index[self.axis :][1:]
        exact = _Leaf(self.shape, "float32", self.parts).block(index)
        return encode(exact, self.scale[kept], self.axis)


@dataclasses.dataclass(frozen=True)
class _Scale:
    """The scales of a leaf: small, and known before its codes are."""

    values: np.ndarray
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def on_host(self) -> np.ndarray:
        return self.values

    def on_mesh(self, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(self.shape, sharding, lambda index: self.values[index])


def _quantized(leaves: Mapping[str, _Leaf], quantization: str) -> dict[str, _Leaf | _Scale]:
    """Returns the leaves with codes and scales for those that `quantization` names, the scales already found."""
    found: dict[str, _Leaf | _Scale] = {}
    for path, leaf in leaves.items():
        axis = quantized_axis(path, quantization)
        if axis is None:
            found[path] = leaf
            continue
        codes = _Codes(leaf.shape, "int8", leaf.parts, _scale_of(leaf, axis), axis)
        found |= {f"{path}_int8": codes, f"{path}_scale": _Scale(codes.scale)}
    return found


def _scale_of(leaf: _Leaf, axis: int) -> np.ndarray:
    exact = _Leaf(leaf.shape, "float32", leaf.parts)
    largest = np.zeros(np.delete(leaf.shape, axis), np.float32)
    piece = exact.piece_shape(leaf.shape)
    for start in _starts(leaf.shape, piece):
        index = tuple(slice(at, at + size) for at, size in zip(start, piece, strict=True))
        part = largest[index[:axis] + index[axis:][1:]]
        np.maximum(part, np.abs(exact.block(index)).max(axis), out=part)
    return largest / np.float32(LEVELS)


def _starts(local: tuple[int, ...], piece: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Corners of pieces that cover a shard; the last ones overlap, so that all have one shape and one program."""
    along = ([min(at, whole - size) for at in range(0, whole, size)] for whole, size in zip(local, piece, strict=True))
    return itertools.product(*along)


def _once_a_block(read: Callable[[tuple[slice, ...]], np.ndarray]) -> Callable[[Any], np.ndarray]:
    """Replicas of a shard are read once."""
    seen: dict[tuple[tuple[int | None, int | None], ...], np.ndarray] = {}

    def block(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((axis.start, axis.stop) for axis in index)
        if key not in seen:
            seen[key] = read(index)
        return seen[key]

    return block


@functools.partial(jax.jit, donate_argnums=0, static_argnames="sharding")
def _written(leaf: jax.Array, pieces: jax.Array, start: jax.Array, sharding: NamedSharding) -> jax.Array:
    return jax.shard_map(
        jax.lax.dynamic_update_slice,
        mesh=sharding.mesh,
        in_specs=(sharding.spec, sharding.spec, PartitionSpec()),
        out_specs=sharding.spec,
    )(leaf, pieces, start)


def _check_tied_copy(head: StoredTensor, embedding: _Leaf) -> None:
    """Raises WeightsError if a tied model comes with a head that is not its embedding."""
    ((_, slot),) = embedding.parts
    check_header(head, slot)
    copy = _Leaf(embedding.shape, embedding.dtype, [(head, slot)])
    piece = embedding.piece_shape(embedding.shape)
    for start in _starts(embedding.shape, piece):
        index = tuple(slice(at, at + size) for at, size in zip(start, piece, strict=True))
        if not np.array_equal(copy.block(index), embedding.block(index)):
            raise WeightsError(
                head.file,
                head.name,
                "a copy of the embedding, because tie_word_embeddings is true",
                "other values",
                "set tie_word_embeddings to false in config.json if the head was trained apart",
            )
