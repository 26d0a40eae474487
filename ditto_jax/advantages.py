"""Rewards to weights: each row's advantage within its pool, on the host, in NumPy.

rollouts with verdicts → views and pools → **one weight a row** → update

In: a `RowTable`, one row a view. Out: `AdvantageResult`: weights, which rows stay in the loss, a report of every pool.
Statistics use real counts (no padding value enters), each rollout counts once in a pool, and a pool with nothing to
compare gives exactly 0 (arXiv 2605.20506: joint group and feedback-conditioned group). No token, no gradient, no jax.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ditto_jax.objective import Objective, Pool, role_names
from ditto_jax.types import ViewRole


@dataclasses.dataclass(frozen=True)
class RowTable:
    """One row a view, as arrays of one length R; raises ValueError for unequal lengths or non-bool flags.

    role: int[R] of ViewRole.
    prompt: int[R], which rows share an instance.
    rollout: int[R], unique within its prompt; views and sub-sequences of one rollout share it, a refinement never has
        its draft's.
    reward: float32[R].
    reward_valid: bool[R], False if the judge failed.
    row_valid: bool[R], False for padding.
    truncated: bool[R], cut by the token budget.
    """

    role: np.ndarray
    prompt: np.ndarray
    rollout: np.ndarray
    reward: np.ndarray
    reward_valid: np.ndarray
    row_valid: np.ndarray
    truncated: np.ndarray

    def __post_init__(self):
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in dataclasses.fields(self)}
        if len(set(shapes.values())) != 1 or len(shapes["role"]) != 1:
            raise ValueError(f"row table columns must all have shape [R], got {shapes}")
        for name in ("reward_valid", "row_valid", "truncated"):
            if getattr(self, name).dtype != np.bool_:
                raise ValueError(f"row table column {name} must be bool, got {getattr(self, name).dtype}")


@dataclasses.dataclass(frozen=True)
class PoolReport:
    """How the instances of one pool ended, one for every prompt with a row in it; `count` is the sum of the other four.

    all_equal: rewards within the tolerance. too_small: fewer rollouts than the pool needs. invalid: enough were
    sampled, but failed verdicts or truncation left too few.
    """

    roles: tuple[ViewRole, ...]
    count: int
    live: int
    all_equal: int
    too_small: int
    invalid: int


@dataclasses.dataclass(frozen=True)
class AdvantageResult:
    """The weights, and why they are what they are.

    weights: float32[R], 0 outside live pools.
    row_valid: bool[R], rows that stay in the loss and its denominators, those of dead pools too.
    row_live: bool[R], rows of live pools.
    pools: one report a pool. metrics: floats by `area/what_unit`.
    """

    weights: np.ndarray
    row_valid: np.ndarray
    row_live: np.ndarray
    pools: tuple[PoolReport, ...]
    metrics: dict[str, float]


def assign(rows: RowTable, objective: Objective) -> AdvantageResult:
    """Returns the weight of every row under the pools of `objective`.

    Rows of a role without a pool, padding, rollouts without a verdict and (unless `objective.truncated` is "keep")
    truncated rows get weight 0 and leave statistics and loss alike.
    """
    scored = _scored(rows)
    kept = scored & ~rows.truncated if objective.truncated == "drop" else scored
    weights = np.zeros(len(rows.role), dtype=np.float32)
    row_valid = np.zeros(len(rows.role), dtype=bool)
    row_live = np.zeros(len(rows.role), dtype=bool)
    reports = []
    for pool in objective.pools:
        members = np.isin(rows.role, pool.roles) & rows.row_valid
        eligible = members & kept
        pool_weights, live, report = _normalise(rows, pool, members, eligible)
        weights[eligible] = pool_weights
        row_valid |= eligible
        row_live[eligible] = live
        reports.append(report)
    metrics = _metrics(rows, objective, scored, row_valid, weights, reports)
    return AdvantageResult(weights, row_valid, row_live, tuple(reports), metrics)


def _scored(rows: RowTable) -> np.ndarray:
    """bool[R]: real rows of rollouts that have a finite reward in every one of their rows."""
    failed = rows.row_valid & ~(rows.reward_valid & np.isfinite(rows.reward))
    failed_rollouts = _keys(rows)[failed]
    return rows.row_valid & ~np.isin(_keys(rows), failed_rollouts)


def _keys(rows: RowTable) -> np.ndarray:
    """int[R]: equal for two rows iff they belong to one rollout."""
    if not len(rows.role):
        return np.zeros(0, dtype=np.intp)
    pairs = np.stack([rows.prompt, rows.rollout], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def _first_of_rollout(rows: RowTable, among: np.ndarray) -> np.ndarray:
    """bool[R]: the first row of every rollout, counting only the rows in `among`."""
    indices = np.flatnonzero(among)
    first = np.zeros(len(rows.role), dtype=bool)
    first[indices[np.unique(_keys(rows)[indices], return_index=True)[1]]] = True
    return first


def _normalise(
    rows: RowTable, pool: Pool, members: np.ndarray, eligible: np.ndarray
) -> tuple[np.ndarray, np.ndarray, PoolReport]:
    """Returns (weights float32[E], live bool[E]) of the E eligible rows, and the report over prompts with a member."""
    prompts, prompt_of_member = np.unique(rows.prompt[members], return_inverse=True)
    segment = np.zeros(len(rows.role), dtype=np.intp)
    segment[members] = prompt_of_member.reshape(-1)
    counted = _first_of_rollout(rows, eligible)
    where, reward = segment[counted], rows.reward[counted].astype(np.float64)
    n = np.bincount(where, minlength=len(prompts))
    mean = np.bincount(where, weights=reward, minlength=len(prompts)) / np.maximum(n, 1)
    squares = np.bincount(where, weights=(reward - mean[where]) ** 2, minlength=len(prompts))
    std = np.sqrt(squares / np.maximum(n - int(pool.unbiased), 1))
    needed = pool.min_size if pool.has_statistics else 1
    small = n < needed
    equal = ~small & ~_apart(where, reward, len(prompts), pool.reward_tolerance) & pool.has_statistics
    live = ~small & ~equal

    where, reward = segment[eligible], rows.reward[eligible].astype(np.float64)
    centred = reward - mean[where] if pool.centre == "mean" else reward
    scale = np.maximum(std, pool.std_floor)[where] + pool.eps if pool.scale == "std" else np.ones_like(reward)
    weights = np.divide(centred, scale, out=np.zeros_like(reward), where=live[where]).astype(np.float32)

    sampled = np.bincount(segment[_first_of_rollout(rows, members)], minlength=len(prompts))
    lost = small & (sampled >= needed)
    report = PoolReport(
        roles=pool.roles,
        count=len(prompts),
        live=int(live.sum()),
        all_equal=int(equal.sum()),
        too_small=int((small & ~lost).sum()),
        invalid=int(lost.sum()),
    )
    return weights, live[where], report


def _apart(where: np.ndarray, reward: np.ndarray, segments: int, tolerance: float) -> np.ndarray:
    """bool[segments]: max - min exceeds the tolerance by more than the rounding of float32 rewards can explain."""
    highest, lowest = np.full(segments, -np.inf), np.full(segments, np.inf)
    np.maximum.at(highest, where, reward)
    np.minimum.at(lowest, where, reward)
    occupied = np.isfinite(highest)
    spread = np.subtract(highest, lowest, out=np.zeros(segments), where=occupied)
    largest = np.maximum(np.abs(highest), np.abs(lowest), out=np.zeros(segments), where=occupied)
    return spread > tolerance + np.finfo(np.float32).eps * largest


def _metrics(
    rows: RowTable,
    objective: Objective,
    scored: np.ndarray,
    row_valid: np.ndarray,
    weights: np.ndarray,
    reports: list[PoolReport],
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for report in reports:
        name = role_names(report.roles)
        for cause in ("count", "live", "all_equal", "too_small", "invalid"):
            suffix = "" if cause == "count" else f"_{cause}"
            metrics[f"pool/{name}{suffix}_count"] = float(getattr(report, cause))
    judged = sum(report.live + report.all_equal for report in reports)
    metrics["pool/frac_reward_zero_std"] = sum(report.all_equal for report in reports) / max(judged, 1)
    wanted = np.isin(rows.role, objective.views) & rows.row_valid
    metrics["pool/truncated_fraction"] = _mean(rows.truncated[wanted])
    metrics["pool/unscored_fraction"] = _mean(~scored[wanted])
    for role in objective.views:
        of_role, name = rows.role == role, role.name.lower()
        metrics[f"pool/rows_{name}_count"] = float((of_role & row_valid).sum())
        if (of_role & scored).any():
            metrics[f"pool/reward_{name}_mean"] = _mean(rows.reward[_first_of_rollout(rows, of_role & scored)])
        if (of_role & row_valid).any():
            metrics[f"pool/weight_abs_{name}_mean"] = _mean(np.abs(weights[of_role & row_valid]))
    return metrics


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else 0.0
