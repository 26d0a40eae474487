"""Adapters beside the kernels: new ones change nothing, trained ones act everywhere as if added into the kernels."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from model import llama
from model.logprobs import GroupedIds, grouped_logprobs
from model.lora import TARGETS, LoraConfig, adapter_shapes, combine, init_adapters, merge
from model.partition import make_mesh, parameter_shardings
from model.sampling import SamplingParams
from tests.tiny_policy import CONFIG, make_sampler, params, quickly_compiled, request, some_ids

LORA = LoraConfig(rank=4, alpha=6.0)


@functools.cache
def trained(lora: LoraConfig = LORA) -> Any:
    """Adapters with B as large as A, so that every one of them shows in the logits."""
    rng = np.random.default_rng(3)
    drawn = init_adapters(jax.random.key(1), CONFIG, lora)
    return jax.tree.map(lambda leaf: np.asarray(rng.normal(scale=0.2, size=leaf.shape), leaf.dtype), drawn)


def joined(lora: LoraConfig = LORA) -> Any:
    return combine(params(), trained(lora), lora)


def merged(lora: LoraConfig = LORA) -> Any:
    return merge(params(), trained(lora), lora)


def paths(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]


def test_new_adapters_change_no_bit_of_the_logits():
    ids = some_ids(0, 20)[None]
    fresh = combine(params(), init_adapters(jax.random.key(1), CONFIG, LORA), LORA)
    np.testing.assert_array_equal(llama.apply(fresh, CONFIG, ids), llama.apply(params(), CONFIG, ids))
    assert np.abs(llama.apply(joined(), CONFIG, ids) - llama.apply(params(), CONFIG, ids)).max() > 0.1


def test_a_is_drawn_as_peft_draws_it_and_b_is_zero():
    lora = LoraConfig(rank=64)
    for path, leaf in paths(init_adapters(jax.random.key(0), CONFIG, lora)).items():
        if path.endswith("lora_b"):
            assert not leaf.any(), path
            continue
        # kaiming_uniform_(a=sqrt(5)): gain² = 2 / (1 + 5), bound = gain * sqrt(3 / in)
        bound = np.sqrt(2 / 6) * np.sqrt(3 / leaf.shape[1])
        assert 0.98 * bound < np.abs(leaf).max() <= bound, path
        assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.05), path
    first, second = (
        paths(init_adapters(jax.random.key(0), CONFIG, lora))[f"layers/attn/{n}/lora_a"] for n in ("q", "k")
    )
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("targets", [("q", "v"), ("down",), tuple(TARGETS)], ids=" ".join)
def test_only_the_target_modules_get_adapters(targets):
    lora = LoraConfig(rank=4, target_modules=targets)
    leaves = paths(init_adapters(jax.random.key(0), CONFIG, lora))
    assert {path.split("/")[-2] for path in leaves} == set(targets)
    assert {path: leaf.shape for path, leaf in leaves.items()} == adapter_shapes(CONFIG, lora)
    assert all(leaf.shape[0] == CONFIG.num_layers for leaf in leaves.values())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rank": -1}, "lora.rank=-1: must be positive"),
        ({"alpha": 0.0}, "lora.alpha=0.0: must be positive"),
        ({"target_modules": ("query",)}, r"lora.target_modules=\['query'\]: choose distinct names of q, k, v"),
        ({"target_modules": ("q", "q")}, "choose distinct names"),
        ({"target_modules": ()}, "choose distinct names"),
        ({"dtype": "int8"}, "lora.dtype='int8': choose one of float32"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, text):
    with pytest.raises(ValueError, match=text):
        LoraConfig(**values)


# Every consumer of parameters.


def of_sequences(weights: Any) -> np.ndarray:
    ids = np.stack([some_ids(n, 20) for n in range(3)])
    return np.asarray(llama.apply(weights, CONFIG, ids))


def of_groups(weights: Any) -> np.ndarray:
    """Log-probs of two groups whose rows continue a prefix (make_prefix and forward with a prefix)."""
    lanes = np.stack([some_ids(20 + n, 6) for n in range(4)]).reshape(2, 2, 6)
    positions = np.broadcast_to(np.array([9, 7])[:, None, None] + np.arange(6), lanes.shape)
    prefix_positions = np.broadcast_to(np.arange(9, dtype=np.int32), (2, 9))
    grouped = GroupedIds(
        prefix_ids=np.stack([some_ids(10, 9), some_ids(11, 9)]),
        prefix_positions=prefix_positions,
        prefix_segments=(prefix_positions < np.array([[9], [7]])).astype(np.int32),
        lane_ids=lanes,
        lane_positions=positions.astype(np.int32),
        lane_segments=np.ones_like(lanes),
        lane_prefixes=np.ones_like(lanes),
        row_tokens=np.broadcast_to(np.arange(12).reshape(2, 6), (2, 2, 6)).astype(np.int32),
    )
    function = quickly_compiled(grouped_logprobs, static_argnums=1, static_argnames="remat")
    kept, recomputed = (np.asarray(function(weights, CONFIG, grouped, remat=remat)) for remat in ("none", "full"))
    np.testing.assert_allclose(kept, recomputed, atol=1e-5)
    return kept[:, :, 1:]


def of_samples(weights: Any) -> np.ndarray:
    """Log-probs of sampled tokens (prefill and decode_chunk); the ids must not depend on where the adapters are."""
    shared = some_ids(30, 12)
    requests = [request(np.append(shared, some_ids(n, 2)), 0, n) for n in range(4)]
    found: dict[int, Any] = {}
    for finished in make_sampler(stop_ids=(CONFIG.vocab_size,)).generate(weights, requests, SamplingParams()):
        found |= dict(finished)
    drawn = np.stack([found[n].logprobs for n in range(4)])
    return np.concatenate([drawn, np.stack([found[n].ids for n in range(4)])])


@pytest.mark.parametrize("consumer", [of_sequences, of_groups, of_samples])
def test_adapters_act_as_if_they_were_added_into_the_kernels(consumer):
    np.testing.assert_allclose(consumer(joined()), consumer(merged()), atol=2e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_each_adapter_acts_alone_and_the_comparison_notices_another_scale(target):
    lora = LoraConfig(rank=4, alpha=6.0, target_modules=(target,))
    other = LoraConfig(rank=4, alpha=7.0, target_modules=(target,))
    found = of_sequences(joined(lora))
    np.testing.assert_allclose(found, of_sequences(merged(lora)), atol=2e-5)
    wrong = of_sequences(merge(params(), trained(lora), other))
    assert np.abs(found - wrong).max() > 2e-4


def test_adapters_stand_beside_biases_and_norms_of_heads():
    config = dataclasses.replace(CONFIG, family="qwen3", qkv_bias=True, output_bias=True, qk_norm=True, head_dim=12)
    rng = np.random.default_rng(6)
    drawn = quickly_compiled(llama.init, static_argnums=1)(jax.random.key(0), config)
    base = jax.tree.map(lambda leaf: leaf + rng.normal(scale=0.2, size=leaf.shape).astype(np.float32), drawn)
    adapters = init_adapters(jax.random.key(1), config, LORA)
    adapters = jax.tree.map(lambda leaf: leaf + rng.normal(scale=0.2, size=leaf.shape).astype(np.float32), adapters)
    ids = some_ids(7, 20)[None]
    found, expected, plain = (
        llama.apply(weights, config, ids)
        for weights in (combine(base, adapters, LORA), merge(base, adapters, LORA), base)
    )
    np.testing.assert_allclose(found, expected, atol=5e-5)
    assert np.abs(found - plain).max() > 0.1


def test_merging_leaves_what_has_no_adapter_uncopied():
    lora = LoraConfig(rank=4, target_modules=("q",))
    found, before = paths(merge(params(), trained(lora), lora)), paths(params())
    assert {path for path in before if found[path] is not before[path]} == {"layers/attn/q/kernel"}
    assert all(found[path] is leaf for path, leaf in before.items() if path != "layers/attn/q/kernel")


# Where adapters lie.


def test_adapters_are_split_like_the_kernel_beside_them_and_the_rank_is_whole():
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    shapes = jax.eval_shape(lambda: init_adapters(jax.random.key(0), CONFIG, LORA))
    places = {path: tuple(sharding.spec) for path, sharding in paths(parameter_shardings(shapes, mesh)).items()}
    for path, spec in places.items():
        module, leaf = path.split("/")[-2:]
        before, after = ("tensor", "fsdp") if module in ("o", "down") else ("fsdp", "tensor")
        assert spec == ((None, before, None) if leaf == "lora_a" else (None, None, after)), path


def test_gradients_are_those_of_the_chain_rule_through_the_kernel():
    """dA = scale dW Bᵀ and dB = scale Aᵀ dW, with dW the gradient at the merged kernel."""
    ids = some_ids(5, 16)[None]

    def loss(weights):
        return jnp.mean(jax.nn.logsumexp(llama.apply(weights, CONFIG, ids), axis=-1) * jnp.arange(16))

    found = paths(jax.grad(lambda adapters: loss(combine(params(), adapters, LORA)))(trained()))
    of_kernels, leaves = paths(jax.grad(loss)(merged())), paths(trained())
    for path in [path for path in found if path.endswith("lora_a")]:
        parent = path.removesuffix("/lora_a")
        towards = of_kernels[f"{parent}/kernel"] * LORA.scale
        to_a = np.einsum("lio,lro->lir", towards, leaves[f"{parent}/lora_b"])
        to_b = np.einsum("lir,lio->lro", leaves[path], towards)
        np.testing.assert_allclose(found[path], to_a, rtol=1e-3, atol=1e-3 * np.abs(to_a).max())
        np.testing.assert_allclose(found[f"{parent}/lora_b"], to_b, rtol=1e-3, atol=1e-3 * np.abs(to_b).max())
