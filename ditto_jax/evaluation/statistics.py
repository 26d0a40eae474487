"""Scores → a mean with its interval: every reported number says how sure it is.

Scores of one item (several samples) are averaged first, so that items are what is counted. Items that share a story,
conversation or book are not independent: `clusters_of` says which belong together, and whole clusters are resampled.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over n items with the interval [low, high] at `confidence`, made by `method`."""

    value: float
    low: float
    high: float
    n: int
    confidence: float
    method: str


def estimate_mean(
    scores: Sequence[Sequence[float]], confidence: float = 0.95, resamples: int = 2000
) -> Estimate | None:
    """Returns the mean over items of each item's mean score, or None without items.

    One 0/1 score per item: Wilson interval. Else a bias-corrected bootstrap over items (percentile where it is
    degenerate).
    """
    import scipy.stats

    means = np.array([np.mean(item) for item in scores if len(item)], dtype=np.float64)
    if not len(means):
        return None
    value = float(means.mean())
    if set(np.unique(means)) <= {0.0, 1.0}:
        ci = scipy.stats.binomtest(int(means.sum()), len(means)).proportion_ci(confidence, method="wilson")
        return Estimate(value, float(ci.low), float(ci.high), len(means), confidence, "wilson")
    if len(means) == 1:
        return Estimate(value, float("-inf"), float("inf"), 1, confidence, "none")
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = scipy.stats.bootstrap(
            (means,), np.mean, confidence_level=confidence, n_resamples=resamples, method="BCa", rng=rng
        )
        method = "bootstrap-bca"
        if not np.isfinite([result.confidence_interval.low, result.confidence_interval.high]).all():
            result = scipy.stats.bootstrap(
                (means,), np.mean, confidence_level=confidence, n_resamples=resamples, method="percentile", rng=rng
            )
            method = "bootstrap-percentile"
    interval = result.confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), len(means), confidence, method)


def estimate_clustered(values: Sequence[float], clusters: Sequence[int], confidence: float = 0.95) -> Estimate | None:
    """Returns the mean of values that come in clusters (seeds that share a warm start), or None without values.

    Values of one cluster are no independent evidence: the t-interval is that over the means of the clusters, whose
    number is `n`. With one cluster it is infinite.
    """
    import scipy.stats

    if not len(values):
        return None
    known = sorted(set(clusters))
    means = np.array([np.mean([v for v, c in zip(values, clusters, strict=True) if c == one]) for one in known])
    value = float(means.mean())
    if len(means) == 1:
        return Estimate(value, float("-inf"), float("inf"), 1, confidence, "none")
    half = scipy.stats.t.ppf((1 + confidence) / 2, len(means) - 1) * np.std(means, ddof=1) / np.sqrt(len(means))
    return Estimate(value, value - float(half), value + float(half), len(means), confidence, "t over clusters")


def clusters_of(groups: Sequence[Collection[str]]) -> list[int]:
    """Returns the cluster of each item, numbered from 0 in order: items that share a group, directly or through others.

    groups: of each item; an item without any is a cluster of its own.
    """
    parents = list(range(len(groups)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first_with: dict[str, int] = {}
    for index, names in enumerate(groups):
        for name in names:
            parents[root(index)] = root(first_with.setdefault(name, index))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(index), len(numbers)) for index in range(len(groups))]


def resampled_means(
    values: Sequence[float] | np.ndarray, clusters: Sequence[int], resamples: int, seed: int = 0
) -> np.ndarray:
    """Returns float64[resamples]: means of `values` over as many clusters as there are, drawn with replacement."""
    numbers = np.asarray(clusters)
    count = int(numbers.max()) + 1
    sums = np.bincount(numbers, weights=np.asarray(values, dtype=np.float64), minlength=count)
    sizes = np.bincount(numbers, minlength=count)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for row in range(resamples):  # one at a time: all draws of 6,000 clusters at once would fill half a gigabyte
        drawn = rng.integers(0, count, size=count)
        means[row] = sums[drawn].sum() / sizes[drawn].sum()
    return means


def clustered_interval(
    values: Sequence[float] | np.ndarray, clusters: Sequence[int], confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float] | None:
    """Returns the percentile bootstrap interval of the mean over clusters; None for fewer than two clusters."""
    if len(set(clusters)) < 2:
        return None
    means = resampled_means(values, clusters, resamples)
    low, high = np.quantile(means, ((1.0 - confidence) / 2, (1.0 + confidence) / 2))
    return float(low), float(high)


def below_chance(p_values: Sequence[float], level: float) -> list[bool]:
    """Returns which p-values stand at `level` after Holm's step-down correction for how many there are: the k-th
    smallest of m must be at most level / (m - k), and all smaller ones must stand too.
    """
    found, holds = [False] * len(p_values), True
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        holds = holds and p_values[index] <= level / (len(p_values) - rank)
        found[index] = holds
    return found
