"""Weights to a scalar: masks, denominators and aggregation of every term, differentiable in log-probabilities alone.

rows with weights, anchors and current log-probabilities → **one number and sums for metrics** → gradient

Pure jax over arrays of one micro-batch. Denominators are counted over the whole optimiser batch (`denominators`) and
passed in, so that micro-batches add up to the global value. Formulas are in `token_losses.py`, filters and weights in
`multipliers.py`, metrics in `loss_metrics.py`; no method is known here by its name. The ratio is a trust region around
the anchor (same training context, weights before the update), arXiv 2605.20506 equation 8.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from ditto_jax.objective import Kl, Objective, Term
from ditto_jax.update.loss_metrics import Sums, TermTokens, add_metrics, finish_metrics, role_sums, zero_metrics
from ditto_jax.update.loss_rows import LossRows, check_rows
from ditto_jax.update.multipliers import filters, multipliers
from ditto_jax.update.token_losses import TokenInputs, token_losses


def denominators(
    loss_mask: jax.Array,
    role: jax.Array,
    row_valid: jax.Array,
    objective: Objective,
    row_live: jax.Array | None = None,
    teacher_ok: jax.Array | None = None,
) -> jax.Array:
    """Returns float32[terms]: what each term's sum is divided by, at least 1.

    loss_mask: bool[R, T], role: int32[R], row_valid, row_live and teacher_ok: bool[R], all of the whole optimiser
    batch. "token_mean" counts tokens, the other aggregations count rows that have a token ("seq_const" times
    `response_length`). With `denominator` "shared" every term that uses rewards gets the count over the rows of all
    such terms; every other term has its own, over rows that a teacher has read if it needs one. With `counted_rows`
    "live" terms that use rewards leave out rows of dead pools. Filtered tokens count, for filters depend on the policy
    and denominators must not. Raises ValueError if a column is needed and None.
    """
    if objective.counted_rows == "live" and row_live is None:
        raise ValueError(f"objective {objective.name!r} counts live rows: pass row_live from advantages.assign")
    counted = []
    for term in objective.terms:
        rows = _trained_rows(term, role, row_valid, teacher_ok)
        if term.uses_rewards and objective.counted_rows == "live" and row_live is not None:
            rows = rows & row_live
        counted.append(rows)
    if objective.denominator == "shared":
        of_rewards = [rows for term, rows in zip(objective.terms, counted, strict=True) if term.uses_rewards]
        either = functools.reduce(operator.or_, of_rewards, jnp.zeros_like(row_valid))
        counted = [either if t.uses_rewards else rows for t, rows in zip(objective.terms, counted, strict=True)]
    counts = [
        _count(loss_mask & rows[:, None], term, objective) for term, rows in zip(objective.terms, counted, strict=True)
    ]
    return jnp.stack([jnp.maximum(count, 1.0) for count in counts])


def _aggregation(term: Term, objective: Objective) -> str:
    return term.aggregation or objective.aggregation


def _count(mask: jax.Array, term: Term, objective: Objective) -> jax.Array:
    aggregation = _aggregation(term, objective)
    if aggregation == "token_mean":
        return jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)
    rows = jnp.sum(jnp.any(mask, axis=1), dtype=jnp.int32).astype(jnp.float32)
    if aggregation != "seq_const":
        return rows
    if objective.response_length is None:
        raise ValueError(f"objective {objective.name!r}: aggregation 'seq_const' divides by response_length, not set")
    return rows * float(objective.response_length)


def _trained_rows(term: Term, role: jax.Array, row_valid: jax.Array, teacher_ok: jax.Array | None) -> jax.Array:
    """bool[R]: real rows with one of the term's roles, and with a teacher's log-probs if the term needs them."""
    rows = _rows_of_roles(term, role, row_valid)
    if not isinstance(term.loss, Kl):
        return rows
    if teacher_ok is None:
        raise ValueError(f"the {term.loss.kind} term needs teacher_ok: which rows a teacher has read")
    return rows & teacher_ok


def _rows_of_roles(term: Term, role: jax.Array, row_valid: jax.Array) -> jax.Array:
    matches = jnp.stack([role == int(wanted) for wanted in term.roles])
    return jnp.any(matches, axis=0) & row_valid


def objective_loss(
    lp: jax.Array,
    rows: LossRows,
    objective: Objective,
    denominators: jax.Array,
    student_lp: jax.Array | None = None,
    vocabulary: int | None = None,
) -> tuple[jax.Array, Sums]:
    """Returns (this micro-batch's part of the loss to minimise, sums for `add_metrics`).

    lp: float32[R, T], log-probabilities under theta and the training context. student_lp: float32[R, T, K], the same at
    the teacher's candidate ids, normalised over the whole vocabulary; None where no term has candidates. Nothing else
    has a gradient. denominators: float32[terms] from `denominators` over the whole optimiser batch. vocabulary: its
    size, for candidates that are all of it have no tail.

    Parts and sums of the micro-batches add up to those of the batch. Values at masked positions and in invalid rows may
    be anything, non-finite too. Raises ValueError for a wrong shape or dtype, or a missing column.
    """
    total = jnp.zeros((), dtype=lp.dtype)
    sums = zero_metrics()
    for term, found in each_term(lp, rows, objective, denominators, student_lp, vocabulary):
        total = total + jnp.sum(found.row_losses)
        sums = add_metrics(sums, role_sums(lp, rows, term, found))
    return total, sums


def each_term(
    lp: jax.Array,
    rows: LossRows,
    objective: Objective,
    denominators: jax.Array,
    student_lp: jax.Array | None = None,
    vocabulary: int | None = None,
) -> Iterator[tuple[Term, TermTokens]]:
    """Yields every term with what it makes of each token and row; arguments and errors are those of `objective_loss`,
    whose value is the sum of all `row_losses`.
    """
    check_rows(lp, rows, objective, student_lp)
    rows = jax.lax.stop_gradient(rows)
    for index, term in enumerate(objective.terms):
        trained = _trained_rows(term, rows.role, rows.row_valid, rows.teacher_ok)
        mask = rows.loss_mask & trained[:, None]
        removed = filters(rows, term)
        kept = functools.reduce(operator.and_, (~filtered for filtered in removed.values()), mask)
        tokens = token_losses(_safe_inputs(lp, rows, kept, student_lp, term), term.loss, vocabulary)
        weights = multipliers(rows, term, mask)
        weighted = jnp.where(kept, tokens.loss * weights.weight.astype(lp.dtype), 0.0)
        row_losses = _row_losses(weighted, mask, _aggregation(term, objective))
        row_losses = term.coef * row_losses / denominators[index].astype(lp.dtype)
        unread = None
        if isinstance(term.loss, Kl):
            unread = _rows_of_roles(term, rows.role, rows.row_valid) & ~trained & jnp.any(rows.loss_mask, axis=1)
        yield term, TermTokens(mask, kept, removed, tokens, weights, weighted, row_losses, unread)


def token_parts(found: TermTokens, term: Term, objective: Objective, denominator: jax.Array) -> jax.Array:
    """Returns float[R, T]: what each token adds to the loss; but for rounding they add up to `row_losses`."""
    parts = found.weighted
    if _aggregation(term, objective) == "seq_mean":
        parts = parts / jnp.maximum(jnp.sum(found.mask, axis=1, keepdims=True, dtype=jnp.int32), 1)
    return term.coef * parts / denominator


def _safe_inputs(
    lp: jax.Array, rows: LossRows, kept: jax.Array, student_lp: jax.Array | None, term: Term
) -> TokenInputs:
    """The columns that the formula reads, constants where nothing is trained, in the precision of `lp`.

    Replaced before any arithmetic: a select after it alone would let 0 * inf into the gradient.
    """

    def safe(array: jax.Array | None, fill: float = 0.0) -> jax.Array | None:
        if array is None:
            return None
        where = kept.reshape(*kept.shape, *(1,) * (array.ndim - 2))
        return jnp.where(where, array.astype(lp.dtype), fill)

    inputs = TokenInputs(
        lp=jnp.where(kept, lp, 0.0),
        lp_anchor=jnp.where(kept, rows.lp_anchor.astype(lp.dtype), 0.0),
        weights=jnp.where(kept, rows.weights.astype(lp.dtype)[:, None], 0.0),
        kept=kept,
        lp_ref=safe(rows.lp_ref),
    )
    if not isinstance(term.loss, Kl):
        return inputs
    unlikely = -20.0  # any log-prob whose candidates leave a tail
    return inputs._replace(teacher_lp=safe(rows.teacher_lp, unlikely), student_lp=safe(student_lp, unlikely))


def _row_losses(loss: jax.Array, mask: jax.Array, aggregation: str) -> jax.Array:
    """float[R]: what each row adds to the numerator."""
    row_sums = jnp.sum(loss, axis=1)
    if aggregation == "seq_mean":
        return row_sums / jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1).astype(loss.dtype)
    return row_sums


__all__ = [
    "LossRows",
    "Sums",
    "add_metrics",
    "denominators",
    "each_term",
    "finish_metrics",
    "objective_loss",
    "token_parts",
    "zero_metrics",
]
