"""Switches off the part of XLA that computes wrong values on some CPU versions, before XLA reads its flags.

From jaxlib 0.10.2 up to 0.12, fused reductions of the CPU's YNNPACK library return wrong numbers for a vmapped
matrix-vector product that is summed (jax issue 39103) and crash on reductions of rank 7 (39257). Without the fusion of
reductions both are right. That of products stays on: without it a product with a transposed matrix, such as a tied
head, takes four times as long. `ditto_jax.canaries` checks that results are right. Imports no jax.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

FUSION_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
WORKAROUND = f"{FUSION_FLAG}=-reduce"

# The first version with the fault, and the first without. Older versions end the process for a flag they do not know.
_FAULTY, _REPAIRED = (0, 10, 2), (0, 12)


def needs_workaround(jaxlib: str) -> bool:
    """Returns whether this version of jaxlib computes wrong values with the fusion on."""
    numbers = tuple(int(part) for part in jaxlib.split(".")[:3] if part.isdigit())
    return _FAULTY <= numbers < _REPAIRED


def apply_workarounds() -> None:
    """Adds the flag to XLA_FLAGS where it is needed and the user has not set it. Too late once a device was used."""
    flags = os.environ.get("XLA_FLAGS", "")
    try:
        faulty = needs_workaround(version("jaxlib"))
    except PackageNotFoundError:
        return
    if faulty and FUSION_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {WORKAROUND}".strip()
