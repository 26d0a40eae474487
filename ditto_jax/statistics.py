"""Scores → a mean with its interval: every reported number says how sure it is.

Scores of one item (several samples) are averaged first, so that items, which are independent, are what is counted.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

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
