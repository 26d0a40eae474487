"""The update of adapters: the base is read, and neither differentiated, donated, returned nor kept in the state."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.objective import OBJECTIVES
from ditto_jax.update.batch import TrainBatch
from ditto_jax.update.loss import denominators
from ditto_jax.update.state import OptimizerConfig, TrainState, make_optimizer, make_state
from ditto_jax.update.train_step import UpdateConfig, make_gradient, make_update
from model.lora import LoraConfig, combine, init_adapters
from model.partition import parameter_shardings, row_sharding
from tests.tiny_batch import ONE, Sizes, batch_of, mesh_of, place
from tests.tiny_policy import CONFIG, params

pytestmark = pytest.mark.usefixtures("quick_compilation")

# A vocabulary whose matrices have shapes of their own, so that they can be told from those of a layer.
MODEL = dataclasses.replace(CONFIG, vocab_size=67)
LORA = LoraConfig(rank=4, alpha=8.0)
UPDATE = UpdateConfig(MODEL, OBJECTIVES["ditto"], lora=LORA)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2), total_updates=10)


@functools.cache
def base_params() -> Any:
    """The tiny policy with three more tokens, which no batch contains."""
    table = np.pad(params()["embed"]["embedding"], ((0, 3), (0, 0)))
    head = np.pad(params()["head"]["kernel"], ((0, 0), (0, 3)))
    return {**params(), "embed": {"embedding": table}, "head": {"kernel": head}}


@functools.cache
def adapters() -> Any:
    """Adapters whose B is not zero, as NumPy arrays."""
    rng = np.random.default_rng(2)
    drawn = init_adapters(jax.random.key(1), MODEL, LORA)
    return jax.tree.map(lambda leaf: rng.normal(scale=0.1, size=leaf.shape).astype(np.float32), drawn)


def placed(tree: Any, sizes: Sizes) -> Any:
    return jax.device_put(tree, parameter_shardings(tree, mesh_of(sizes)))


def compiled_update(config: UpdateConfig, trained: Any, base: Any, sizes: Sizes = ONE):
    """Returns (the compiled update of trained and base, its state)."""
    mesh = mesh_of(sizes)
    state = make_state(trained, OPTIMIZER, mesh)
    update = make_update(config, OPTIMIZER, mesh, state, base)
    return update.lower(state, place(batch_of(4), mesh)).compile(), state


@functools.cache
def of_adapters():
    return compiled_update(UPDATE, adapters(), placed(base_params(), ONE))


@functools.cache
def of_everything():
    return compiled_update(dataclasses.replace(UPDATE, lora=None), base_params(), None)


def computed_shapes(program: Any) -> set[str]:
    """Types of everything that the program computes: results that are not merely handed on."""
    handed_on = ("parameter", "get-tuple-element", "tuple", "while", "conditional", "bitcast")
    lines = re.findall(r"= (\w+\[[\d,]*\])\S* ([\w-]+)\(", program.as_text())
    return {kind for kind, operation in lines if operation not in handed_on}


def kernel_types(tree: Any) -> set[str]:
    return {
        f"f32[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree.leaves_with_path(tree)
        if path[-1].key in ("kernel", "embedding")
    }


def size_of(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_no_result_of_the_compiled_update_has_the_shape_of_a_base_matrix():
    assert kernel_types(base_params()) & computed_shapes(of_adapters()[0]) == set()


def test_the_search_finds_the_gradients_of_full_parameter_training():
    assert kernel_types(base_params()) <= computed_shapes(of_everything()[0])


def test_what_is_donated_is_adapters_and_optimizer_state_and_nothing_else():
    program, state = of_adapters()
    memory = program.memory_analysis()
    assert size_of(state.params) == size_of(adapters()) < size_of(base_params()) / 2
    assert memory.alias_size_in_bytes == size_of(state)
    assert memory.argument_size_in_bytes >= size_of(state) + size_of(base_params())
    assert memory.output_size_in_bytes - size_of(state) < 4096  # sums for metrics


def test_full_parameter_training_donates_the_whole_state():
    program, state = of_everything()
    assert program.memory_analysis().alias_size_in_bytes == size_of(state) > 3 * size_of(base_params())


def test_an_update_moves_the_adapters_and_leaves_the_base_alive_and_as_it_was():
    mesh, base = mesh_of(ONE), placed(base_params(), ONE)
    state = make_state(adapters(), OPTIMIZER, mesh)
    update = make_update(UPDATE, OPTIMIZER, mesh, state, base)
    after, *_ = update(state, place(batch_of(4), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert isinstance(after, TrainState) and int(after.updates) == 1
    jax.tree.map(np.testing.assert_array_equal, base, base_params())
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), after.params, adapters())
    assert min(jax.tree.leaves(moved)) > 1e-4


def gradient_on(
    sizes: Sizes, config: UpdateConfig, trained: Any, base: Any, batch: TrainBatch | None = None
) -> tuple[float, Any]:
    batch, mesh = batch_of() if batch is None else batch, mesh_of(sizes)
    mask, role, valid = (
        jnp.asarray(x).reshape(-1, *x.shape[3:]) for x in (batch.loss_mask, batch.role, batch.row_valid)
    )
    count = denominators(mask, role, valid, config.objective)
    micro = jax.device_put(jax.tree.map(lambda x: x[0], batch), row_sharding(mesh))
    gradient = make_gradient(config, mesh, None if base is None else placed(base, sizes))
    return jax.device_get(gradient(placed(trained, sizes), micro, np.asarray(count)))


@functools.cache
def reference() -> tuple[float, Any]:
    return gradient_on(ONE, UPDATE, adapters(), base_params())


def test_the_loss_and_gradient_of_adapters_on_eight_devices_are_those_of_one():
    loss, gradients = gradient_on((2, 2, 2), UPDATE, adapters(), base_params())
    assert loss == pytest.approx(reference()[0], rel=1e-5)
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, atol=1e-4 * np.linalg.norm(e), rtol=0), gradients, reference()[1]
    )


def test_the_loss_is_that_of_the_combined_parameters():
    # With anchors of zero: at the current ones the loss does not depend on the parameters.
    batch = batch_of()._replace(anchor=np.zeros_like(batch_of().behaviour))
    full = dataclasses.replace(UPDATE, lora=None)
    found, _ = gradient_on(ONE, UPDATE, adapters(), base_params(), batch)
    expected, _ = gradient_on(ONE, full, combine(base_params(), adapters(), LORA), None, batch)
    without, _ = gradient_on(ONE, full, base_params(), None, batch)
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(without - expected) > 1e-3 * abs(expected)
