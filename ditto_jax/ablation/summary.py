"""Curves of all runs → means over seeds with their intervals, differences within a seed, and collapse warnings.

In: one curve for each finished run. Out: plain values, ready for JSON; tables and pictures are made of them alone.
Seeds that share a warm start are no independent evidence: intervals are over the means of warm starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ditto_jax.ablation.config import AblationConfig
from ditto_jax.ablation.curves import AXES, RunCurve, collapses
from ditto_jax.ablation.plan import Plan
from ditto_jax.evaluation.statistics import estimate_clustered
from ditto_jax.runs.readings import ends

_GRID = 21  # places along an axis at which mean curves are given


def places_of(config: AblationConfig) -> list[tuple[str, int]]:
    """Returns where arms are compared: (axis, value) pairs, equal updates first."""
    return [("updates", config.updates), *(("samples", value) for value in config.samples)]


def place_name(axis: str, value: float) -> str:
    return f"{value:,g} {axis}"


def summarise(plan: Plan, curves: Sequence[RunCurve], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results of the finished runs; an arm without any is listed with nothing measured."""
    config = plan.config
    by_arm = {arm.name: [c for c in curves if c.arm == arm.name] for arm in config.arms}
    present = {(c.arm, c.seed) for c in curves}
    return {
        "name": config.name,
        "config_hash": plan.digest,
        "seeds": config.seeds,
        "warm_starts": config.warm_starts.count,
        "score": {"breakdown": config.score.breakdown, "without": list(config.score.without)},
        "runs": {"planned": len(plan.runs), "finished": len(curves)},
        "missing": [f"{run.arm}, seed {run.seed}" for run in plan.runs if (run.arm, run.seed) not in present],
        "places": [place_name(*place) for place in places_of(config)],
        "arms": {name: _arm(config, own) for name, own in by_arm.items()},
        "differences": {name: _differences(config, by_arm, name) for name in config.references},
        "collapsed": [
            {"arm": c.arm, "seed": c.seed, "why": why} for c in curves for why in collapses(c, config.collapse)
        ],
        "environment": dict(environment),
    }


def _arm(config: AblationConfig, curves: Sequence[RunCurve]) -> dict[str, Any]:
    return {
        "seeds": [curve.seed for curve in curves],
        "start": _mean(curves, lambda curve: curve.at("updates", 0)),
        "at": {place_name(*place): _mean(curves, lambda c, place=place: c.at(*place)) for place in places_of(config)},
        "samples_per_update": _mean(curves, lambda curve: curve.samples_per_update),
        "refined_per_update": _mean(curves, lambda curve: curve.refined_per_update),
        "gap": {"first": _mean(curves, lambda c: _gap_end(c, 0)), "last": _mean(curves, lambda c: _gap_end(c, 1))},
        "curves": {axis: _mean_curve(curves, axis) for axis in AXES},
        "gap_curve": _gap_curve(curves),
        "runs": [
            {
                "seed": curve.seed,
                "warm_start": curve.warm_start,
                **{key: [getattr(p, key) for p in curve.points] for key in ("updates", "samples", "tokens", "score")},
                "items": curve.points[-1].n if curve.points else 0,
            }
            for curve in curves
        ],
    }


def _mean(curves: Sequence[RunCurve], read: Callable[[RunCurve], float | None]) -> dict[str, Any] | None:
    """The mean over runs of what is read from each; None unless every run has it: an easier half would mislead."""
    read_values = [read(curve) for curve in curves]
    values = [value for value in read_values if value is not None]
    if not values or len(values) < len(read_values):
        return None
    return _estimate(values, [curve.warm_start for curve in curves])


def _estimate(values: Sequence[float], warm_starts: Sequence[int]) -> dict[str, Any]:
    estimate = estimate_clustered(values, warm_starts)
    assert estimate is not None
    bounded = math.isfinite(estimate.low)
    return {
        "mean": estimate.value,
        "low": estimate.low if bounded else None,
        "high": estimate.high if bounded else None,
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": len(values),
        "warm_starts": estimate.n,
    }


def _gap_end(curve: RunCurve, which: int) -> float | None:
    """The gap over the first (0) or last (1) tenth of the run."""
    known = [value for value in curve.gap if value is not None]
    found = ends(known)
    return None if found is None else found[which]


def _mean_curve(curves: Sequence[RunCurve], axis: str) -> dict[str, Any]:
    """The mean score along an axis as far as every run has come: at each evaluation, or at equal numbers of samples."""
    if not curves or not all(curve.points for curve in curves):
        return {"places": [], "values": []}
    last = min(getattr(curve.points[-1], axis) for curve in curves)
    if axis == "updates":
        grid = [point.updates for point in curves[0].points if point.updates <= last]
    else:
        grid = np.linspace(0, last, _GRID).tolist()
    return {"places": grid, "values": [_mean(curves, lambda c, x=x: c.at(axis, x)) for x in grid]}


def _gap_curve(curves: Sequence[RunCurve]) -> dict[str, Any]:
    """The mean gap by update, over the runs that had one there."""
    by_update: dict[int, list[float]] = {}
    for curve in curves:
        for update, value in zip(curve.updates, curve.gap, strict=True):
            if value is not None:
                by_update.setdefault(update, []).append(value)
    updates = sorted(by_update)
    return {"places": updates, "values": [float(np.mean(by_update[update])) for update in updates]}


def _differences(config: AblationConfig, by_arm: Mapping[str, Sequence[RunCurve]], reference: str) -> dict[str, Any]:
    """Arm → place → the mean difference to the reference over the seeds that both have finished."""
    base = {curve.seed: curve for curve in by_arm[reference]}
    table: dict[str, Any] = {}
    for name, curves in by_arm.items():
        pairs = [(curve, base[curve.seed]) for curve in curves if curve.seed in base]
        if name == reference or not pairs:
            continue
        table[name] = {}
        for axis, value in places_of(config):
            differences = [_difference(mine.at(axis, value), other.at(axis, value)) for mine, other in pairs]
            known = [d for d in differences if d is not None]
            complete = len(known) == len(pairs)
            starts = [mine.warm_start for mine, _ in pairs]
            table[name][place_name(axis, value)] = _estimate(known, starts) if complete else None
    return table


def _difference(mine: float | None, other: float | None) -> float | None:
    return None if mine is None or other is None else mine - other
