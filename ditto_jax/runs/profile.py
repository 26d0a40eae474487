"""Chosen steps → a JAX profiler trace, for TensorBoard or Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax


@contextlib.contextmanager
def profiled(folder: Path, step: int, steps: Sequence[int]) -> Iterator[None]:
    """Records the enclosed step into `folder`/step_<n> if it is one of `steps`."""
    if step not in steps:
        yield
        return
    with jax.profiler.trace(str(folder / f"step_{step:06d}")):
        yield
