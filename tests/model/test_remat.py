"""Policies that compute layers again: the same gradients, less memory the more is computed again.

Memory is that of programs compiled for arrays that do not exist; gradients are computed at a tiny size.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.config import TrainConfig
from ditto_jax.errors import ConfigError
from ditto_jax.strict import build
from model import llama
from model.remat import KEPT_NAMES, Remat
from tests.tiny_policy import CONFIG, params, quickly_compiled, some_ids

BY_MEMORY: tuple[Remat, ...] = ("full", "save_attention", "save_projections", "none")


def gradient_of(remat: Remat, config=CONFIG):
    def loss(params, ids):
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
        hidden, _ = llama.forward(params, config, ids, positions, jnp.ones_like(ids), remat=remat)
        return jnp.sum(jnp.sin(hidden))

    return jax.grad(loss)


@functools.cache
def gradient(remat: Remat):
    ids = np.stack([some_ids(1, 12), some_ids(2, 12)])
    return jax.device_get(quickly_compiled(gradient_of(remat))(params(), ids))


def test_every_policy_has_a_place_in_the_order():
    assert set(BY_MEMORY) == {"none", *KEPT_NAMES}


@pytest.mark.parametrize("remat", KEPT_NAMES)
def test_gradients_do_not_depend_on_what_is_computed_again(remat):
    def close(found, expected):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)

    jax.tree.map(close, gradient(remat), gradient("none"))


def test_memory_falls_with_what_is_computed_again():
    config = dataclasses.replace(CONFIG, num_layers=6, hidden_size=64, intermediate_size=192)
    shapes = jax.eval_shape(lambda: llama.init(jax.random.key(0), config))
    ids = jax.ShapeDtypeStruct((4, 128), jnp.int32)

    def temporary(remat: Remat) -> int:
        memory = jax.jit(gradient_of(remat, config)).lower(shapes, ids).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    sizes = [temporary(remat) for remat in BY_MEMORY]
    # Each step up keeps more a layer: q, k, v and two results of attention; gate and up; the scores.
    tokens = 4 * 128 * 4 * (config.num_layers - 1)
    steps = np.diff(sizes)
    assert steps[0] > tokens * 2 * config.hidden_size
    assert steps[1] > tokens * 1.5 * config.intermediate_size
    assert steps[2] > tokens * 128 * config.num_heads


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="remat='some': choose one of none, full"):
        jax.eval_shape(gradient_of(cast(Any, "some")), params(), np.zeros((1, 4), np.int32))


@pytest.mark.parametrize("old", [True, False])
def test_a_yes_or_no_is_answered_with_the_policies(old):
    with pytest.raises(ConfigError, match=rf"remat={old}.*'none', 'full', 'save_attention' or 'save_projections'"):
        build(TrainConfig, {"remat": old})
