"""Rows for tests of the loss, and its value, gradient and sums as small jitted programs."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ditto_jax.loss import LossRows, denominators, objective_loss
from ditto_jax.objective import Objective, Pool, Term, TokenLoss
from ditto_jax.types import ViewRole

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
    return denominators(rows.loss_mask, rows.role, rows.row_valid, objective)


# Dozens of small programs: compiling them is what takes time here, running them is not.
_jit = functools.partial(jax.jit, static_argnums=2, compiler_options={"xla_backend_optimization_level": 0})


@_jit
def _value_and_gradient(lp, rows, objective, denominator):
    return jax.value_and_grad(lambda x: objective_loss(x, rows, objective, denominator)[0])(lp)


@_jit
def _sums(lp, rows, objective, denominator):
    return objective_loss(lp, rows, objective, denominator)[1]


def evaluate(lp, rows: LossRows, objective: Objective, denominator=None):
    """Returns (loss, gradient with respect to lp)."""
    denominator = counts(rows, objective) if denominator is None else denominator
    return _value_and_gradient(jnp.asarray(lp, jnp.float32), rows, objective, denominator)


def sums_of(lp, rows: LossRows, objective: Objective, denominator=None):
    """Returns the sums for metrics."""
    denominator = counts(rows, objective) if denominator is None else denominator
    return _sums(jnp.asarray(lp, jnp.float32), rows, objective, denominator)


def drafts_only(loss: TokenLoss, **settings) -> Objective:
    return Objective("mine", pools=(Pool((DRAFT,)),), terms=(Term(loss, (DRAFT,)),), **settings)


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
