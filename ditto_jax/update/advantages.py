"""Rewards to weights: each row's advantage within its pool, on the host, in NumPy.

rollouts with verdicts → views and pools → **one weight a row** → update

In: a `RowTable`, one row a view. Out: `AdvantageResult`: weights, which rows stay in the loss, a report of every pool.
Statistics use real counts (no padding value enters), each rollout counts once in a pool, and a pool with nothing to
compare gives exactly 0. The arithmetic of one pool is `pool_weights.py`. No token, no gradient, no jax.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ditto_jax.objective import Objective, role_names
from ditto_jax.update.pool_weights import Candidates, PoolReport, weigh


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
    parent: int[R], rollout of the draft that the row's rollout answers to, in the same prompt; -1 for drafts. None:
        not known; objectives that read it raise ValueError.
    length: int[R], tokens of the response. None: as above.
    """

    role: np.ndarray
    prompt: np.ndarray
    rollout: np.ndarray
    reward: np.ndarray
    reward_valid: np.ndarray
    row_valid: np.ndarray
    truncated: np.ndarray
    parent: np.ndarray | None = None
    length: np.ndarray | None = None

    def __post_init__(self):
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shapes = {name: np.shape(column) for name, column in columns.items() if column is not None}
        if len(set(shapes.values())) != 1 or len(shapes["role"]) != 1:
            raise ValueError(f"row table columns must all have shape [R], got {shapes}")
        for name in ("reward_valid", "row_valid", "truncated"):
            if getattr(self, name).dtype != np.bool_:
                raise ValueError(f"row table column {name} must be bool, got {getattr(self, name).dtype}")


@dataclasses.dataclass(frozen=True)
class AdvantageResult:
    """The weights, and why they are what they are.

    weights: float32[R], 0 outside live pools.
    row_valid: bool[R], rows that stay in the loss and its denominators, those of dead pools too.
    row_live: bool[R], rows that something is learned from: those of live pools, and valid rows without a pool.
    row_weight: float32[R], static weight of the row within its term.
    pools: one report a pool. metrics: floats by `area/what_unit`.
    """

    weights: np.ndarray
    row_valid: np.ndarray
    row_live: np.ndarray
    row_weight: np.ndarray
    pools: tuple[PoolReport, ...]
    metrics: dict[str, float]


def assign(rows: RowTable, objective: Objective) -> AdvantageResult:
    """Returns the weight of every row under the pools of `objective`.

    Rows of a role that no term trains, padding, and (if `objective.truncated` is "drop") truncated rows get weight 0
    and leave statistics and loss alike; so do rows of a pool whose rollout has no verdict. Rows of a role without a
    pool need no verdict: they stay in the loss with weight 0, for the terms that read no reward.
    Raises ValueError if the objective reads a column that `rows` does not have.
    """
    rollout, parent = _keys(rows, objective)
    scored = _scored(rows, rollout)
    uncut = ~rows.truncated if objective.truncated == "drop" else np.ones(len(rollout), bool)
    reward = np.where(scored, rows.reward, 0.0).astype(np.float64)
    if objective.truncated == "penalise":
        reward += _overlong_penalty(rows, rollout, objective)
    candidates = Candidates(rows.role, rows.prompt, rollout, parent, reward, rows.row_valid, scored & uncut)
    trained = {role for term in objective.terms for role in term.roles}
    pooled = {role for pool in objective.pools for role in pool.roles}
    free = rows.row_valid & uncut & np.isin(rows.role, list(trained - pooled))
    weights = np.zeros(len(rollout), dtype=np.float32)
    row_valid, row_live = free.copy(), free.copy()
    reports = []
    for pool in objective.pools:
        members = rows.row_valid & np.isin(rows.role, list(trained & set(pool.roles)))
        pool_weights, live, report = weigh(candidates, pool, members)
        weights += pool_weights
        row_valid |= members & candidates.kept
        row_live |= live
        reports.append(report)
    metrics = _metrics(rows, rollout, objective, scored, row_valid, weights, reports)
    row_weight = _row_weights(rows, row_valid, objective)
    return AdvantageResult(weights, row_valid, row_live, row_weight, tuple(reports), metrics)


def _keys(rows: RowTable, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rollout, parent), int[R] each: rows share a number iff they belong to one rollout; -1 is no parent."""
    if rows.parent is None and objective.reads_parents:
        raise ValueError(f"objective {objective.name!r} compares attempts with their drafts: the rows need `parent`")
    parent = np.full(len(rows.role), -1) if rows.parent is None else rows.parent
    if not len(rows.role):
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    pairs = np.stack([np.tile(rows.prompt, 2), np.concatenate([rows.rollout, parent])], axis=1)
    rollout, parent_key = np.split(np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1), 2)
    return rollout, np.where(parent < 0, -1, parent_key)


def _scored(rows: RowTable, rollout: np.ndarray) -> np.ndarray:
    """bool[R]: real rows of rollouts that have a finite reward in every one of their rows."""
    failed = rows.row_valid & ~(rows.reward_valid & np.isfinite(rows.reward))
    return rows.row_valid & ~np.isin(rollout, rollout[failed])


def _overlong_penalty(rows: RowTable, rollout: np.ndarray, objective: Objective) -> np.ndarray:
    """float64[R] in [-1, 0], from the longest row of a rollout: 0 up to the buffer, then linear; -1 where truncated."""
    if rows.length is None:
        raise ValueError(f"objective {objective.name!r} penalises long rollouts: the rows need `length`")
    assert objective.response_length is not None
    assert objective.overlong_buffer is not None
    longest = np.zeros(rollout.max(initial=-1) + 1)
    np.maximum.at(longest, rollout, np.where(rows.row_valid, rows.length, 0))
    start = objective.response_length - objective.overlong_buffer
    penalty = np.clip((start - longest[rollout]) / objective.overlong_buffer, -1.0, 0.0)
    return np.where(np.isin(rollout, rollout[rows.row_valid & rows.truncated]), -1.0, penalty)


def _row_weights(rows: RowTable, row_valid: np.ndarray, objective: Objective) -> np.ndarray:
    """float32[R]: 1, or (`per_prompt_equal`) the mean number of a term's rows per prompt over that of the prompt."""
    weights = np.ones(len(rows.role), dtype=np.float32)
    if not objective.per_prompt_equal:
        return weights
    for term in objective.terms:
        of_term = row_valid & np.isin(rows.role, term.roles)
        _, prompt, count = np.unique(rows.prompt[of_term], return_inverse=True, return_counts=True)
        if len(count):
            weights[of_term] = count.mean() / count[prompt.reshape(-1)]
    return weights


def _metrics(
    rows: RowTable,
    rollout: np.ndarray,
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
        judged_rows = np.flatnonzero(of_role & scored)
        if len(judged_rows):
            first = np.unique(rollout[judged_rows], return_index=True)[1]
            metrics[f"pool/reward_{name}_mean"] = _mean(rows.reward[judged_rows[first]])
        if (of_role & row_valid).any():
            metrics[f"pool/weight_abs_{name}_mean"] = _mean(np.abs(weights[of_role & row_valid]))
    return metrics


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else 0.0
