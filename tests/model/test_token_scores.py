"""Log-probabilities and entropies of tokens, in pieces and with a backward pass of their own, equal a full softmax.

Values and gradients are compared with automatic differentiation of all logits at once; memory with programs that are
compiled and never run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config import ModelConfig
from model.llama import logits
from model.quantization import dequantize_params, quantize_params
from model.token_scores import token_scores
from tests.tiny_policy import CONFIG

TIED = dataclasses.replace(CONFIG, vocab_size=97, tie_embeddings=True)
UNTIED = dataclasses.replace(TIED, tie_embeddings=False)
COUNT = 45


def head(config: ModelConfig) -> Any:
    rng = np.random.default_rng(0)
    shape = (config.vocab_size, config.hidden_size)
    if config.tie_embeddings:
        return {"embed": {"embedding": rng.normal(size=shape).astype(np.float32)}}
    return {"head": {"kernel": rng.normal(size=shape[::-1]).astype(np.float32)}}


def positions(config: ModelConfig) -> tuple[jax.Array, np.ndarray]:
    rng = np.random.default_rng(1)
    hidden = 0.5 * rng.normal(size=(COUNT, config.hidden_size)).astype(np.float32)
    return jnp.asarray(hidden, config.compute_dtype), rng.integers(0, config.vocab_size, COUNT).astype(np.int32)


def full_scores(params: Any, config: ModelConfig, hidden, targets, temperature: float = 1.0) -> tuple[Any, Any]:
    logp = jax.nn.log_softmax(logits(params, config, hidden).astype(jnp.float32) / temperature)
    chosen = jnp.take_along_axis(logp, targets[:, None], axis=-1)[:, 0]
    return chosen, -jnp.sum(jnp.exp(logp) * logp, axis=-1)


def piecewise(params: Any, config: ModelConfig, hidden, targets, temperature: float = 1.0) -> tuple[Any, Any]:
    found = token_scores(params, config, hidden, targets, temperature=temperature, entropy=True, chunk=8)
    assert found.entropy is not None
    return found.logprob, found.entropy


def values_and_gradients(function: Callable, config: ModelConfig, params: Any, temperature: float, parts=(1.0, 1.0)):
    """(log-probs, entropies) and the gradients, of params and hidden, of a sum to which each adds differently."""
    hidden, targets = positions(config)
    weights = np.random.default_rng(2).normal(size=(2, COUNT)).astype(np.float32)

    def loss(params, hidden):
        found = function(params, config, hidden, targets, temperature)
        return sum(part * jnp.sum(w * f) for part, w, f in zip(parts, weights, found, strict=True)), found

    gradients, found = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, hidden)
    return jax.device_get(found), jax.device_get(gradients)


def assert_same(found: Any, expected: Any, value: float = 1e-6, gradient: float = 1e-5) -> None:
    def close(f, e, tolerance):
        scale = max(1.0, float(np.max(np.abs(e)))) if tolerance is value else float(np.max(np.abs(e)))
        np.testing.assert_allclose(np.float32(f), np.float32(e), atol=tolerance * scale, rtol=0)

    for part in (0, 1):
        jax.tree.map(functools.partial(close, tolerance=(value, gradient)[part]), found[part], expected[part])


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("parts", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)], ids=["logprob", "entropy", "both"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_all_logits(config, parts, temperature):
    arguments = config, head(config), temperature, parts
    assert_same(values_and_gradients(piecewise, *arguments), values_and_gradients(full_scores, *arguments))


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_the_comparison_fails_at_another_temperature(config):
    found = values_and_gradients(piecewise, config, head(config), 1.0)
    with pytest.raises(AssertionError):
        assert_same(found, values_and_gradients(full_scores, config, head(config), 1.001))


@pytest.mark.parametrize("count", [1, 8, 9, 16, 45])
def test_any_number_of_positions_gives_one_score_each_in_order(count):
    hidden, targets = (array[:count] for array in positions(TIED))
    found = piecewise(head(TIED), TIED, hidden, targets)
    for f, e in zip(found, full_scores(head(TIED), TIED, hidden, targets), strict=True):
        np.testing.assert_allclose(f, e, atol=3e-6)


def test_bfloat16_states_get_float32_scores_and_gradients_close_to_exact_ones():
    low = dataclasses.replace(TIED, compute_dtype="bfloat16")
    found, gradients = values_and_gradients(piecewise, low, head(low), 0.7)
    assert all(part.dtype == np.float32 for part in found) and gradients[1].dtype == jnp.bfloat16
    # The same rounded inputs in float32: only the products' operands differ.
    rounded = jax.tree.map(lambda leaf: np.float32(jnp.asarray(leaf, jnp.bfloat16)), head(low))
    exact = values_and_gradients(full_scores_of_rounded, low, rounded, 0.7)
    assert_same((found, gradients), exact, value=1e-6, gradient=1e-2)


def full_scores_of_rounded(params: Any, config: ModelConfig, hidden, targets, temperature: float):
    exact = dataclasses.replace(config, compute_dtype="float32")
    return full_scores(params, exact, hidden.astype(jnp.float32), targets, temperature)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_an_int8_head_scores_as_its_matrix_would(config):
    codes = quantize_params(head(config), "int8_all")
    hidden, targets = positions(config)

    def of_hidden(params):
        return values_of_hidden(params, config, hidden, targets)

    assert_same(of_hidden(codes), values_of_hidden(dequantize_params(codes), config, hidden, targets, full_scores))


def values_of_hidden(params: Any, config: ModelConfig, hidden, targets, function: Callable = piecewise):
    weights = np.random.default_rng(2).normal(size=(2, COUNT)).astype(np.float32)

    def loss(hidden):
        found = function(params, config, hidden, targets, 0.9)
        return sum(jnp.sum(w * f) for w, f in zip(weights, found, strict=True)), found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(hidden)
    return jax.device_get(found), jax.device_get(gradients)


# Memory, of programs that are compiled for arrays that do not exist.

BIG = dataclasses.replace(CONFIG, vocab_size=32_000, hidden_size=128, tie_embeddings=False)
ROWS = 2048
LOGITS_BYTES = ROWS * BIG.vocab_size * 4


def temporary_bytes(function: Callable, config: ModelConfig, trained: bool) -> int:
    """Of the gradient with respect to hidden states, and to the head if it is trained, of a mean of log-probs."""
    shape = (config.vocab_size, config.hidden_size)
    kernel = jax.ShapeDtypeStruct(shape if config.tie_embeddings else shape[::-1], jnp.float32)
    params = {"embed": {"embedding": kernel}} if config.tie_embeddings else {"head": {"kernel": kernel}}
    hidden = jax.ShapeDtypeStruct((ROWS, config.hidden_size), jnp.float32)
    targets = jax.ShapeDtypeStruct((ROWS,), jnp.int32)

    def loss(params, hidden, targets):
        return jnp.mean(function(params, config, hidden, targets))

    gradient = jax.grad(loss, argnums=(0, 1) if trained else 1)
    memory = jax.jit(gradient).lower(params, hidden, targets).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def without_head(params, config, hidden, targets) -> jax.Array:
    """No loss to speak of, but a gradient for everything."""
    return jnp.sum(hidden, axis=1) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))


def all_at_once(params, config, hidden, targets) -> jax.Array:
    return full_scores(params, config, hidden, targets)[0]


def in_pieces(params, config, hidden, targets, entropy: bool = False) -> jax.Array:
    found = token_scores(params, config, hidden, targets, entropy=entropy, chunk=32)
    return found.logprob if found.entropy is None else found.logprob + found.entropy


@pytest.mark.parametrize(
    ("tied", "trained", "entropy"),
    [(True, True, True), (False, True, False), (True, False, False), (False, False, True)],
    ids=["tied and trained, with entropy", "trained", "tied and frozen", "frozen, with entropy"],
)
def test_memory_beyond_no_loss_is_a_tenth_of_all_logits_at_most(tied, trained, entropy):
    config = dataclasses.replace(BIG, tie_embeddings=tied)
    base = temporary_bytes(without_head, config, trained)
    ours = temporary_bytes(functools.partial(in_pieces, entropy=entropy), config, trained) - base
    naive = temporary_bytes(all_at_once, config, trained) - base
    assert naive >= LOGITS_BYTES
    assert ours <= 0.1 * LOGITS_BYTES


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_frozen_head_has_no_array_of_its_size_in_the_backward_pass(tied):
    config = dataclasses.replace(BIG, tie_embeddings=tied)
    hidden, targets = jnp.zeros((ROWS, config.hidden_size)), jnp.zeros(ROWS, jnp.int32)
    shape = (config.vocab_size, config.hidden_size) if tied else (config.hidden_size, config.vocab_size)
    kernel = jnp.zeros(shape)

    def loss(kernel, hidden):
        params = {"embed": {"embedding": kernel}} if tied else {"head": {"kernel": kernel}}
        return jnp.mean(in_pieces(params, config, hidden, targets))

    def made(argnums) -> list[Any]:
        """Shapes of what the operations of the gradient produce, those inside loops too."""
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=argnums))(kernel, hidden)
        return [v.aval.shape for inner in every_jaxpr(jaxpr.jaxpr) for eqn in inner.eqns for v in eqn.outvars]

    assert shape not in made(1) and shape in made((0, 1))


def every_jaxpr(jaxpr: Any):
    yield jaxpr
    for value in jax.tree.leaves([list(eqn.params.values()) for eqn in jaxpr.eqns]):
        inner = getattr(value, "jaxpr", value)  # of a closed one
        if hasattr(inner, "eqns"):
            yield from every_jaxpr(inner)
