"""Weights to a scalar: token losses, masks and aggregation, differentiable in the current log-probabilities alone.

rows with weights, anchors and current log-probabilities → **one number and sums for metrics** → gradient

Pure jax over arrays of one micro-batch. Denominators are counted over the whole optimiser batch (`denominators`) and
passed in, so that micro-batches add up to the global value. The sampler's log-probabilities are no input: the ratio is
a trust region around the anchor (same training context, weights before the update), arXiv 2605.20506 equation 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ditto_jax.objective import Objective, PgClip, Reinforce, Term, TokenLoss
from ditto_jax.types import ViewRole

LOG_RATIO_LIMIT = 20.0  # exp(20) is finite in float32 and beyond every useful trust region

Sums = dict[str, jax.Array]
_SUMS = (
    "loss",
    "rows",
    "tokens",
    "tokens_kept",
    "ratio",
    "log_ratio",
    "clip_low",
    "clip_high",
    "clip_dual",
    "neg_floor",
    "log_ratio_abs_max",
    "negative_cross_nll_max",
)


class LossRows(NamedTuple):
    """Constants of R rows with T positions; nothing here receives a gradient.

    lp_anchor: float32[R, T], log-probability under the training context with the weights before the update.
    loss_mask: bool[R, T], True iff the policy sampled the token.
    weights: float32[R], from `advantages.assign`.
    role: int32[R] of ViewRole.
    cross: bool[R], True iff the training context is not the sampling context.
    row_valid: bool[R], `AdvantageResult.row_valid`. row_live: bool[R], rows of live pools; None: as row_valid.
    row_weight: float32[R], static weight of the row; None: 1.
    lp_behave, lp_sample: float32[R, T], of the sampler and of the trainer in the *sampling* context.
    lp_ref: float32[R, T], of the initial policy in the training context.
    teacher_lp: float32[R, T, K], the teacher's log-probabilities of the candidate ids. teacher_ok: bool[R], whether
        they mean anything. Columns that no term of the objective reads may be None.
    """

    lp_anchor: jax.Array
    loss_mask: jax.Array
    weights: jax.Array
    role: jax.Array
    cross: jax.Array
    row_valid: jax.Array
    row_live: jax.Array | None = None
    row_weight: jax.Array | None = None
    lp_behave: jax.Array | None = None
    lp_sample: jax.Array | None = None
    lp_ref: jax.Array | None = None
    teacher_lp: jax.Array | None = None
    teacher_ok: jax.Array | None = None


class TokenLosses(NamedTuple):
    """Losses and what became of them.

    loss: float[R, T]. ratio: float[R, T], exp(lp - lp_anchor). The rest are bool[R, T]: which limit replaced the loss.
    """

    loss: jax.Array
    ratio: jax.Array
    clipped_low: jax.Array
    clipped_high: jax.Array
    clipped_dual: jax.Array


def token_losses(lp: jax.Array, lp_anchor: jax.Array, weights: jax.Array, kind: TokenLoss) -> TokenLosses:
    """Returns the unaggregated losses of one kind of term. All arrays are float[R, T]; only `lp` has a gradient."""
    lp_anchor, weights = jax.lax.stop_gradient((lp_anchor, weights))
    ratio = jnp.exp(jnp.clip(lp - lp_anchor, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    return TOKEN_LOSSES[type(kind)](lp, ratio, weights, kind)


def _pg_clip(lp: jax.Array, ratio: jax.Array, weights: jax.Array, kind: PgClip) -> TokenLosses:
    low, high = 1.0 - kind.epsilon, 1.0 + kind.epsilon_high
    clipped_high = (weights > 0.0) & (ratio > high)
    clipped_low = (weights < 0.0) & (ratio < low)
    loss = -ratio * weights
    loss = jnp.where(clipped_high, -high * weights if math.isfinite(high) else loss, loss)
    loss = jnp.where(clipped_low, -low * weights if math.isfinite(low) else loss, loss)
    clipped_dual = jnp.zeros_like(clipped_low)
    if kind.dual_clip is not None:
        cap = -kind.dual_clip * weights
        clipped_dual = (weights < 0.0) & (loss > cap)
        loss = jnp.where(clipped_dual, cap, loss)
    return TokenLosses(loss, ratio, clipped_low, clipped_high, clipped_dual)


def _reinforce(lp: jax.Array, ratio: jax.Array, weights: jax.Array, kind: Reinforce) -> TokenLosses:
    never = jnp.zeros(lp.shape, dtype=bool)
    return TokenLosses(-weights * lp, ratio, never, never, never)


TOKEN_LOSSES: Mapping[type, Callable[[jax.Array, jax.Array, jax.Array, Any], TokenLosses]] = {
    PgClip: _pg_clip,
    Reinforce: _reinforce,
}


def denominators(loss_mask: jax.Array, role: jax.Array, row_valid: jax.Array, objective: Objective) -> jax.Array:
    """Returns float32[terms]: what each term's sum is divided by, at least 1.

    loss_mask: bool[R, T], role: int32[R], row_valid: bool[R], all of the whole optimiser batch. "token_mean" counts
    tokens, the other aggregations count rows that have a token ("seq_const" times `response_length`). With
    `denominator` "shared" every term gets the count over all terms' rows. Rows of dead pools count; tokens under
    `neg_floor` count.
    """
    per_term = [_trained_rows(term.roles, role, row_valid) for term in objective.terms]
    if objective.denominator == "shared":
        per_term = [jnp.any(jnp.stack(per_term), axis=0)] * len(per_term)
    counts = [_count(loss_mask & rows[:, None], objective) for rows in per_term]
    return jnp.stack([jnp.maximum(count, 1.0) for count in counts])


def _count(mask: jax.Array, objective: Objective) -> jax.Array:
    if objective.aggregation == "token_mean":
        return jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)
    rows = jnp.sum(jnp.any(mask, axis=1), dtype=jnp.int32).astype(jnp.float32)
    return rows * float(objective.response_length or 1)


def _trained_rows(roles: tuple[ViewRole, ...], role: jax.Array, row_valid: jax.Array) -> jax.Array:
    """bool[R]: real rows with one of `roles`."""
    matches = jnp.stack([role == int(wanted) for wanted in roles])
    return jnp.any(matches, axis=0) & row_valid


def objective_loss(
    lp: jax.Array, rows: LossRows, objective: Objective, denominators: jax.Array
) -> tuple[jax.Array, Sums]:
    """Returns (this micro-batch's part of the loss to minimise, sums for `add_metrics`).

    lp: float32[R, T], log-probabilities under theta and the training context; the only input with a gradient.
    denominators: float32[terms] from `denominators` over the whole optimiser batch.

    Parts and sums of the micro-batches add up to those of the batch. Values at masked positions and in invalid rows may
    be anything, non-finite too. Raises ValueError for a wrong shape or dtype.
    """
    _check_arrays(lp, rows)
    rows = jax.lax.stop_gradient(rows)
    total = jnp.zeros((), dtype=lp.dtype)
    sums = zero_metrics()
    for index, term in enumerate(objective.terms):
        mask = rows.loss_mask & _trained_rows(term.roles, rows.role, rows.row_valid)[:, None]
        removed = _below_floor(rows, term) & mask
        kept = mask & ~removed
        # Replaced before any arithmetic: a select after it alone would let 0 * inf into the gradient.
        safe_lp = jnp.where(kept, lp, 0.0)
        safe_anchor = jnp.where(kept, rows.lp_anchor.astype(lp.dtype), 0.0)
        safe_weights = jnp.where(kept, rows.weights.astype(lp.dtype)[:, None], 0.0)
        tokens = token_losses(safe_lp, safe_anchor, safe_weights, term.loss)
        row_losses = _row_losses(jnp.where(kept, tokens.loss, 0.0), mask, objective)
        row_losses = term.coef * row_losses / denominators[index].astype(lp.dtype)
        total = total + jnp.sum(row_losses)
        sums = add_metrics(sums, _term_sums(lp, rows, tokens, row_losses, mask, removed))
    return total, sums


def _check_arrays(lp: jax.Array, rows: LossRows) -> None:
    if lp.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"lp has dtype {lp.dtype}; ratios need float32: cast before the log-softmax")
    per_token = ("lp_anchor", "loss_mask", "lp_behave", "lp_sample", "lp_ref")
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(per_token, lp.shape)
    if rows.teacher_lp is not None:
        expected["teacher_lp"] = (*lp.shape, rows.teacher_lp.shape[-1])
    for name, array in rows._asdict().items():
        if array is None:
            continue
        wanted = expected.get(name, lp.shape[:1])
        if array.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")


def _below_floor(rows: LossRows, term: Term) -> jax.Array:
    """bool[R, T]: tokens that a negative weight may not push further down."""
    if term.neg_floor is None:
        return jnp.zeros(rows.loss_mask.shape, dtype=bool)
    return (rows.cross & (rows.weights < 0.0))[:, None] & (rows.lp_anchor < term.neg_floor)


def _row_losses(loss: jax.Array, mask: jax.Array, objective: Objective) -> jax.Array:
    """float[R]: what each row adds to the numerator."""
    row_sums = jnp.sum(loss, axis=1)
    if objective.aggregation == "seq_mean":
        return row_sums / jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1).astype(loss.dtype)
    return row_sums


def _term_sums(
    lp: jax.Array, rows: LossRows, tokens: TokenLosses, row_losses: jax.Array, mask: jax.Array, removed: jax.Array
) -> Sums:
    kept = mask & ~removed
    log_ratio = jnp.where(kept, lp - rows.lp_anchor.astype(lp.dtype), 0.0)
    negative_cross = mask & (rows.cross & (rows.weights < 0.0))[:, None]
    per_row = {
        "loss": row_losses,
        "rows": jnp.any(mask, axis=1),
        "tokens": jnp.sum(mask, axis=1),
        "tokens_kept": jnp.sum(kept, axis=1),
        "ratio": jnp.sum(jnp.where(kept, tokens.ratio, 0.0), axis=1),
        "log_ratio": jnp.sum(log_ratio, axis=1),
        "clip_low": jnp.sum(tokens.clipped_low & kept, axis=1),
        "clip_high": jnp.sum(tokens.clipped_high & kept, axis=1),
        "clip_dual": jnp.sum(tokens.clipped_dual & kept, axis=1),
        "neg_floor": jnp.sum(removed, axis=1),
        "log_ratio_abs_max": jnp.max(jnp.abs(log_ratio), axis=1, initial=0.0),
        "negative_cross_nll_max": jnp.max(jnp.where(negative_cross, -lp, 0.0), axis=1, initial=0.0),
    }
    stacked = jnp.stack([per_row[name].astype(jnp.float32) for name in _SUMS])[:, None, :]
    is_role = (rows.role[None, :] == jnp.arange(len(ViewRole), dtype=rows.role.dtype)[:, None])[None]
    by_role = jnp.where(is_role, stacked, 0.0)  # [sums, roles, R]
    added, largest = jnp.sum(by_role, axis=2), jnp.max(by_role, axis=2, initial=0.0)
    sums = {name: (largest if name.endswith("_max") else added)[i] for i, name in enumerate(_SUMS)}
    return jax.lax.stop_gradient(sums)


def zero_metrics() -> Sums:
    """Returns the sums of no row, the identity of `add_metrics`: float32[roles] by name."""
    return {name: jnp.zeros(len(ViewRole), dtype=jnp.float32) for name in _SUMS}


def add_metrics(left: Sums, right: Sums) -> Sums:
    """Returns the sums of two micro-batches together: entries named `..._max` by maximum, all others by addition."""
    return {
        name: jnp.maximum(left[name], right[name]) if name.endswith("_max") else left[name] + right[name]
        for name in _SUMS
    }


def finish_metrics(sums: Mapping[str, Any]) -> dict[str, float]:
    """Returns means, fractions, counts and maxima by `policy/what_role`, on the host; roles without a token are absent.

    A token counts once for every term that trains it. Ratios and clip fractions are over tokens that `neg_floor` left.
    """
    host = {name: np.asarray(value, dtype=np.float64) for name, value in sums.items()}
    metrics: dict[str, float] = {}
    for role in ViewRole:
        of_role = {name: float(values[role]) for name, values in host.items()}
        if not of_role["tokens"]:
            continue
        suffix, kept = role.name.lower(), max(of_role["tokens_kept"], 1.0)
        metrics[f"policy/loss_{suffix}"] = of_role["loss"]
        metrics[f"policy/rows_{suffix}_count"] = of_role["rows"]
        metrics[f"policy/tokens_{suffix}_count"] = of_role["tokens"]
        metrics[f"policy/ratio_{suffix}_mean"] = of_role["ratio"] / kept
        metrics[f"policy/log_ratio_{suffix}_mean"] = of_role["log_ratio"] / kept
        metrics[f"policy/log_ratio_abs_{suffix}_max"] = of_role["log_ratio_abs_max"]
        for name in ("clip_low", "clip_high", "clip_dual"):
            metrics[f"policy/{name}_{suffix}_fraction"] = of_role[name] / kept
        metrics[f"policy/neg_floor_tokens_{suffix}_count"] = of_role["neg_floor"]
        metrics[f"policy/negative_cross_nll_{suffix}_max"] = of_role["negative_cross_nll_max"]
    return metrics
