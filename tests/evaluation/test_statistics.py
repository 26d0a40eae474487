"""Intervals contain the truth about as often as they say, and shrink with the number of items, not of samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.evaluation.statistics import clustered_interval, clusters_of, estimate_mean


@given(st.integers(1, 200), st.data())
def test_a_wilson_interval_holds_the_mean_and_stays_within_zero_and_one(n, data):
    right = data.draw(st.integers(0, n))
    estimate = estimate_mean([[1.0]] * right + [[0.0]] * (n - right))
    assert estimate is not None and estimate.method == "wilson" and estimate.n == n
    assert math.isclose(estimate.value, right / n)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.high - estimate.low > 0.0  # never certain, not even with all right


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_a_bootstrap_interval_lies_around_the_mean_within_the_range_of_the_items(n, seed):
    rng = np.random.default_rng(seed)
    scores = rng.random((n, 2)).tolist()
    estimate = estimate_mean(scores, resamples=200)
    assert estimate is not None and estimate.method.startswith("bootstrap") and estimate.n == n
    means = np.mean(scores, axis=1)
    assert math.isclose(estimate.value, means.mean())
    assert means.min() - 1e-9 <= estimate.low <= estimate.high <= means.max() + 1e-9


def test_known_wilson_values():
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3: 81 of 263 and 15 of 148.
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        estimate = estimate_mean([[1.0]] * right + [[0.0]] * (n - right))
        assert estimate is not None
        assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)


@pytest.mark.parametrize("draw", ["yes or no", "fractions"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(draw):
    rng = np.random.default_rng(0)
    hits, trials = 0, 150
    for _ in range(trials):
        items = rng.random(40)
        scores = [[float(x < 0.3)] for x in items] if draw == "yes or no" else [[float(x), float(x)] for x in items]
        estimate = estimate_mean(scores, confidence=0.9, resamples=300)
        assert estimate is not None
        hits += estimate.low <= (0.3 if draw == "yes or no" else 0.5) <= estimate.high
    assert 0.82 <= hits / trials <= 0.97


def test_samples_of_one_item_are_averaged_and_do_not_count_as_items():
    few, many = estimate_mean([[1.0], [0.0], [1.0]]), estimate_mean([[1.0] * 50, [0.0] * 50, [1.0] * 50])
    assert few == many and few is not None and few.n == 3


def test_more_items_and_less_confidence_narrow_the_interval():
    def width(n: int, confidence: float = 0.95) -> float:
        estimate = estimate_mean([[0.0], [0.5], [1.0]] * n, confidence)
        assert estimate is not None
        return estimate.high - estimate.low

    assert width(40) < width(10) and width(10, 0.5) < width(10)


def test_an_interval_is_the_same_every_time():
    scores = np.random.default_rng(1).random((20, 1)).tolist()
    assert estimate_mean(scores) == estimate_mean(scores)


def test_no_item_gives_no_estimate_and_items_without_scores_do_not_count():
    assert estimate_mean([]) is None and estimate_mean([[], []]) is None
    assert estimate_mean([[], [1.0]]) == estimate_mean([[1.0]])


def test_equal_fractions_collapse_and_a_single_fraction_has_no_interval():
    equal = estimate_mean([[0.5]] * 8)
    assert equal is not None and (equal.low, equal.high) == (0.5, 0.5)
    single = estimate_mean([[0.5]])
    assert single is not None and single.method == "none" and (single.low, single.high) == (-math.inf, math.inf)


def test_items_that_share_a_group_directly_or_through_others_are_one_cluster():
    assert clusters_of([{"a"}, {"b"}, {"a", "c"}, set(), {"c"}, set()]) == [0, 1, 0, 2, 0, 3]


def test_resampling_whole_clusters_widens_an_interval_exactly_where_items_are_alike():
    values = np.repeat(np.random.default_rng(1).random(20), 5)
    apart = clustered_interval(values, range(100), resamples=500)
    together = clustered_interval(values, np.repeat(np.arange(20), 5).tolist(), resamples=500)
    assert apart is not None and together is not None
    assert together[0] < apart[0] < values.mean() < apart[1] < together[1]
    assert clustered_interval([0.0, 1.0], [0, 0]) is None
