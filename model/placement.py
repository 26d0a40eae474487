"""Host values on a mesh, and back: the same on one process as on many.

Where a mesh has devices of other processes, each process places its own parts of a value that all of them have, which
needs no communication, and reads a value whole by gathering it, in which all have to take part.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def to_mesh(tree: Any, shardings: Any) -> Any:
    """Returns the arrays of a tree placed by `shardings`, a tree of the same form or one sharding for all leaves.

    With several processes every one must pass equal values; jax arrays that lie on the mesh already are moved as jax
    moves them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: _placed(leaf, shardings), tree)
    return jax.tree.map(_placed, tree, shardings)


def to_host(tree: Any) -> Any:
    """Returns the arrays of a tree as NumPy arrays, whole, on every process; all processes must ask for them."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_whole, tree)


def _placed(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _whole(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
