"""Every dtype is a setting: short activations, moments and gradient sums learn what float32 learns, up to rounding."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.objective import OBJECTIVES
from ditto_jax.update import train_step
from ditto_jax.update.loss import denominators
from ditto_jax.update.state import OptimizerConfig, TrainState, make_optimizer, make_state
from ditto_jax.update.train_step import UpdateConfig, make_gradient, make_update
from model import llama
from model.lora import LoraConfig, init_adapters
from model.partition import row_sharding
from tests.tiny_batch import ONE, batch_of, mesh_of, place
from tests.tiny_policy import CONFIG, params, some_ids

pytestmark = pytest.mark.usefixtures("quick_compilation")

UPDATE = UpdateConfig(CONFIG, OBJECTIVES["ditto"])
SMOOTH = OptimizerConfig(learning_rate=1e-2, eps=1e-3, beta2=0.98)


def computing_in(dtype: str) -> UpdateConfig:
    return dataclasses.replace(UPDATE, model=dataclasses.replace(CONFIG, compute_dtype=dtype))


def gradient_of(config: UpdateConfig, count_times: float = 1.0) -> Any:
    """The gradient of the batch, each loss divided by `count_times` as many tokens."""
    batch, mesh = batch_of(), mesh_of(ONE)
    mask, role, valid = (
        jnp.asarray(x).reshape(-1, *x.shape[3:]) for x in (batch.loss_mask, batch.role, batch.row_valid)
    )
    count = count_times * denominators(mask, role, valid, config.objective)
    micro = jax.device_put(jax.tree.map(lambda x: x[0], batch), row_sharding(mesh))
    return jax.device_get(make_gradient(config, mesh)(params(), micro, np.asarray(count))[1])


@functools.cache
def reference() -> Any:
    return gradient_of(UPDATE)


def relative_error(found: Any, expected: Any, factor: float = 1.0) -> float:
    """The largest error of a tensor over its norm, with `found` multiplied by `factor`."""
    errors = jax.tree.map(lambda f, e: np.linalg.norm(factor * f - e) / np.linalg.norm(e), found, expected)
    return max(jax.tree.leaves(errors))


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_logits_are_float32_and_gradients_those_of_float32_when_activations_are(dtype, tolerance):
    config = dataclasses.replace(CONFIG, compute_dtype=dtype)
    found = llama.apply(params(), config, some_ids(0, 16)[None])
    assert found.dtype == jnp.float32
    assert np.abs(found - llama.apply(params(), CONFIG, some_ids(0, 16)[None])).max() < 0.2
    assert relative_error(gradient_of(computing_in(dtype)), reference()) < tolerance


def test_tiny_gradients_survive_float16_and_would_not_without_the_loss_scale(monkeypatch):
    many = 2.0**24  # as many times the tokens: gradients below what float16 can hold
    config = computing_in("float16")
    assert relative_error(gradient_of(config, many), reference(), many) < 0.02
    monkeypatch.setattr(train_step, "_loss_scale", lambda denominator, config: 1.0)
    assert relative_error(gradient_of(config, many), reference(), many) > 0.5


def updated(config: UpdateConfig, optimizer: OptimizerConfig, start: Any = None, updates: int = 2):
    """Returns (initial state, host state after some updates, last norm); micro-batches of two groups."""
    mesh, chain = mesh_of(ONE), make_optimizer(optimizer, total_updates=10)
    state = first = make_state(jax.tree.map(np.array, params() if start is None else start), chain, mesh)
    kinds = jax.tree.map(lambda leaf: leaf.dtype, first)
    update, norm = make_update(config, chain, mesh, state), None
    for _ in range(updates):
        state, _, _, norm = update(state, place(batch_of(2), mesh))
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == kinds
    return jax.device_get(state), float(norm)


def change(state: TrainState) -> Any:
    return jax.tree.map(np.subtract, state.params, params())


def adam_of(state: TrainState) -> optax.ScaleByAdamState:
    return next(part for part in state.opt_state if isinstance(part, optax.ScaleByAdamState))


@functools.cache
def in_float32() -> TrainState:
    return updated(UPDATE, SMOOTH)[0]


@pytest.mark.parametrize("changes", [{"mu_dtype": "bfloat16"}, {"nu_dtype": "bfloat16"}], ids=str)
def test_a_short_moment_is_stored_short_and_moves_the_parameters_alike(changes):
    state, _ = updated(UPDATE, dataclasses.replace(SMOOTH, **changes))
    kinds = {name: {leaf.dtype for leaf in jax.tree.leaves(getattr(adam_of(state), name))} for name in ("mu", "nu")}
    assert kinds == {name: {jnp.dtype(changes.get(f"{name}_dtype", "float32"))} for name in ("mu", "nu")}
    error = relative_error(change(state), change(in_float32()))
    assert 0 < error < 0.05


def test_moments_are_float32_when_parameters_are_bfloat16():
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())
    state, _ = updated(UPDATE, SMOOTH, start=short, updates=1)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves((adam_of(state).mu, adam_of(state).nu))} == {jnp.dtype("float32")}


def test_gradients_can_be_summed_in_bfloat16():
    state, _ = updated(dataclasses.replace(UPDATE, gradient_dtype="bfloat16"), SMOOTH)
    assert 0 < relative_error(change(state), change(in_float32())) < 0.05


def test_adam_with_float32_moments_is_that_of_optax():
    config = dataclasses.replace(SMOOTH, weight_decay=0.1)
    chain = make_optimizer(config, total_updates=10)
    plain = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(config.learning_rate, config.beta1, config.beta2, config.eps, weight_decay=config.weight_decay),
    )
    weights, grads = params(), jax.tree.map(lambda leaf: 0.1 * leaf, params())
    found, expected = (o.update(grads, o.init(weights), weights)[0] for o in (chain, plain))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_an_update_in_float16_that_overflows_leaves_the_state_as_it_was():
    spoiled = jax.tree.map(np.array, params())
    spoiled["layers"]["mlp"]["up"]["kernel"] *= 1e6
    state, norm = updated(computing_in("float16"), SMOOTH, start=spoiled, updates=1)
    assert not np.isfinite(norm)
    jax.tree.map(np.testing.assert_array_equal, state.params, spoiled)
    assert int(state.updates) == 0 and int(adam_of(state).count) == 0


def test_adapters_have_their_own_dtype():
    lora = LoraConfig(rank=4, dtype="bfloat16")
    leaves = jax.tree.leaves(init_adapters(jax.random.key(0), CONFIG, lora))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"mu_dtype": "float16"}, "optimizer.mu_dtype='float16': choose float32 or bfloat16"),
        ({"nu_dtype": "int8"}, "optimizer.nu_dtype='int8': choose float32 or bfloat16"),
        ({"nu_dtype": "bfloat16"}, "beta2=0.999: a step of 1 - beta2 is lost in bfloat16.*set beta2 to 0.98"),
    ],
)
def test_dtypes_that_cannot_work_are_refused(values, text):
    with pytest.raises(ConfigError, match=text):
        OptimizerConfig(**values)


def test_a_second_moment_in_bfloat16_would_stand_still_at_the_refused_beta2():
    kept = jnp.bfloat16(1.0)
    assert (0.999 * jnp.float32(kept)).astype(jnp.bfloat16) == kept
    assert (0.98 * jnp.float32(kept)).astype(jnp.bfloat16) < kept
