"""Log-probabilities at given candidate tokens, and the likeliest tokens, equal a full softmax; gradients too.

In pieces and at once, with a tied, an untied and a frozen head, and for packed rows that share a prefix.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.llama import apply, logits
from model.logprobs import grouped_scores, grouped_top_k
from model.token_scores import token_scores, token_top_k
from tests.tiny_batch import batch_of, views
from tests.tiny_policy import CONFIG, params, quickly_compiled

TIED = dataclasses.replace(CONFIG, vocab_size=97, tie_embeddings=True)
UNTIED = dataclasses.replace(TIED, tie_embeddings=False)
COUNT, K, TEMPERATURE = 45, 5, 0.7


def head(config) -> Any:
    table = np.random.default_rng(0).normal(size=(config.vocab_size, config.hidden_size)).astype(np.float32)
    return {"embed": {"embedding": table}} if config.tie_embeddings else {"head": {"kernel": table.T}}


def positions(config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, targets, and candidates of which some are the target and some occur twice."""
    rng = np.random.default_rng(1)
    hidden = 0.5 * rng.normal(size=(COUNT, config.hidden_size)).astype(np.float32)
    targets = rng.integers(0, config.vocab_size, COUNT).astype(np.int32)
    candidates = rng.integers(0, config.vocab_size, (COUNT, K)).astype(np.int32)
    candidates[::3, 1], candidates[::4, 2] = targets[::3], candidates[::4, 3]
    return hidden, targets, candidates


def dense(tree, config, hidden, targets, candidates):
    logp = jax.nn.log_softmax(logits(tree, config, hidden) / TEMPERATURE)
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    chosen = jnp.take_along_axis(logp, targets[:, None], axis=-1)[:, 0]
    return chosen, entropy, jnp.take_along_axis(logp, candidates, axis=-1)


def ours(chunk: int):
    def scores(tree, config, hidden, targets, candidates):
        return token_scores(
            tree, config, hidden, targets, temperature=TEMPERATURE, entropy=True, candidates=candidates, chunk=chunk
        )

    return scores


def values_and_gradients(function, config, trained: bool):
    """(scores, gradients of head and hidden states, or of the latter alone) of a sum that weighs each entry its own."""
    hidden, targets, candidates = positions(config)
    rng = np.random.default_rng(2)
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((COUNT,), (COUNT,), (COUNT, K))]

    def loss(tree, hidden):
        found = tuple(function(tree, config, hidden, targets, candidates))
        return sum(jnp.sum(w * f) for w, f in zip(weights, found, strict=True)), found

    arguments = (0, 1) if trained else 1
    gradients, found = quickly_compiled(jax.grad(loss, argnums=arguments, has_aux=True))(head(config), hidden)
    return found, gradients


@pytest.mark.parametrize("chunk", [8, COUNT], ids=["in pieces", "at once"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_scores_at_candidates_and_their_gradients_are_those_of_a_full_softmax(config, trained, chunk):
    found = values_and_gradients(ours(chunk), config, trained)
    expected = values_and_gradients(dense, config, trained)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=2e-5 * max(1.0, np.abs(e).max())), found, expected)


def test_the_gradient_at_candidates_is_the_slope_of_finite_differences():
    hidden, targets, candidates = positions(TIED)
    weights = np.random.default_rng(3).normal(size=(COUNT, K)).astype(np.float32)

    def value(hidden):
        return jnp.sum(weights * ours(8)(head(TIED), TIED, hidden, targets, candidates).of_candidates)

    direction = np.random.default_rng(4).normal(size=hidden.shape).astype(np.float32)
    step = 1e-2
    slope = (value(hidden + step * direction) - value(hidden - step * direction)) / (2 * step)
    along = np.sum(np.asarray(jax.grad(value)(hidden)) * direction)
    assert along == pytest.approx(float(slope), rel=2e-3)


@pytest.mark.parametrize("chunk", [8, COUNT], ids=["in pieces", "at once"])
@pytest.mark.parametrize("k", [1, K, TIED.vocab_size])
def test_the_likeliest_tokens_are_those_of_a_full_softmax(k, chunk):
    hidden, targets, _ = positions(TIED)
    found = token_top_k(head(TIED), TIED, jnp.asarray(hidden), targets, k, temperature=TEMPERATURE, chunk=chunk)
    logp = np.asarray(jax.nn.log_softmax(logits(head(TIED), TIED, hidden) / TEMPERATURE))
    order = np.argsort(-logp, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.ids, order)
    np.testing.assert_allclose(found.of_ids, np.take_along_axis(logp, order, axis=-1), atol=1e-5)
    np.testing.assert_allclose(found.logprob, logp[np.arange(COUNT), targets], atol=1e-5)
    if k == TIED.vocab_size:
        np.testing.assert_allclose(np.exp(found.of_ids).sum(axis=-1), 1.0, atol=1e-5)


# Packed rows.


def softmaxes_of_rows() -> dict[bytes, np.ndarray]:
    """context + response of each view → log-softmax [T, V] in the place of each response token, row by row."""
    found = {}
    for view in views():
        ids = np.concatenate([view.context, view.response])
        scores = apply(params(), CONFIG, jnp.asarray(ids)[None])[0] / TEMPERATURE
        found[ids.tobytes()] = np.asarray(jax.nn.log_softmax(scores))[len(view.context) - 1 : -1]
    return found


def rows_of(batch):
    """Yields (group, row, where its response tokens stand in the row, log-softmax at them)."""
    dense_rows = softmaxes_of_rows()
    for index in np.ndindex(batch.row_valid.shape):
        if not batch.row_valid[index]:
            continue
        micro, group, row = index
        grouped = batch.grouped
        ids, prefix = grouped.lane_ids[micro, group].reshape(-1), grouped.prefix_ids[micro, group]
        segments = grouped.lane_segments[micro, group].reshape(-1)
        tokens = grouped.row_tokens[micro, group, row]
        length = int(np.sum(segments == row + 1))
        continued = grouped.lane_prefixes[micro, group].reshape(-1)[tokens[0]]
        own = prefix[grouped.prefix_segments[micro, group] == continued]
        whole = np.concatenate([own, ids[tokens[:length]]]).astype(np.int32)
        expected = dense_rows[whole.tobytes()]
        yield index, slice(length - len(expected), length), expected


def test_top_tokens_and_candidates_of_packed_rows_are_those_of_each_row_alone():
    batch = batch_of()
    micro = jax.tree.map(lambda array: jnp.asarray(array[0]), batch)
    top = quickly_compiled(
        lambda tree: grouped_top_k(tree, CONFIG, micro.grouped, K, temperature=TEMPERATURE, chunk=16)
    )(params())
    ids = np.random.default_rng(5).integers(0, CONFIG.vocab_size, top.ids.shape).astype(np.int32)
    wanted = np.zeros(top.logprob.shape, bool)
    for (_, group, row), here, _ in rows_of(batch):
        wanted[group, row, here] = True
    scores = quickly_compiled(
        lambda tree: grouped_scores(
            tree, CONFIG, micro.grouped, temperature=TEMPERATURE, chunk=16, candidates=ids, wanted=wanted
        )
    )(params())
    count = 0
    for (_, group, row), here, expected in rows_of(batch):
        where = np.s_[group, row, here]
        order = np.argsort(-expected, axis=-1, kind="stable")[:, :K]
        np.testing.assert_array_equal(top.ids[where], order)
        np.testing.assert_allclose(top.of_ids[where], np.take_along_axis(expected, order, axis=-1), atol=2e-5)
        np.testing.assert_allclose(
            scores.of_candidates[where], np.take_along_axis(expected, ids[where], axis=-1), atol=2e-5
        )
        np.testing.assert_allclose(scores.logprob[where], top.logprob[where], atol=2e-5)
        count += 1
    assert count == len(views())
