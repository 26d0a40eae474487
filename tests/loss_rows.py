"""Rows for tests of the loss, and its value, gradient and sums as small jitted programs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ditto_jax.objective import (
    Cispo,
    Kl,
    KlRef,
    Mismatch,
    Nll,
    Objective,
    PgClip,
    Pool,
    Reinforce,
    Shaped,
    Term,
    TokenLoss,
)
from ditto_jax.types import ViewRole
from ditto_jax.update.loss import LossRows, denominators, objective_loss

DRAFT, PLAIN, HINTED = ViewRole.DRAFT, ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB
NOW = np.log(np.array([[0.5, 0.2, 0.4], [0.6, 0.1, 0.9]], np.float32))
ANCHOR = np.log(np.array([[0.4, 0.25, 0.5], [0.3, 0.16, 0.9]], np.float32))
MASK = np.array([[1, 1, 1], [1, 1, 0]], bool)


@contextlib.contextmanager
def strict_arrays():
    """Makes implicit changes of dtype or rank errors inside the block."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def make_rows(
    anchor: Any = ANCHOR, mask: Any = MASK, weights: Any = (1.0, -0.5), role=None, cross=None, valid=None
) -> LossRows:
    n = len(anchor)
    return LossRows(
        lp_anchor=jnp.asarray(anchor, jnp.float32),
        loss_mask=jnp.asarray(mask, bool),
        weights=jnp.asarray(weights, jnp.float32),
        role=jnp.asarray([DRAFT] * n if role is None else role, jnp.int32),
        cross=jnp.zeros(n, bool) if cross is None else jnp.asarray(cross, bool),
        row_valid=jnp.ones(n, bool) if valid is None else jnp.asarray(valid, bool),
    )


def take(rows: LossRows, index) -> LossRows:
    """Returns the rows of `index`; columns that nobody filled stay None."""
    return jax.tree.map(lambda array: array[index], rows)


def counts(rows: LossRows, objective: Objective) -> jax.Array:
    return denominators(rows.loss_mask, rows.role, rows.row_valid, objective, rows.row_live, rows.teacher_ok)


# Dozens of small programs: compiling them is what takes time here, running them is not.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.partial(_jit, static_argnums=(3, 5))
def _value_and_gradients(lp, student_lp, rows, objective, denominator, vocabulary):
    def value(lp, student_lp):
        return objective_loss(lp, rows, objective, denominator, student_lp, vocabulary)[0]

    return jax.value_and_grad(value, argnums=(0, 1))(lp, student_lp)


@functools.partial(_jit, static_argnums=3)
def _sums(lp, student_lp, rows, objective, denominator):
    return objective_loss(lp, rows, objective, denominator, student_lp)[1]


def evaluate(lp, rows: LossRows, objective: Objective, denominator=None):
    """Returns (loss, gradient with respect to lp)."""
    loss, (gradient, _) = evaluate_both(lp, None, rows, objective, denominator)
    return loss, gradient


def evaluate_both(lp, student_lp, rows: LossRows, objective: Objective, denominator=None, vocabulary=None):
    """Returns (loss, (gradient with respect to lp, the same for student_lp))."""
    denominator = counts(rows, objective) if denominator is None else denominator
    student_lp = None if student_lp is None else jnp.asarray(student_lp, jnp.float32)
    lp = jnp.asarray(lp, jnp.float32)
    return _value_and_gradients(
        lp, student_lp, rows, objective=objective, denominator=denominator, vocabulary=vocabulary
    )


def sums_of(lp, rows: LossRows, objective: Objective, denominator=None, student_lp=None):
    """Returns the sums for metrics."""
    denominator = counts(rows, objective) if denominator is None else denominator
    student_lp = None if student_lp is None else jnp.asarray(student_lp, jnp.float32)
    return _sums(jnp.asarray(lp, jnp.float32), student_lp, rows, objective, denominator)


def drafts_only(loss: TokenLoss, term: Mapping[str, Any] | None = None, **settings) -> Objective:
    """Returns the objective of one term on drafts; term: its other fields."""
    terms = (Term(loss, (DRAFT,), **(term or {})),)
    return Objective("mine", pools=(Pool((DRAFT,)),) if terms[0].uses_rewards else (), terms=terms, **settings)


def on_plain(loss: TokenLoss, **term) -> Objective:
    """Returns the objective of one term on refinements under the plain prompt."""
    terms = (Term(loss, (PLAIN,), **term),)
    return Objective("mine", pools=(Pool((PLAIN,)),) if terms[0].uses_rewards else (), terms=terms)


def random_rows(seed: int, n: int = 12, t: int = 7) -> tuple[np.ndarray, LossRows]:
    """Returns (lp, rows) of the roles of DITTO with clipped, floored, masked and invalid tokens among them."""
    rng = np.random.default_rng(seed)
    anchor = -rng.exponential(4.0, (n, t)).astype(np.float32)
    role = rng.choice([DRAFT, PLAIN, HINTED], n)
    lp = (anchor + rng.normal(0, 0.4, (n, t))).astype(np.float32)
    rows = make_rows(
        anchor=anchor,
        mask=rng.random((n, t)) < 0.7,
        weights=rng.normal(0, 1, n),
        role=role,
        cross=role == PLAIN,
        valid=rng.random(n) < 0.85,
    )
    return lp, rows


def full_rows(seed: int, n: int = 12, t: int = 7, k: int = 4) -> tuple[np.ndarray, np.ndarray, LossRows]:
    """Returns (lp, student_lp, rows) like `random_rows`, with every optional column filled; candidates leave a tail."""
    lp, rows = random_rows(seed, n, t)
    rng = np.random.default_rng([seed, 1])

    def near(array, spread):
        return jnp.asarray(np.asarray(array) + rng.normal(0, spread, np.shape(array)), jnp.float32)

    def distribution():
        return np.log(rng.dirichlet(np.full(k + 2, 2.0), (n, t))[..., :k]).astype(np.float32)

    sample = near(rows.lp_anchor, 0.5)
    rows = rows._replace(
        row_live=jnp.asarray(rng.random(n) < 0.8) & rows.row_valid,
        row_weight=jnp.asarray(rng.uniform(0.5, 1.5, n), jnp.float32),
        lp_sample=jnp.where(rows.cross[:, None], sample, rows.lp_anchor),
        lp_behave=near(sample, 0.3),
        lp_ref=near(rows.lp_anchor, 0.5),
        teacher_lp=jnp.asarray(distribution()),
        teacher_ok=jnp.asarray(rng.random(n) < 0.8),
    )
    return lp, distribution(), rows


# One term of every kind, with all filters and weights in use somewhere.
EVERYTHING = Objective(
    "everything",
    pools=(Pool((DRAFT,)), Pool((PLAIN,)), Pool((HINTED,))),
    terms=(
        Term(PgClip(dual_clip=3.0), (DRAFT, HINTED), mismatch=Mismatch()),
        Term(PgClip(0.1, 0.1, ratio="seq"), (DRAFT, PLAIN), aggregation="seq_mean"),
        Term(PgClip(0.1, 0.1, ratio="seq_token"), (HINTED,), aggregation="seq_mean", skip_first=1),
        Term(Cispo(0.5, 0.5), (PLAIN,), cross_is="token", token_floor=-10.0),
        Term(Reinforce(), (PLAIN,), cross_is="seq", coef=0.1, drop_cross_negative=True),
        Term(Shaped(), (PLAIN,), mismatch=Mismatch("geometric", 0.7, 1.3)),
        Term(Shaped(of="rho"), (HINTED,), mismatch=Mismatch("veto", 0.5)),
        Term(Nll(), (DRAFT, PLAIN), coef=0.5, mismatch=Mismatch("seq_tis")),
        Term(Kl(0.0), (DRAFT,), aggregation="seq_sum"),
        Term(Kl(0.5, tail=False), (DRAFT,), mismatch=Mismatch("token_mask", 0.8, 1.2)),
        Term(Kl(1.0), (DRAFT, PLAIN), skip_first=2),
        Term(KlRef("k2", with_ratio=True), (DRAFT,), coef=0.1),
        Term(KlRef("k3"), (HINTED,), coef=0.1),
    ),
    denominator="term",
    counted_rows="live",
)
