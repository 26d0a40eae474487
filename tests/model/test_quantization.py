"""Weights in 8 bits: errors of half a step, products of the dequantised matrix, gradients that reach x alone."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

from model import hf_load, llama
from model.hf_io import load_params, save_params
from model.lora import LoraConfig, combine, init_adapters, merge
from model.mismatch import policy_mismatch
from model.partition import make_mesh, parameter_shardings
from model.quantization import dequantize, dequantize_params, int8_product, quantize, quantize_params
from tests.tiny_policy import CONFIG, params, some_ids

TIED = dataclasses.replace(CONFIG, tie_embeddings=True)


def tied_params() -> Any:
    return {name: leaf for name, leaf in params().items() if name != "head"}


def quantized(kind: str) -> Any:
    return quantize_params(params(), kind)


def paths(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]


@given(st.integers(0, 2**31), st.sampled_from([-1, -2]), st.floats(1e-6, 1e6))
def test_an_entry_is_off_by_at_most_half_its_channels_scale(seed, axis, size):
    weight = (size * np.random.default_rng(seed).normal(size=(2, 5, 7))).astype(np.float32)
    weight[0, 2, :] = weight[1, :, 3] = 0.0
    codes, scale = quantize(weight, axis)
    assert codes.dtype == np.int8 and scale.dtype == np.float32
    np.testing.assert_allclose(scale, np.abs(weight).max(axis) / 127, rtol=1e-6)
    error = np.abs(dequantize(codes, scale, axis) - weight)
    assert (error <= np.expand_dims(scale, axis) * 0.5001).all()


def test_arrays_of_numpy_and_of_jax_give_the_same_codes():
    weight = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    (codes, scale), (other_codes, other_scale) = quantize(weight, -2), quantize(jnp.asarray(weight), -2)
    np.testing.assert_array_equal(codes, other_codes)
    np.testing.assert_allclose(scale, other_scale, rtol=1e-6)


@pytest.mark.parametrize("axis", [-1, -2])
def test_product_and_gradient_are_those_of_the_dequantised_matrix(axis):
    rng = np.random.default_rng(1)
    weight, x = rng.normal(size=(12, 12)).astype(np.float32), rng.normal(size=(3, 5, 12)).astype(np.float32)
    codes, scale = (jnp.asarray(part) for part in quantize(weight, axis))
    full = dequantize(codes, scale, axis)
    full = full.T if axis == -1 else full
    weights = rng.normal(size=(3, 5, 12)).astype(np.float32)

    def loss(x, product):
        return jnp.sum(product(x) * weights)

    found = jax.value_and_grad(loss)(x, lambda x: int8_product(x, codes, scale, axis))
    expected = jax.value_and_grad(loss)(x, lambda x: x @ full)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_both_products_multiply_in_the_dtype_of_x_and_add_in_float32(dtype):
    codes, scale = (jnp.asarray(part) for part in quantize(np.ones((8, 4), np.float32), -2))
    x = jnp.ones((2, 8), dtype)
    program = str(jax.make_jaxpr(jax.grad(lambda x: int8_product(x, codes, scale, -2).sum()))(x))
    short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    products = re.findall(r"dot_general\[.*?\] (\w+) (\w+)", program, flags=re.DOTALL)
    kinds = dict(re.findall(r"(\w+):(\w+)\[", program))
    assert len(products) == 2
    assert {kinds[name] for pair in products for name in pair} == {short}
    assert int8_product(x, codes, scale, -2).dtype == jnp.float32


def test_only_x_has_a_gradient():
    weight = np.random.default_rng(2).normal(size=(6, 6)).astype(np.float32)
    codes, scale = quantize(weight, -2)
    to_scale = jax.grad(lambda s: int8_product(jnp.ones((2, 6)), jnp.asarray(codes), s, -2).sum())(jnp.asarray(scale))
    assert not to_scale.any()


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["head of its own", "tied head"])
@pytest.mark.parametrize("kind", ["int8", "int8_all"])
def test_a_policy_in_8_bits_computes_what_its_dequantised_weights_compute(kind, config):
    exact = tied_params() if config.tie_embeddings else params()
    small, ids = quantize_params(exact, kind), some_ids(0, 24)[None]
    found = llama.apply(small, config, ids)
    np.testing.assert_allclose(found, llama.apply(dequantize_params(small), config, ids), atol=3e-5)
    assert np.abs(found - llama.apply(exact, config, ids)).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("none", {"embed/embedding", "head/kernel", "layers/attn/q/kernel", "layers/mlp/down/kernel"}),
        ("int8", {"embed/embedding", "head/kernel"}),
        ("int8_all", set()),
    ],
)
def test_matrices_become_codes_and_norms_stay(kind, kept):
    leaves = paths(quantize_params(params(), kind))
    matrices = {path for path in leaves if path.endswith(("kernel", "embedding"))}
    assert kept <= matrices and (kind == "none" or matrices == kept)
    assert all(leaf.dtype == np.int8 for path, leaf in leaves.items() if path.endswith("_int8"))
    assert "layers/attn_norm/scale" in leaves and "final_norm/scale" in leaves


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="quantization='int4': choose one of none, int8, int8_all"):
        quantize_params(params(), "int4")


def test_codes_and_scales_are_split_like_the_matrix():
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    spec = {
        path: tuple(sharding.spec)
        for path, sharding in paths(parameter_shardings(quantize_params(params(), "int8_all"), mesh)).items()
    }
    assert spec["layers/attn/q/kernel_int8"] == (None, "fsdp", "tensor")
    assert spec["layers/attn/q/kernel_scale"] == (None, "tensor")
    assert spec["layers/mlp/down/kernel_scale"] == (None, "fsdp")
    vocabulary = ("fsdp", "tensor")
    assert (spec["embed/embedding_int8"], spec["embed/embedding_scale"]) == ((vocabulary, None), (vocabulary,))
    assert (spec["head/kernel_int8"], spec["head/kernel_scale"]) == ((None, vocabulary), (vocabulary,))


def test_adapters_act_on_codes_as_on_the_dequantised_kernels():
    lora, ids = LoraConfig(rank=4, alpha=8.0), some_ids(1, 24)[None]
    rng = np.random.default_rng(4)
    adapters = jax.tree.map(
        lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32),
        init_adapters(jax.random.key(0), CONFIG, lora),
    )
    small = quantize_params(params(), "int8_all")
    found = llama.apply(combine(small, adapters, lora), CONFIG, ids)
    np.testing.assert_allclose(
        found, llama.apply(combine(dequantize_params(small), adapters, lora), CONFIG, ids), atol=5e-5
    )
    np.testing.assert_allclose(found, llama.apply(merge(small, adapters, lora), CONFIG, ids), atol=5e-5)


# Loading.


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "model"
    save_params(folder, CONFIG, params())
    return folder


@pytest.mark.parametrize("kind", ["int8", "int8_all"])
@pytest.mark.parametrize("sizes", [None, (2, 2, 2)], ids=["host", "eight devices"])
@pytest.mark.parametrize("values", [2**21, 100], ids=["whole tensors", "pieces"])
def test_weights_are_encoded_while_they_stream_in(folder, monkeypatch, kind, sizes, values):
    monkeypatch.setattr(hf_load, "PIECE_VALUES", values)
    mesh = None if sizes is None else make_mesh(*sizes, devices=jax.devices()[:8])
    found, expected = paths(load_params(folder, CONFIG, mesh=mesh, quantization=kind)), paths(quantized(kind))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    if mesh is not None:
        places = paths(parameter_shardings(quantized(kind), mesh))
        assert all(found[path].sharding.is_equivalent_to(place, found[path].ndim) for path, place in places.items())


def test_codes_of_a_file_in_bfloat16_are_those_of_its_values(tmp_path):
    save_params(tmp_path / "short", CONFIG, params(), dtype="bfloat16")
    exact = load_params(tmp_path / "short", CONFIG, "float32")
    small = load_params(tmp_path / "short", CONFIG, "bfloat16", quantization="int8")
    for path, leaf in paths(quantize_params(exact, "int8")).items():
        found = paths(small)[path]
        is_matrix = path.endswith(("_int8", "_scale"))
        assert found.dtype == (leaf.dtype if is_matrix else jnp.bfloat16), path
        np.testing.assert_array_equal(found, leaf if is_matrix else leaf.astype(jnp.bfloat16), err_msg=path)


# Mismatch.


def test_mismatch_is_zero_for_equal_policies_and_what_it_says_for_others():
    ids = np.stack([some_ids(n, 24) for n in range(3)])
    same = policy_mismatch(CONFIG, params(), params(), ids)
    assert (same.mean, same.rms, same.largest) == (0, 0, 0) and abs(same.kl) < 1e-7
    small = quantize_params(params(), "int8_all")
    found = policy_mismatch(CONFIG, params(), small, ids)
    first, second = (
        np.asarray(jax.nn.log_softmax(llama.apply(weights, CONFIG, ids)[:, :-1])) for weights in (params(), small)
    )
    gap = np.abs(np.take_along_axis(first - second, ids[:, 1:, None], axis=-1))
    expected = (gap.mean(), np.sqrt((gap**2).mean()), gap.max(), (np.exp(first) * (first - second)).sum(-1).mean())
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert 0 < found.mean < 0.05 and found.kl < 1e-3


def test_padding_does_not_count_in_the_mismatch():
    ids = np.stack([some_ids(n, 24) for n in range(3)])
    small = quantize_params(params(), "int8")
    padded = np.pad(ids, ((0, 0), (0, 5)), constant_values=9)
    found = policy_mismatch(CONFIG, params(), small, padded, np.arange(29) < np.full((3, 1), 24))
    np.testing.assert_allclose(found, policy_mismatch(CONFIG, params(), small, ids), rtol=1e-3)
