"""Verdicts on the same samples → how far a judge agrees with itself, with another one, and with what is known.

checkpoint, **evaluation**, report

In: scores of repeated verdicts, of two judges, and choices between two sides asked in both orders. Out: plain figures.
Asks nobody; who is asked what is `judge_check.py`. Imports no jax.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from ditto_jax.evaluation.statistics import clustered_interval

_EQUAL = 1e-9
_LEAST_SPREAD = 0.05  # controls closer than this calibrate nothing


def self_consistency(scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Returns how alike repeated verdicts on one sample are; scores: of each sample, the scores it was given.

    identical: share of samples whose scores are all equal. sd: of a single verdict around its sample's mean (pooled).
    reliability: share of the variance of single verdicts that lies between samples (one-way intraclass correlation,
    Shrout and Fleiss 1979, ICC(1,1)); None where all scores are equal. Samples with one score count for nothing.
    """
    repeated = [list(own) for own in scores if len(own) > 1]
    if not repeated:
        return {"samples": 0, "identical": None, "sd": None, "largest_range": None, "reliability": None}
    freedom = sum(len(own) - 1 for own in repeated)
    within = sum(sum((x - statistics.fmean(own)) ** 2 for x in own) for own in repeated) / freedom
    return {
        "samples": len(repeated),
        "identical": statistics.fmean(max(own) - min(own) < _EQUAL for own in repeated),
        "sd": math.sqrt(within),
        "largest_range": max(max(own) - min(own) for own in repeated),
        "reliability": _reliability(repeated, within),
    }


def _reliability(repeated: Sequence[Sequence[float]], within: float) -> float | None:
    if len(repeated) < 2:
        return None
    everything = [x for own in repeated for x in own]
    grand, total = statistics.fmean(everything), len(everything)
    between = sum(len(own) * (statistics.fmean(own) - grand) ** 2 for own in repeated) / (len(repeated) - 1)
    typical = (total - sum(len(own) ** 2 for own in repeated) / total) / (len(repeated) - 1)
    whole = between + (typical - 1) * within
    return None if whole <= _EQUAL else (between - within) / whole


def agreement(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Returns how far two judges agree on the same samples; `first` and `second` are aligned.

    difference: mean of second minus first, with its interval by a bootstrap over samples: what one judge gives more
    than the other. kappa: Cohen's, where every score is 0 or 1; correlations are None where a judge always says the
    same.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not len(a):
        return {"samples": 0}
    bounds = clustered_interval(b - a, range(len(a)), confidence)
    varies = len(a) > 2 and bool(np.ptp(a) > _EQUAL and np.ptp(b) > _EQUAL)
    return {
        "samples": len(a),
        "identical": float(np.mean(np.abs(a - b) < _EQUAL)),
        "difference": float(np.mean(b - a)),
        "interval": None if bounds is None else {"low": bounds[0], "high": bounds[1], "confidence": confidence},
        "mean_absolute_difference": float(np.mean(np.abs(b - a))),
        "pearson": float(np.corrcoef(a, b)[0, 1]) if varies else None,
        "spearman": float(np.corrcoef(_ranks(a), _ranks(b))[0, 1]) if varies else None,
        "kappa": _kappa(a, b) if set(np.unique([a, b])) <= {0.0, 1.0} else None,
    }


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def _kappa(a: np.ndarray, b: np.ndarray) -> float | None:
    observed, p, q = float(np.mean(a == b)), float(a.mean()), float(b.mean())
    by_chance = p * q + (1 - p) * (1 - q)
    return None if by_chance > 1 - _EQUAL else (observed - by_chance) / (1 - by_chance)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A choice between two sides, asked twice: "first", "second" or "tie", when shown in order and when swapped.

    Both answers name the sides, not their places.
    """

    in_order: str
    swapped: str


_WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}


def pairwise(choices: Sequence[Choice], confidence: float = 0.95) -> dict[str, Any]:
    """Returns how often the first side is chosen, and how much of that is its place.

    win_rate: mean over both orders, ties half: free of position bias. position_bias: how much more often a side is
    chosen when it is shown first, from -1 to 1; 0 for a judge that reads. consistent: share of pairs with the same
    answer in both orders.
    """
    if not choices:
        return {"pairs": 0, "win_rate": None, "interval": None, "position_bias": None, "consistent": None, "ties": None}
    ahead = np.array([_WORTH[choice.in_order] for choice in choices])
    behind = np.array([_WORTH[choice.swapped] for choice in choices])
    both = (ahead + behind) / 2
    bounds = clustered_interval(both, range(len(both)), confidence)
    answers = [answer for choice in choices for answer in (choice.in_order, choice.swapped)]
    return {
        "pairs": len(choices),
        "win_rate": float(both.mean()),
        "interval": None if bounds is None else {"low": bounds[0], "high": bounds[1], "confidence": confidence},
        "position_bias": float((ahead - behind).mean()),
        "consistent": statistics.fmean(choice.in_order == choice.swapped for choice in choices),
        "ties": answers.count("tie") / len(answers),
    }


def calibrated(score: float, human: float, proxy: float) -> float | None:
    """Returns where a score lies between two controls, 0 at `proxy`, 1 at `human`, clamped to that range.

    None if the controls do not lie apart in this order: then the judge tells nothing from nothing.
    """
    if human - proxy < _LEAST_SPREAD:
        return None
    return min(1.0, max(0.0, (score - proxy) / (human - proxy)))
