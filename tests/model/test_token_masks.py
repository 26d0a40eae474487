"""Log-probs among allowed tokens: those of a plain masked log-softmax, with its gradient, however they are read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.logprobs import GroupedIds, grouped_scores
from model.token_masks import Allowed, only_allowed_at
from model.token_scores import token_scores
from tests.tiny_policy import CONFIG, params, quickly_compiled, some_ids

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB, WIDTH, ROWS, TEMPERATURE = 77, 8, 21, 0.7
SIZES = dataclasses.replace(CONFIG, vocab_size=VOCAB, hidden_size=WIDTH, tie_embeddings=False)
RNG = np.random.default_rng(0)
HEAD = RNG.normal(0, 1, (WIDTH, VOCAB)).astype(np.float32)
HIDDEN = RNG.normal(0, 1, (ROWS, WIDTH)).astype(np.float32)
PERMITTED = np.concatenate([np.ones((1, VOCAB), bool), RNG.random((4, VOCAB)) < 0.2])
PERMITTED[1:, 5] = True
INDEX = RNG.integers(0, len(PERMITTED), ROWS).astype(np.int32)
TARGETS = np.array([RNG.choice(np.flatnonzero(PERMITTED[i])) for i in INDEX], np.int32)


def words_of(permitted: np.ndarray) -> np.ndarray:
    padded = np.pad(permitted, ((0, 0), (0, -permitted.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)


ALLOWED = Allowed(words_of(PERMITTED), INDEX)


def plainly(head, hidden):
    """Log-probs and entropies by the definition, over all tokens at once."""
    scores = hidden @ head / TEMPERATURE
    logp = jax.nn.log_softmax(jnp.where(PERMITTED[INDEX], scores, -jnp.inf), axis=-1)
    terms = jnp.where(PERMITTED[INDEX], jnp.exp(logp) * jnp.where(PERMITTED[INDEX], logp, 0), 0)
    return jnp.take_along_axis(logp, TARGETS[:, None], axis=-1)[:, 0], -terms.sum(axis=-1)


def ours(head, hidden, chunk):
    tree = {"head": {"kernel": head}}
    found = token_scores(
        tree, SIZES, hidden, TARGETS, temperature=TEMPERATURE, entropy=True, allowed=ALLOWED, chunk=chunk
    )
    return found.logprob, found.entropy


@pytest.mark.parametrize("chunk", [64, 4])  # all at once, and in pieces and blocks of the vocabulary
@pytest.mark.parametrize("trained", ["head and hidden", "hidden"])
def test_values_and_gradients_are_those_of_a_masked_log_softmax(chunk, trained):
    weights = RNG.normal(0, 1, (2, ROWS)).astype(np.float32)

    def loss(read):
        def of(head, hidden):
            logprob, entropy = read(head, hidden)
            return weights[0] @ logprob + weights[1] @ entropy

        return of

    expected, found = plainly(HEAD, HIDDEN), ours(HEAD, HIDDEN, chunk)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    by = (0, 1) if trained == "head and hidden" else (1,)
    expected = jax.grad(loss(plainly), argnums=by)(HEAD, HIDDEN)
    found = jax.grad(loss(lambda head, hidden: ours(head, hidden, chunk)), argnums=by)(HEAD, HIDDEN)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(("first", "count"), [(0, 77), (0, 32), (31, 33), (45, 32), (13, 64)])
def test_columns_of_the_vocabulary_may_begin_anywhere(first, count):
    found = only_allowed_at(jnp.zeros((ROWS, count)), ALLOWED, jnp.int32(first))
    np.testing.assert_array_equal(np.asarray(found) == 0, PERMITTED[INDEX][:, first : first + count])


def test_masks_find_the_tokens_of_their_rows_in_packed_lanes():
    """Two rows behind one prefix in one lane: each token's own mask counts, and an index of 0 changes nothing."""
    prefix, suffixes = some_ids(0, 4), [some_ids(1, 5), some_ids(2, 3)]
    lane = np.concatenate(suffixes)
    grouped = GroupedIds(
        prefix_ids=prefix[None],
        prefix_positions=np.arange(4)[None],
        prefix_segments=np.ones((1, 4), np.int32),
        lane_ids=lane[None, None],
        lane_positions=np.r_[4:9, 4:7][None, None],
        lane_segments=np.array([1] * 5 + [2] * 3, np.int32)[None, None],
        lane_prefixes=np.ones((1, 1, 8), np.int32),
        row_tokens=np.array([[0, 1, 2, 3, 4], [5, 6, 7, 0, 0]], np.int32)[None],
    )
    permitted = np.ones((3, CONFIG.vocab_size), bool)
    permitted[1, :] = permitted[2, :] = False
    permitted[1, [suffixes[0][2], 3, 9]] = True
    permitted[2, [suffixes[1][1], 7]] = True
    index = np.zeros((1, 2, 5), np.int32)
    index[0, 0, 2], index[0, 1, 1] = 1, 2
    read = quickly_compiled(lambda tree, allowed: grouped_scores(tree, CONFIG, grouped, allowed=allowed, chunk=4))
    free = read(params(), Allowed(words_of(permitted), np.zeros_like(index)))
    held = read(params(), Allowed(words_of(permitted), index))
    changed = np.asarray(free.logprob) != np.asarray(held.logprob)
    expected = index > 0
    np.testing.assert_array_equal(changed[:, :, 1:][:, 0], expected[:, :, 1:][:, 0])
    np.testing.assert_array_equal(changed[0, 1, 1:3], expected[0, 1, 1:3])
    assert (np.asarray(held.logprob)[expected] > np.asarray(free.logprob)[expected]).all()
    assert (np.asarray(held.entropy)[expected] <= np.log([3, 2]) + 1e-5).all()
