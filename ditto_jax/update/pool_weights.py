"""One pool: rewards of its rows to their weights, A = (r - centre) / (max(std, std_floor) + eps).

candidates of a step → **instances of the pool, their statistics, a weight a row** → `advantages.assign`

In: rewards by row and who may count. Out: weights, live rows and a report. Works in float64 over segments, one an
instance of the pool (a prompt, the batch, or a draft with its attempts). Which rows stay in the loss is not decided
here.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from ditto_jax.objective import Pool
from ditto_jax.types import ViewRole

_ATTEMPTS = (ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB)


class Candidates(NamedTuple):
    """Arrays of one length R, one row a view.

    role, prompt: int. rollout: int >= 0, equal iff the rows belong to one rollout. parent: the `rollout` number of the
    draft that a row's rollout answers to, -1 for none. reward: float64. real: bool, False for padding. kept: bool, real
    rows that statistics and weights may use.
    """

    role: np.ndarray
    prompt: np.ndarray
    rollout: np.ndarray
    parent: np.ndarray
    reward: np.ndarray
    real: np.ndarray
    kept: np.ndarray


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


def weigh(rows: Candidates, pool: Pool, members: np.ndarray) -> tuple[np.ndarray, np.ndarray, PoolReport]:
    """Returns (weights float32[R], live bool[R], report); both arrays are 0 outside the kept rows of `members`.

    members: bool[R], the rows that get weights of this pool.
    """
    countable = np.isin(rows.role, pool.counted_roles)
    segment = _segments(rows, pool)
    size = int(segment.max(initial=-1)) + 1
    reward = _transformed(_credited(rows, pool), pool)
    counted = np.flatnonzero(_first_of_rollout(rows.rollout, countable & rows.kept))
    n, mean, std = _moments(segment[counted], reward[counted], size, pool)
    alone = (n == 1) & (pool.singleton == "raw")
    small = (n < pool.needed) & ~alone
    apart = _apart(segment[counted], reward[counted], size, pool.reward_tolerance)
    equal = ~small & ~alone & ~apart & pool.needs_range

    eligible = np.flatnonzero(members & rows.kept)
    where = segment[eligible]
    centre = np.where(alone[where], 0.0, _centre(rows, pool, reward, counted, eligible, n[where], mean[where]))
    scale = np.where(alone[where], 1.0 + pool.eps, std[where])
    row_live = ~small[where] & ~equal[where] & np.isfinite(centre)
    difference = np.where(row_live, reward[eligible] - centre, 0.0)
    limit = np.inf if pool.clip is None else pool.clip
    weights, is_live = np.zeros(len(reward), np.float32), np.zeros(len(reward), bool)
    weights[eligible] = np.clip(difference / np.where(row_live, scale, 1.0), -limit, limit)
    is_live[eligible] = row_live

    has_member = _counts(segment[members], size) > 0
    live = _counts(where[row_live], size) > 0
    sampled = _counts(segment[_first_of_rollout(rows.rollout, countable & rows.real)], size)
    lost = has_member & ~live & ~equal & (sampled >= pool.needed)
    count, n_live, n_equal, n_lost = (int(x.sum()) for x in (has_member, live, equal & has_member, lost))
    return weights, is_live, PoolReport(pool.roles, count, n_live, n_equal, count - n_live - n_equal - n_lost, n_lost)


def _segments(rows: Candidates, pool: Pool) -> np.ndarray:
    """int[R]: equal iff two rows are in one instance of the pool."""
    if pool.key == "batch":
        return np.zeros(len(rows.role), np.intp)
    if pool.key == "prompt":
        return np.unique(rows.prompt, return_inverse=True)[1].reshape(-1)
    return np.where(rows.parent < 0, rows.rollout, rows.parent)


def _credited(rows: Candidates, pool: Pool) -> np.ndarray:
    """float64[R]: rewards, those of drafts with a share of what the attempts that answer to them brought."""
    if pool.credit == 0.0:
        return rows.reward
    attempts = _first_of_rollout(rows.rollout, np.isin(rows.role, _ATTEMPTS) & rows.kept & (rows.parent >= 0))
    size = int(max(rows.rollout.max(initial=-1), rows.parent.max(initial=-1))) + 1
    own = np.zeros(size)
    own[rows.rollout] = rows.reward
    gained = rows.reward[attempts]
    if pool.credit_of == "gain":
        gained = np.maximum(gained - own[rows.parent[attempts]], 0.0)
    total = np.bincount(rows.parent[attempts], weights=gained, minlength=size)
    mean = total / np.maximum(_counts(rows.parent[attempts], size), 1)
    return rows.reward + pool.credit * mean[rows.rollout]


def _transformed(reward: np.ndarray, pool: Pool) -> np.ndarray:
    if pool.transform == "positive_part":
        return np.maximum(reward, 0.0)
    if pool.transform == "success":
        return (reward >= pool.success_threshold).astype(np.float64)
    return reward


def _first_of_rollout(rollout: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool[R]: the first row of every rollout, counting only the rows in `among`."""
    indices = np.flatnonzero(among)
    first = np.zeros(len(rollout), dtype=bool)
    first[indices[np.unique(rollout[indices], return_index=True)[1]]] = True
    return first


def _counts(where: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(where, minlength=size)


def _moments(where: np.ndarray, reward: np.ndarray, size: int, pool: Pool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (rollouts int[S], mean float64[S], what a difference is divided by float64[S]) of the S instances."""
    n = _counts(where, size)
    mean = np.bincount(where, weights=reward, minlength=size) / np.maximum(n, 1)
    if pool.scale == "none":
        return n, mean, np.ones(size)
    squares, members = np.bincount(where, weights=(reward - mean[where]) ** 2, minlength=size), n
    if pool.scale == "batch_std":
        everything = np.mean(reward) if len(reward) else 0.0
        squares, members = np.full(size, np.sum((reward - everything) ** 2)), np.full(size, len(reward))
    std = np.sqrt(squares / np.maximum(members - int(pool.unbiased), 1))
    return n, mean, np.maximum(std, pool.std_floor) + pool.eps


def _centre(
    rows: Candidates,
    pool: Pool,
    reward: np.ndarray,
    counted: np.ndarray,
    eligible: np.ndarray,
    n: np.ndarray,
    mean: np.ndarray,
) -> np.ndarray:
    """float64[E]: what each eligible row is compared with, NaN for nothing. n, mean: of its instance."""
    if pool.centre == "none":
        return np.zeros(len(eligible))
    if pool.centre == "mean":
        return np.where(n > 0, mean, np.nan)
    if pool.centre == "loo":
        is_member = np.isin(rows.rollout[eligible], rows.rollout[counted])
        others = np.where(is_member, n - 1, n)
        total = n * mean - np.where(is_member, reward[eligible], 0.0)
        return np.where(others > 0, total / np.maximum(others, 1), np.nan)
    drafts = np.flatnonzero((rows.role == ViewRole.DRAFT) & rows.kept)
    of_rollout = np.full(max(rows.rollout.max(initial=-1), rows.parent.max(initial=-1)) + 2, np.nan)
    of_rollout[rows.rollout[drafts]] = reward[drafts]
    return of_rollout[rows.parent[eligible]]  # no parent is -1: the last entry, which stays NaN


def _apart(where: np.ndarray, reward: np.ndarray, size: int, tolerance: float) -> np.ndarray:
    """bool[S]: max - min exceeds the tolerance by more than the rounding of float32 rewards can explain."""
    highest, lowest = np.full(size, -np.inf), np.full(size, np.inf)
    np.maximum.at(highest, where, reward)
    np.minimum.at(lowest, where, reward)
    occupied = np.isfinite(highest)
    spread = np.subtract(highest, lowest, out=np.zeros(size), where=occupied)
    largest = np.maximum(np.abs(highest), np.abs(lowest), out=np.zeros(size), where=occupied)
    return spread > tolerance + np.finfo(np.float32).eps * largest
