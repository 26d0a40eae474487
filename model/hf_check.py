"""Reads an export back and compares what it computes with what was saved.

In: a folder that was just written, and the parameters that went into it. Out: nothing, or an error. Bytes that arrive
are not enough: a wrong name, a transposed kernel or a lost setting shows only in the logits.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from model.config import ModelConfig
from model.errors import WeightsError
from model.hf_load import load_config, load_params
from model.llama import apply
from model.partition import MESH_AXES

PROBE_SHAPE = (2, 24)
TOLERANCE = 1e-4  # of the largest logit; the same program on the same values
_ADVICE = "nothing was replaced; check disk and memory, and report it if it happens again"


def check_export(folder: Path, config: ModelConfig, params: Any, dtype: str) -> None:
    """Raises WeightsError unless `folder` describes `config` and its weights give the logits of `params` as `dtype`.

    Logits are computed in float32 for a few random tokens, where `params` lie; the weights of the folder are loaded
    there too, so that there must be room for a second copy in `dtype`.
    """
    config = dataclasses.replace(config, param_dtype=dtype, compute_dtype="float32", attention="auto")
    found = load_config(folder, param_dtype=dtype, compute_dtype="float32")
    for field in dataclasses.fields(ModelConfig):
        stated, meant = getattr(found, field.name), getattr(config, field.name)
        if stated != meant and field.name != "eos_token_ids":  # a generation_config.json may add some
            raise WeightsError(folder, None, f"{field.name}={meant!r} on reading back", repr(stated), _ADVICE)
    expected = probe_logits(_as_dtype(params, dtype), config)
    logits = probe_logits(load_params(folder, found, dtype, _mesh_of(params)), found)
    worst = float(np.max(np.abs(logits - expected)))
    if not worst <= TOLERANCE * max(1.0, float(np.max(np.abs(expected)))):
        raise WeightsError(
            folder, None, "the logits of the saved parameters on reading back", f"others, by up to {worst:.1e}", _ADVICE
        )


def probe_logits(params: Any, config: ModelConfig) -> np.ndarray:
    """Returns float32[2, 24, V]: the logits of random tokens, always the same ones."""
    ids = np.random.default_rng(0).integers(0, config.vocab_size, PROBE_SHAPE).astype(np.int32)
    return np.asarray(apply(params, config, ids))


def _as_dtype(params: Any, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.dtype(dtype) else leaf.astype(jnp.dtype(dtype)), params)


def _mesh_of(params: Any) -> Mesh | None:
    """The mesh on which parameters lie, if it is one that parameters can be loaded onto."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh if set(MESH_AXES) <= set(sharding.mesh.axis_names) else None
    return None
