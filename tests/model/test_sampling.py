"""Draws follow the distribution that their log-probabilities claim, under every truncation and for every rare token.

Frequencies are compared with NumPy references that follow the definitions word by word; seeds are fixed.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sampling import RowSampling, SamplingParams, draw, truncate
from tests.tiny_policy import quickly_compiled

VOCAB, DRAWS = 40, 20_000
LOGITS = np.random.default_rng(0).normal(0, 2, VOCAB).astype(np.float32)

SETTINGS = {
    "plain": SamplingParams(),
    "hot": SamplingParams(temperature=1.7),
    "cold": SamplingParams(temperature=0.4),
    "top-k": SamplingParams(top_k=5),
    "top-p": SamplingParams(top_p=0.8),
    "min-p": SamplingParams(min_p=0.1),
    "all": SamplingParams(temperature=1.3, top_k=12, top_p=0.9, min_p=0.05),
}


def reference(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """float64[V]: the tempered distribution truncated to k tokens, then to the nucleus, then to p >= min_p * best."""
    probs = scipy.special.softmax(logits.astype(np.float64) / params.temperature)
    order = np.argsort(-probs)
    if params.top_k:
        probs[order[params.top_k :]] = 0
        probs /= probs.sum()
    if params.top_p < 1:
        mass, kept = 0.0, []
        for token in order:
            kept.append(token)
            mass += probs[token]
            if mass >= params.top_p:
                break
        probs[np.setdiff1d(order, kept)] = 0
        probs /= probs.sum()
    probs[probs < params.min_p * probs.max()] = 0
    return probs / probs.sum()


drawn = quickly_compiled(draw, static_argnums=3)


def keys(count: int, seed: int = 0) -> np.ndarray:
    return np.stack([np.full(count, seed), np.arange(count)], axis=1).astype(np.uint32)


def many(logits: np.ndarray, params: SamplingParams, count: int = DRAWS, seed: int = 0):
    """Returns (tokens, log-probs) of `count` rows with the same logits and different keys."""
    rows = np.broadcast_to(logits, (count, len(logits)))
    tokens, logprobs = drawn(rows, keys(count, seed), np.zeros(count, np.int32), params)
    return np.asarray(tokens), np.asarray(logprobs)


def assert_frequencies(tokens: np.ndarray, probs: np.ndarray) -> None:
    """Chi-square at 1 in 1000, with tokens expected fewer than 5 times merged; no token of probability 0."""
    counts = np.bincount(tokens, minlength=len(probs))
    impossible = int(counts[probs == 0].sum())
    assert impossible == 0, f"drawn {impossible} times with probability 0"
    expected = probs * len(tokens)
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    p = scipy.stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue
    assert p > 1e-3, f"frequencies do not fit: p={p:.1e}"


@functools.cache
def sample(name: str):
    return many(LOGITS, SETTINGS[name])


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_truncated_distribution(name):
    assert_frequencies(sample(name)[0], reference(LOGITS, SETTINGS[name]))


@pytest.mark.parametrize("name", SETTINGS)
def test_logprobs_are_those_of_the_truncated_distribution(name):
    tokens, logprobs = sample(name)
    exact = np.log(reference(LOGITS, SETTINGS[name])[tokens])
    np.testing.assert_allclose(logprobs, exact, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "plain"])
def test_the_frequency_check_notices_that_a_setting_was_ignored(name):
    with pytest.raises(AssertionError, match="drawn|frequencies"):
        assert_frequencies(sample("plain")[0], reference(LOGITS, SETTINGS[name]))


def test_temperature_zero_takes_the_best_token_and_the_untempered_logprob():
    rows = np.random.default_rng(1).normal(size=(6, VOCAB)).astype(np.float32)
    tokens, logprobs = drawn(rows, keys(6), np.zeros(6, np.int32), SamplingParams(temperature=0.0))
    np.testing.assert_array_equal(tokens, rows.argmax(1))
    np.testing.assert_allclose(logprobs, scipy.special.log_softmax(rows, axis=1).max(1), atol=1e-6)


def test_a_token_depends_on_its_key_and_number_alone():
    rng = np.random.default_rng(2)
    own, other = rng.normal(size=VOCAB).astype(np.float32), rng.normal(size=(7, VOCAB)).astype(np.float32)
    rows, numbers, key = np.vstack([other, own[None]]), np.arange(8).astype(np.int32), keys(8, seed=5)
    order = rng.permutation(8)
    tokens, logprobs = drawn(rows, key, numbers, SamplingParams())
    again, logprobs_again = drawn(rows[order], key[order], numbers[order], SamplingParams())
    np.testing.assert_array_equal(np.asarray(tokens)[order], again)
    np.testing.assert_array_equal(np.asarray(logprobs)[order], logprobs_again)
    alone, _ = drawn(own[None], key[7:], numbers[7:], SamplingParams())
    assert int(alone[0]) == int(tokens[7])


def test_keys_and_numbers_give_different_tokens():
    same_key = drawn(
        np.broadcast_to(LOGITS, (64, VOCAB)),
        np.zeros((64, 2), np.uint32),
        np.arange(64, dtype=np.int32),
        SamplingParams(),
    )[0]
    assert len(set(np.asarray(same_key).tolist())) > 5
    assert len(set(many(LOGITS, SamplingParams(), 64)[0].tolist())) > 5


def test_a_vocabulary_of_fifty_thousand_keeps_the_mass_of_its_tail():
    vocab, count = 50_257, 400
    rng = np.random.default_rng(3)
    logits = np.concatenate([rng.normal(9, 0.5, 17), rng.normal(0, 1, vocab - 17)]).astype(np.float32)
    logits = logits[rng.permutation(vocab)]
    probs = scipy.special.softmax(logits.astype(np.float64))
    tokens = np.concatenate([many(logits, SamplingParams(), count, seed)[0] for seed in range(5)])
    # Twenty stretches of equal length, and the rare tokens of each apart from its frequent ones.
    place = np.arange(vocab) * 20 // vocab + 20 * (logits > 5)
    observed = np.bincount(place[tokens], minlength=40)
    expected = np.bincount(place, weights=probs, minlength=40) * len(tokens)
    assert 0.1 < probs[logits <= 5].sum() < 0.9
    kept = expected > 0
    p = scipy.stats.chisquare(observed[kept], expected[kept]).pvalue
    assert p > 1e-3, f"the tail is biased: p={p:.1e}"


def test_excluded_tokens_are_never_drawn_even_at_the_ends_of_the_vocabulary():
    # All mass on one token, first or last, in a vocabulary that the blocks do not divide.
    for best in (0, 36):
        logits = np.full(37, -1e9, np.float32)
        logits[best] = 0.0
        tokens, logprobs = many(logits, SamplingParams(), 512)
        assert set(tokens.tolist()) == {best} and float(np.abs(logprobs).max()) < 1e-6


def test_the_best_token_survives_every_truncation():
    strict = SamplingParams(top_k=1, top_p=1e-6, min_p=0.999)
    tokens, logprobs = many(LOGITS, strict, 256)
    assert set(tokens.tolist()) == {int(LOGITS.argmax())} and not np.asarray(logprobs).any()


@pytest.mark.parametrize(
    "settings", [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 1.0}]
)
def test_impossible_settings_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SamplingParams(**settings)


# Truncation against its definitions, with ties.

truncated = quickly_compiled(truncate, static_argnums=1)


@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.3, 0.5, 0.9, 0.999]), st.sampled_from([0.25, 4.0, 1e-6, 30.0]))
@settings(max_examples=40)
def test_the_nucleus_is_the_shortest_head_that_reaches_its_mass_with_all_that_tie_with_its_last_token(seed, p, spread):
    logits = tied_logits(seed, spread)
    kept = np.asarray(truncated(logits, SamplingParams(top_p=p))) > -1e29
    probs = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    for row, mine, mass in zip(logits, kept, probs, strict=True):
        last = row[mine].min()
        np.testing.assert_array_equal(mine, row >= last)
        assert mass[row >= last].sum() >= p - 1e-6 and mass[row > last].sum() < p + 1e-6


@given(st.integers(0, 10_000), st.integers(1, VOCAB + 1))
@settings(max_examples=40)
def test_top_k_keeps_the_k_best_and_all_that_tie_with_the_last_of_them(seed, k):
    logits = tied_logits(seed, 0.25)
    kept = np.asarray(truncated(logits, SamplingParams(top_k=k))) > -1e29
    kth = np.sort(logits, axis=-1)[:, ::-1][:, min(k, VOCAB) - 1]
    np.testing.assert_array_equal(kept, logits >= kth[:, None])


def tied_logits(seed: int, spread: float) -> np.ndarray:
    """float32[4, V] with many equal entries, zeros of both signs among them; one row is all alike."""
    rng = np.random.default_rng(seed)
    logits = rng.choice([-1, 1], (4, VOCAB)) * rng.integers(0, 9, (4, VOCAB)) * np.float32(spread)
    logits[0] = logits[0, 0]
    return logits.astype(np.float32)


@given(st.integers(0, 10_000), st.sampled_from(sorted(SETTINGS)))
@settings(max_examples=40)
def test_a_drawn_token_was_kept_and_has_the_log_prob_of_the_truncated_distribution(seed, name):
    params = SETTINGS[name]
    logits = tied_logits(seed, 0.25)
    tokens, logprobs = (np.asarray(x) for x in drawn(logits, keys(4, seed), np.zeros(4, np.int32), params))
    cut = np.asarray(truncated(logits / np.float32(params.temperature), params), np.float64)
    expected = scipy.special.log_softmax(cut, axis=-1)[np.arange(4), tokens]
    assert np.all(expected > -100)
    np.testing.assert_allclose(logprobs, expected, atol=2e-6)


def _apart(params: list[SamplingParams]) -> RowSampling:
    def column(name: str, dtype: str) -> np.ndarray:
        return np.array([getattr(one, name) for one in params], dtype)

    settings = (column("temperature", "f4"), column("top_k", "i4"), column("top_p", "f4"), column("min_p", "f4"))
    return RowSampling(*settings)


def test_rows_with_settings_of_their_own_draw_what_they_would_draw_together():
    chosen = [*SETTINGS.values(), SamplingParams(temperature=0)]
    rows = len(chosen) * 64
    logits = np.random.default_rng(3).normal(0, 2, (rows, VOCAB)).astype(np.float32)
    index = np.arange(rows, dtype=np.int32)
    each = [chosen[i % len(chosen)] for i in range(rows)]
    tokens, logprobs = drawn(logits, keys(rows), index, SamplingParams(), _apart(each))
    for number, params in enumerate(chosen):
        own = slice(number, None, len(chosen))
        expected, _ = drawn(logits[own], keys(rows)[own], index[own], params)
        np.testing.assert_array_equal(tokens[own], expected)
    np.testing.assert_allclose(
        logprobs, scipy.special.log_softmax(logits, axis=-1)[np.arange(rows), tokens], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_draw_only_what_they_are_allowed(temperature):
    rows = 400
    logits = np.broadcast_to(LOGITS, (rows, VOCAB))
    permitted = np.zeros((rows, 64), bool)
    permitted[:, [1, 7, 33, 39]] = True
    words = np.packbits(permitted, axis=1, bitorder="little").view(np.int32)
    settings = SamplingParams(temperature=temperature)
    for apart in (None, _apart([settings] * rows)):
        tokens, logprobs = drawn(logits, keys(rows), np.zeros(rows, np.int32), settings, apart, words)
        found = set(np.asarray(tokens).tolist())
        assert found == ({1, 7, 33, 39} if temperature else {max((1, 7, 33, 39), key=lambda i: LOGITS[i])})
        among = np.where(permitted[0, :VOCAB], LOGITS, -np.inf) if apart is None else LOGITS
        expected = scipy.special.log_softmax(np.float64(among))
        np.testing.assert_allclose(logprobs, expected[tokens], atol=1e-5)
