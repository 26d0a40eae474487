"""Where every parameter of Qwen3-8B lies on meshes of eight devices, as a table to read.

In: the preset and the spec table of `model.partition`. Out: the text of `qwen3_8b_shardings.txt`; running this module
prints it. Shapes alone are computed: nothing is allocated.
"""

from __future__ import annotations

import os

MESHES = {"1x8": (1, 8, 1), "4x2": (1, 4, 2), "2x2x2": (2, 2, 2)}
HEADER = """\
Qwen3-8B in bfloat16 on eight devices: how each parameter is split, and the part that one device holds.
Meshes (data, fsdp, tensor): 1x8 = (1, 8, 1), 4x2 = (1, 4, 2), 2x2x2 = (2, 2, 2). "-" is a dimension that stays whole.
Axes of size 1 split nothing. A change of model/partition.py changes this file:
JAX_NUM_CPU_DEVICES=8 python -m tests.model.shardings > tests/model/qwen3_8b_shardings.txt
"""


def table() -> str:
    """Returns the table; needs eight devices, simulated ones will do."""
    import dataclasses
    import math

    import jax

    from model import llama
    from model.partition import make_mesh, parameter_shardings
    from model.presets import QWEN3_8B

    config = dataclasses.replace(QWEN3_8B, param_dtype="bfloat16")
    shapes = jax.eval_shape(lambda key: llama.init(key, config), jax.random.key(0))
    rows = [["parameter", "shape", "split", *MESHES]]
    placed = {name: parameter_shardings(shapes, make_mesh(*sizes)) for name, sizes in MESHES.items()}
    held = dict.fromkeys(MESHES, 0)
    for path, leaf in jax.tree.leaves_with_path(shapes):
        at = {name: jax.tree_util.tree_leaves(tree)[len(rows) - 1] for name, tree in placed.items()}
        parts = {name: sharding.shard_shape(leaf.shape) for name, sharding in at.items()}
        for name, part in parts.items():
            held[name] += math.prod(part) * leaf.dtype.itemsize
        splits = {
            " ".join("+".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in sharding.spec)
            for sharding in at.values()
        }
        rows.append(
            [
                "/".join(entry.key for entry in path),
                "x".join(map(str, leaf.shape)),
                " | ".join(sorted(splits)),
                *("x".join(map(str, part)) for part in parts.values()),
            ]
        )
    rows.append(["GiB a device", "", "", *(f"{size / 2**30:.3f}" for size in held.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return HEADER + "\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(table(), end="")
