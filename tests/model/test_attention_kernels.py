"""Every attention kernel gives what the reference path gives, values and gradients, or is not asked.

Splash runs step by step on the CPU; of cuDNN the mapping of arguments runs here through XLA, and the kernel itself only
where there is a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.policy import load_policy
from model import attention, attention_cudnn, attention_kernels, attention_splash
from model.attention import KeyValues, Window, attend, segment_mask
from model.attention_kernels import kernel_of, run_kernel
from model.config import ModelConfig
from model.errors import UnsupportedModel
from model.logprobs import GroupedIds, grouped_logprobs
from model.partition import make_mesh
from tests.tiny_batch import mesh_of
from tests.tiny_policy import CONFIG, params

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, GROUPS, HEADS, KV_HEADS, WIDTH = 4, 2, 4, 2, 16
LENGTH = 128
HAS_GPU = jax.default_backend() == "gpu"


@pytest.fixture(params=["cudnn", "splash"])
def kernel(request, monkeypatch) -> str:
    """A kernel's name; asked for by name it serves every call with more than one query, on this CPU."""
    emulated = {"implementation": "xla"} if request.param == "cudnn" else {"interpret": True}
    module = {"cudnn": attention_cudnn, "splash": attention_splash}[request.param]
    monkeypatch.setattr(module, "attend", functools.partial(module.attend, **emulated))
    monkeypatch.setattr(attention_kernels, "_fits", lambda name, q, keys: q.shape[1] % LENGTH == 0)
    return request.param


class Call(NamedTuple):
    """Arguments of `attend`; the segments hold padding at both ends, so that some queries see nothing of their own."""

    q: Any
    own: KeyValues
    prefix: KeyValues
    own_mask: Any
    prefix_valid: Any
    window: Window


def some_call(seed: int = 0, dtype: Any = np.float32) -> Call:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    segments = np.sort(rng.integers(1, 4, (ROWS, LENGTH)), axis=1).astype(np.int32)
    segments[:, :5], segments[:, -9:] = 0, 0
    positions = np.cumsum(np.ones((ROWS, LENGTH), np.int32), axis=1) + 90
    return Call(
        draw(ROWS, LENGTH, HEADS, WIDTH),
        KeyValues(*(draw(ROWS, KV_HEADS, LENGTH, WIDTH) for _ in range(2))),
        KeyValues(*(draw(GROUPS, KV_HEADS, LENGTH, WIDTH) for _ in range(2))),
        segment_mask(jnp.asarray(segments)),
        np.arange(LENGTH) < np.array([[100], [37]]),
        Window(jnp.int32(150), jnp.asarray(positions), jnp.asarray(positions)),
    )


def attended(call: Call, kernel: str, *, prefix: bool, window: bool) -> jax.Array:
    shared = (call.prefix, call.prefix_valid) if prefix else (None, None)
    return attend(call.q, call.own, call.own_mask, *shared, call.window if window else None, kernel)


@pytest.mark.parametrize("window", [False, True], ids=["", "window"])
@pytest.mark.parametrize("prefix", [False, True], ids=["", "prefix"])
def test_a_kernel_gives_the_values_and_gradients_of_the_reference(kernel, prefix, window):
    call = some_call()
    seen = jnp.any(call.own_mask, axis=-1)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=call.q.shape)) * seen[..., None, None]

    def outcome(kernel: str):
        def loss(q, own, shared):
            out = attended(call._replace(q=q, own=own, prefix=shared), kernel, prefix=prefix, window=window)
            return jnp.sum(out * weights), out

        grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        (_, out), gradients = grad(call.q, call.own, call.prefix)
        return out * seen[..., None, None], gradients

    found, expected = outcome(kernel), outcome("reference")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    unlike = outcome("reference")[0] - attended(call, "reference", prefix=not prefix, window=window)
    assert np.max(np.abs(unlike * seen[..., None, None])) > 0.1


def test_a_window_hides_keys_from_a_kernel(kernel):
    call = some_call()
    open_, limited = (attended(call, kernel, prefix=True, window=window) for window in (False, True))
    assert np.max(np.abs((open_ - limited)[:, -20:-9])) > 0.01


def test_a_query_that_sees_nothing_gives_finite_numbers(kernel):
    call = some_call()

    def total(q, own):
        return jnp.sum(jnp.square(attended(call._replace(q=q, own=own), kernel, prefix=False, window=False)))

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(call.q, call.own)
    assert np.isfinite(value) and all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def packed() -> GroupedIds:
    """Two groups of two prefixes and two lanes each; a lane has a suffix to each prefix, and ends in padding."""
    rng = np.random.default_rng(3)
    prefix, lanes = rng.integers(3, 64, (2, LENGTH)), rng.integers(3, 64, (2, 2, LENGTH))
    first, column = np.array([[70], [30]]), np.arange(LENGTH)
    prefix_segments = np.where(column < first, 1, np.where(column < 115, 2, 0))
    prefix_positions = np.where(column < first, column, column - first)
    segments = np.broadcast_to(np.where(column < 50, 1, np.where(column < 110, 2, 0)), lanes.shape)
    lengths = np.where(column < 50, first, 115 - first)[:, None]
    positions = np.broadcast_to(lengths + np.where(column < 50, column, column - 50), lanes.shape)
    tokens = [np.stack([lane * LENGTH + start + np.arange(50) for lane in (0, 1) for start in (0, 50)])] * 2
    arrays: Any = (prefix, prefix_positions, prefix_segments, lanes, positions, segments, segments, np.stack(tokens))
    return GroupedIds(*(np.asarray(array, np.int32) for array in arrays))


def test_a_model_with_windows_scores_packed_rows_and_learns_alike_with_every_kernel(kernel, monkeypatch):
    config = dataclasses.replace(CONFIG, family="smollm3", sliding_window=40, full_attention_layers=(1,))
    ran = []
    run = attention.run_kernel
    monkeypatch.setattr(attention, "run_kernel", lambda name, *args: ran.append(name) or run(name, *args))

    def scores(config: ModelConfig):
        def loss(tree):
            found = grouped_logprobs(tree, config, packed(), remat="full")[..., 1:]
            return jnp.sum(found), found

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params())

    expected = scores(dataclasses.replace(config, attention="reference"))
    assert not ran
    found = scores(dataclasses.replace(config, attention=kernel))
    assert set(ran) == {kernel}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)


def test_each_device_of_a_mesh_runs_its_own_rows_and_heads(kernel):
    call = some_call()
    expected = attended(call, "reference", prefix=True, window=True)
    with jax.set_mesh(mesh_of((2, 1, 2))):
        lowered = jax.jit(functools.partial(attended, prefix=True, window=True), static_argnums=1).lower(call, kernel)
        found = lowered.compile()(call)
    seen = np.any(call.own_mask, axis=-1)[..., None, None]
    np.testing.assert_allclose(found * seen, expected * seen, atol=2e-5)


def shapes(rows=4, queries=128, keys=128, dtype="bfloat16", heads=8, kv_heads=2, width=64) -> tuple[Any, Any]:
    q = jax.ShapeDtypeStruct((rows, queries, heads, width), jnp.dtype(dtype))
    return q, jax.ShapeDtypeStruct((rows, kv_heads, keys, width), jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("changes", "cudnn", "splash"),
    [
        ({}, "cudnn", "splash"),
        ({"queries": 1}, "reference", "reference"),
        ({"dtype": "float32"}, "reference", "splash"),
        ({"dtype": "float16"}, "cudnn", "reference"),
        ({"queries": 96, "keys": 96}, "cudnn", "reference"),
        ({"queries": 96, "keys": 97}, "reference", "reference"),
        ({"width": 256}, "reference", "splash"),
        ({"width": 36}, "reference", "splash"),
    ],
    ids=str,
)
def test_a_call_that_a_kernel_cannot_serve_is_the_references(changes, cudnn, splash):
    q, own = shapes(**changes)
    assert kernel_of("cudnn", q, own, None) == cudnn
    assert kernel_of("splash", q, own, None) == splash
    assert kernel_of("auto", q, own, None) == kernel_of("cudnn" if HAS_GPU else "reference", q, own, None)


def test_few_queries_do_not_copy_a_prefix_of_many_rows():
    def chosen(queries: int, groups: int) -> str:
        q, own = shapes(rows=8, queries=queries, keys=128)
        prefix = jax.ShapeDtypeStruct((groups, *own.shape[1:]), own.dtype)
        return kernel_of("cudnn", q, own, prefix)

    assert (chosen(8, 1), chosen(8, 8), chosen(64, 1)) == ("reference", "cudnn", "cudnn")


def test_keys_in_another_dtype_and_meshes_that_do_not_divide_the_call_are_the_references():
    q, own = shapes(rows=4, kv_heads=2)
    assert kernel_of("splash", q, jax.ShapeDtypeStruct(own.shape, jnp.int8), None) == "reference"
    for sizes, expected in (((2, 1, 2), "splash"), ((8, 1, 1), "reference"), ((1, 1, 4), "reference")):
        with jax.set_mesh(mesh_of(sizes)):
            assert kernel_of("splash", q, own, None) == expected


def test_unknown_kernels_and_kernels_of_other_devices_are_refused(policy_folder):
    with pytest.raises(UnsupportedModel, match=r"attention='flash' .* choose one of auto, reference, cudnn, splash"):
        dataclasses.replace(CONFIG, attention="flash")
    with pytest.raises(ConfigError, match="attention=splash: it needs a TPU, and this is a .*; set auto"):
        load_policy(str(policy_folder), make_mesh(), attention="splash")


@pytest.mark.skipif(not HAS_GPU, reason="cuDNN needs a GPU")
def test_cudnn_itself_gives_the_values_and_gradients_of_the_reference():
    call = some_call(dtype=jnp.bfloat16)
    exact = some_call()
    seen = jnp.any(call.own_mask, axis=-1)[..., None, None]
    k, v, mask = attention._joined(call.own, call.own_mask, call.prefix, call.prefix_valid, call.window)

    def loss(q, k, v):
        out = run_kernel("cudnn", q, k, v, mask) * seen
        return jnp.sum(jnp.square(out.astype(jnp.float32))), out

    def expected_loss(q, k, v):
        out = attend(q, KeyValues(k, v), mask) * seen
        return jnp.sum(jnp.square(out)), out

    widened = [jnp.asarray(array, jnp.float32) for array in (exact.q, k, v)]
    expected = jax.grad(expected_loss, argnums=(0, 1, 2), has_aux=True)(*widened)
    found = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(call.q, k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=0.1), found, expected)
