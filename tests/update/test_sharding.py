"""One update on 1, 2, 4 and 8 simulated devices: the mesh changes rounding, and nothing else.

The reference is the mesh of one device. `tests/conftest.py` asks jax for eight; with fewer, these tests fail and are
not skipped. Compiling for a mesh takes seconds, so that the meshes are few: together they split every axis.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ditto_jax.objective import OBJECTIVES
from ditto_jax.update.batch import TrainBatch
from ditto_jax.update.loss import denominators
from ditto_jax.update.score_step import make_score
from ditto_jax.update.state import OptimizerConfig, TrainState, make_optimizer, make_state, state_shardings
from ditto_jax.update.train_step import UpdateConfig, make_gradient, make_update
from model import llama
from model.partition import make_mesh, parameter_shardings, parameter_spec, row_sharding
from model.sampling import SamplingParams
from tests.tiny_batch import ONE, PROMPTS, Sizes, batch_of, mesh_of, place
from tests.tiny_policy import (
    CONFIG,
    SHAPES,
    compiled_programs,
    make_sampler,
    params,
    request,
    some_ids,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

MESHES: list[Sizes] = [(1, 1, 2), (2, 2, 1), (2, 2, 2)]
UPDATE = UpdateConfig(CONFIG, OBJECTIVES["ditto"])
# Adam divides small gradients by their own size: with a larger eps rounding stays rounding.
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, eps=1e-3, max_grad_norm=0.5), total_updates=10)


def name(sizes: Sizes) -> str:
    return "data {} fsdp {} tensor {}".format(*sizes)


def gradient_on(sizes: Sizes, batch: TrainBatch | None = None, config: UpdateConfig = UPDATE) -> tuple[float, Any]:
    """Returns (loss, gradients) as host values."""
    mesh, batch = mesh_of(sizes), batch_of() if batch is None else batch
    mask, role, valid = (
        jnp.asarray(x).reshape(-1, *x.shape[3:]) for x in (batch.loss_mask, batch.role, batch.row_valid)
    )
    count = denominators(mask, role, valid, UPDATE.objective)
    weights = jax.device_put(params(), parameter_shardings(params(), mesh))
    micro = jax.device_put(jax.tree.map(lambda x: x[0], batch), row_sharding(mesh))
    return jax.device_get(gradient(sizes, config)(weights, micro, np.asarray(count)))


@functools.cache
def gradient(sizes: Sizes, config: UpdateConfig):
    return make_gradient(config, mesh_of(sizes))


@functools.cache
def reference() -> tuple[float, Any]:
    return gradient_on(ONE)


def assert_norms_close(found: Any, expected: Any, tolerance: float) -> None:
    """Asserts that each tensor differs by at most `tolerance` of its norm."""
    relative = jax.tree.map(lambda f, e: np.linalg.norm(f - e) / np.linalg.norm(e), found, expected)
    worst = max(jax.tree.leaves(relative))
    assert worst <= tolerance, f"differ by {worst:.1e} of the norm"


def assert_agrees(found: tuple[float, Any], expected: tuple[float, Any]) -> None:
    assert abs(found[0] - expected[0]) <= 1e-5 * abs(expected[0]), f"losses differ: {found[0]}, {expected[0]}"
    assert_norms_close(found[1], expected[1], 1e-4)


@pytest.mark.parametrize("sizes", MESHES, ids=name)
def test_loss_and_gradients_are_those_of_one_device_on(sizes):
    assert_agrees(gradient_on(sizes), reference())


def test_the_comparison_notices_that_the_rows_of_one_device_were_left_out():
    batch = batch_of()
    valid = batch.row_valid.copy()
    assert valid[:, :1].any()
    valid[:, :1] = False
    lost = batch._replace(row_valid=valid)
    with pytest.raises(AssertionError, match="differ"):
        assert_agrees(gradient_on((2, 2, 2), lost), reference())


# The update.


def new_state(mesh: Mesh) -> TrainState:
    return make_state(params(), OPTIMIZER, mesh)


@functools.cache
def updater(sizes: Sizes):
    mesh = mesh_of(sizes)
    return make_update(UPDATE, OPTIMIZER, mesh, new_state(mesh))


@functools.cache
def updated(sizes: Sizes, groups: int) -> list[tuple[TrainState, dict, dict, float]]:
    """Returns host copies of (state, sums, gap, norm) after the first and after the second update."""
    mesh = mesh_of(sizes)
    state, results = new_state(mesh), []
    for _ in range(2):
        state, *rest = updater(sizes)(state, place(batch_of(groups), mesh))
        results.append(jax.device_get((state, *rest)))
    return results


def moments(state: TrainState) -> list[np.ndarray]:
    return [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]


def assert_same_updates(found, expected) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        change, other_change = (jax.tree.map(np.subtract, r[0].params, params()) for r in (mine, theirs))
        assert_norms_close(change, other_change, 1e-3)
        assert_norms_close(moments(mine[0]), moments(theirs[0]), 1e-4)
        for one, other in zip(mine[1:], theirs[1:], strict=True):
            jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5), one, other)


def test_two_updates_in_four_micro_batches_on_one_device_equal_those_in_two_on_eight():
    assert batch_of(2).row_valid.shape[:2] == (4, 2) and batch_of(4).row_valid.shape[:2] == (2, 4)
    assert_same_updates(updated((2, 2, 2), groups=4), updated(ONE, groups=2))


def test_an_update_in_micro_batches_follows_the_gradient_of_the_whole_batch():
    state, sums, _, norm = updated(ONE, groups=2)[0]
    loss, gradients = reference()
    assert float(norm) == pytest.approx(float(np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients)))), rel=1e-5)
    assert float(sums["loss"].sum()) == pytest.approx(float(loss), rel=1e-5)
    adam = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    clipped = jax.tree.map(lambda g: 0.1 * g * min(1.0, 0.5 / float(norm)), gradients)  # 1 - beta1 = 0.1
    assert_norms_close(adam.mu, clipped, 1e-4)
    assert [int(result[0].updates) for result in updated(ONE, groups=2)] == [1, 2]


def test_the_state_is_donated_and_the_second_step_compiles_nothing():
    mesh = mesh_of((2, 2, 2))
    update, state = updater((2, 2, 2)), new_state(mesh)
    batches = [place(batch_of(4), mesh) for _ in range(3)]
    after, *_ = update(state, batches[0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert jax.tree.map(lambda x: x.sharding, after) == state_shardings(after, OPTIMIZER, mesh)
    with compiled_programs() as programs:
        for batch in batches[1:]:
            after, *_ = update(after, batch)
    assert programs == []


def test_scored_anchors_give_the_gradient_of_current_weights_as_their_own_anchor():
    # The ratio is 1 at the anchor either way.
    mesh = mesh_of(ONE)
    weights = jax.device_put(params(), parameter_shardings(params(), mesh))
    anchors = jax.device_get(make_score(UPDATE, mesh)(weights, place(batch_of(), mesh)))
    assert_agrees(gradient_on(ONE, batch_of()._replace(anchor=anchors)), reference())
    with pytest.raises(AssertionError, match="differ"):
        assert_agrees(gradient_on(ONE, batch_of()._replace(anchor=anchors - 0.1)), reference())


# Sampling.


@functools.cache
def sampled(sizes: Sizes | None) -> list[Any]:
    mesh = None if sizes is None else mesh_of(sizes)
    weights = params() if mesh is None else jax.device_put(params(), parameter_shardings(params(), mesh))
    shared = [some_ids(300 + group, 9) for group in range(5)]
    said = [np.append(shared[n // 4], some_ids(n, 1 + n % 3)) for n in range(20)]
    sampler = make_sampler(dataclasses.replace(SHAPES, max_rows=32), stop_ids=(CONFIG.vocab_size,), mesh=mesh)
    results = []
    for turn in range(2):
        found: dict[int, Any] = {}
        requests = [request(ids, n // 4, 100 * turn + n) for n, ids in enumerate(said)]
        for finished in sampler.generate(weights, requests, SamplingParams(), keep_rows=True):
            found |= dict(finished)
        said = [np.concatenate([ids, found[n].ids, some_ids(40 + n, 2)]) for n, ids in enumerate(said)]
        results += [found[n] for n in range(len(said))]
    assert sampler.work.kept_tokens_reused > 0
    return results


@pytest.mark.parametrize("sizes", [(2, 1, 1), (4, 2, 1)], ids=name)
def test_sampled_ids_are_equal_on(sizes):
    for one, other in zip(sampled(sizes), sampled(None), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
        assert one.finish_reason is other.finish_reason


# Where things lie.


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_parameter_has_a_place_and_every_matrix_is_split_by_both_axes(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    shapes = jax.eval_shape(lambda key: llama.init(key, config), jax.random.key(0))
    placed = parameter_shardings(shapes, mesh_of((2, 2, 2)))
    for (path, leaf), sharding in zip(jax.tree.leaves_with_path(shapes), jax.tree.leaves(placed), strict=True):
        named = [axis for axis in sharding.spec if axis is not None]
        axes = {name for axis in named for name in ((axis,) if isinstance(axis, str) else axis)}
        is_norm = path[-1].key == "scale"
        assert len(sharding.spec) == leaf.ndim
        assert axes == (set() if is_norm else {"fsdp", "tensor"}), jax.tree_util.keystr(path)


def test_a_dimension_that_the_axis_does_not_divide_stays_whole():
    odd = {"attn": {"q": {"kernel": np.zeros((2, 6, 7), np.float32)}}}
    placed = parameter_shardings(odd, mesh_of((2, 2, 2)))
    assert placed["attn"]["q"]["kernel"].spec == PartitionSpec(None, "fsdp", None)


@pytest.mark.parametrize(
    "tree", [{"attn": {"bias": np.zeros(3)}}, {"lonely": np.zeros(3)}, {"q": {"scale": np.zeros(3)}}]
)
def test_an_unknown_parameter_is_an_error_and_never_silently_replicated(tree):
    with pytest.raises(ValueError, match="has no entry in PARAMETER_AXES"):
        parameter_shardings(tree, mesh_of(ONE))


def test_an_update_of_one_group_a_device_is_split_over_data_and_fsdp():
    placed = place(batch_of(), mesh_of((2, 2, 2)))
    shards = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape)[1], placed)
    assert set(jax.tree.leaves(shards)) == {PROMPTS // 4}


def test_moments_lie_like_their_parameters():
    mesh = mesh_of((2, 2, 2))
    state = new_state(mesh)
    places = {leaf.sharding.spec for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
    assert places == {leaf.sharding.spec for leaf in jax.tree.leaves(state.params)}
    assert isinstance(state.updates.sharding, NamedSharding) and state.updates.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((3, 1, 1), "needs 3 devices, 8 are present; set one size to -1"),
        ((-1, 3, 1), "8 devices are not divisible by 3"),
        ((-1, -1, 1), "at most one is -1"),
        ((0, 1, 1), "sizes are positive"),
        ((-2, 1, 1), "sizes are positive"),
    ],
)
def test_mesh_sizes_that_do_not_fit_are_refused(sizes, text):
    with pytest.raises(ValueError, match=text):
        make_mesh(*sizes, devices=jax.devices()[:8])


def test_one_size_takes_the_devices_that_are_left():
    assert dict(make_mesh(-1, 2, 2, devices=jax.devices()[:8]).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(2, -1, 1, devices=jax.devices()[:8]).shape) == {"data": 2, "fsdp": 4, "tensor": 1}


def test_a_parameter_is_found_by_the_last_two_names_of_its_path():
    path = tuple(jax.tree_util.DictKey(part) for part in ("layers", "mlp", "down", "kernel"))
    assert parameter_spec(path) == PartitionSpec(None, "tensor", "fsdp")
