"""Numbers of a run → whether something is related to something: rates with bounds, trends over steps, two samples.

Rollouts about one prompt are alike, so that what is counted as independent is their group and never the rollout. Each
function returns the size of an effect beside its p-value: a check asks for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

_CONFIDENCE = 0.99


@dataclasses.dataclass(frozen=True)
class Rate:
    """count of total, with the interval [low, high] (Wilson, 99 %)."""

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.count / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({self.count:,} of {self.total:,})"


def rate(count: int, total: int) -> Rate:
    """Returns a rate; of nothing the interval is [0, 1]."""
    import scipy.stats

    if not total:
        return Rate(0, 0, 0.0, 1.0)
    interval = scipy.stats.binomtest(min(count, total), total).proportion_ci(_CONFIDENCE, method="wilson")
    return Rate(count, total, float(interval.low), float(interval.high))


@dataclasses.dataclass(frozen=True)
class Trend:
    """Of a series over steps. tau: Kendall's, -1 to 1. first, last: means of the first and the last third."""

    tau: float
    p_value: float
    first: float
    last: float


_LEAST_STEPS = 8  # fewer orders than this could come about by chance


def trend(points: Sequence[tuple[int, float]]) -> Trend | None:
    """Returns the trend of (step, value) in order, or None for fewer than eight steps or a constant."""
    import scipy.stats

    values = [value for _, value in points]
    if len(points) < _LEAST_STEPS or len(set(values)) < 2:
        return None
    tau, p_value = np.asarray(scipy.stats.kendalltau([step for step, _ in points], values), dtype=np.float64)
    third = len(values) // 3
    return Trend(float(tau), float(p_value), float(np.mean(values[:third])), float(np.mean(values[-third:])))


@dataclasses.dataclass(frozen=True)
class Separation:
    """How two samples lie to each other. auc: chance that a value of the first exceeds one of the second, 0.5 where
    they are alike. first, second: medians.
    """

    auc: float
    p_value: float
    first: float
    second: float


def separation(
    first: Sequence[tuple[Hashable, float]], second: Sequence[tuple[Hashable, float]], least: int = 5
) -> Separation | None:
    """Returns how (group, value) pairs of two samples differ, two-sided; None if either is of fewer than `least`
    groups, or if all values are equal.

    A rank test whose variance is that of sums over groups: members of a group, which are alike and may be in both
    samples, count as one piece of evidence.
    """
    import scipy.stats

    of_first, of_second = ({group for group, _ in sample} for sample in (first, second))
    values = np.array([value for _, value in (*first, *second)])
    if min(len(of_first), len(of_second)) < least or np.ptp(values) == 0.0:
        return None
    ranks = scipy.stats.rankdata(values)
    is_first = np.arange(len(values)) < len(first)
    auc = (ranks[is_first].sum() / len(first) - (len(first) + 1) / 2) / len(second)
    products = (is_first - is_first.mean()) * (ranks - ranks.mean())
    numbers = {group: number for number, group in enumerate(of_first | of_second)}
    sums = np.bincount([numbers[group] for group, _ in (*first, *second)], weights=products)
    score = float(sums.sum() / np.sqrt(np.sum(sums**2))) if sums.any() else 0.0
    p_value = 2.0 * float(scipy.stats.t.sf(abs(score), min(len(of_first), len(of_second)) - 1))
    medians = float(np.median(values[is_first])), float(np.median(values[~is_first]))
    return Separation(float(auc), p_value, *medians)


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean of values that come in n groups, with its 95 % t-interval, which is robust to their likeness."""

    value: float
    low: float
    high: float
    n: int


def mean_in_groups(values: Iterable[tuple[Hashable, float]]) -> Mean | None:
    """Returns the mean of (group, value) pairs, or None for fewer than two groups.

    Every value weighs the same. The error is that of a ratio of sums over groups.
    """
    import scipy.stats

    by_group = _by_group(values)
    n = len(by_group)
    if n < 2:
        return None
    sums, sizes = np.array([sum(g) for g in by_group]), np.array([len(g) for g in by_group])
    value = float(sums.sum() / sizes.sum())
    error = float(np.sqrt(n / (n - 1) * np.sum((sums - value * sizes) ** 2)) / sizes.sum())
    half = float(scipy.stats.t.ppf(0.975, n - 1)) * error
    return Mean(value, value - half, value + half, n)


def _by_group(values: Iterable[tuple[Hashable, float]]) -> list[list[float]]:
    found: dict[Hashable, list[float]] = {}
    for group, value in values:
        found.setdefault(group, []).append(value)
    return list(found.values())
