"""What the loss reads: the rows of one micro-batch, and the check that an objective finds every column it needs.

rows with weights and log-probabilities of several passes → **one table of constants** → loss

Which columns exist follows from the objective (`Objective.passes`); those that no term reads may be None. Nothing is
computed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ditto_jax.objective import Kl, KlRef, Objective, role_names


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
    teacher_lp: float32[R, T, K], the teacher's log-probabilities of the candidate ids, or of the sampled token (K = 1)
        where the divergence is sampled. teacher_ok: bool[R], whether they mean anything.
    Columns that no term of the objective reads may be None.
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


def check_rows(lp: jax.Array, rows: LossRows, objective: Objective, student_lp: jax.Array | None) -> None:
    """Returns nothing; raises ValueError for a wrong shape or dtype, or a column that a term reads and nobody filled.

    A missing column is never taken for zeros: as a log-probability, 0 would mean certainty.
    """
    if lp.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"lp has dtype {lp.dtype}; ratios need float32: cast before the log-softmax")
    given = {**rows._asdict(), "student_lp": student_lp}
    for reader, column in _columns_read(objective):
        if given[column] is None:
            raise ValueError(f"objective {objective.name!r}: {reader} reads {column}, which is None; pass that column")
    per_token = ("lp_anchor", "loss_mask", "lp_behave", "lp_sample", "lp_ref")
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(per_token, lp.shape)
    if rows.teacher_lp is not None:
        expected |= dict.fromkeys(("teacher_lp", "student_lp"), (*lp.shape, rows.teacher_lp.shape[-1]))
    for name, array in given.items():
        wanted = expected.get(name, lp.shape[:1])
        if array is not None and array.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")


def _columns_read(objective: Objective) -> Iterator[tuple[str, str]]:
    """Yields (who reads it, name of the column) for every optional column."""
    for term in objective.terms:
        reader = f"the {term.loss.kind} term on {role_names(term.roles)}"
        if isinstance(term.loss, KlRef):
            yield reader, "lp_ref"
        if isinstance(term.loss, Kl):
            yield from ((reader, column) for column in ("teacher_lp", "teacher_ok"))
            if not term.loss.sampled:
                yield reader, "student_lp"
        if term.mismatch is not None or term.cross_is != "none":
            yield reader, "lp_sample"
        if term.mismatch is not None:
            yield reader, "lp_behave"
