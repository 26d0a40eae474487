"""What a term leaves out and what multiplies the rest: token filters, and weights for how the rows were sampled.

rows with log-probabilities of several passes → **which tokens are trained, and by how much** → loss

All of it is constant: no gradient flows through a filter or a weight. The mismatch of sampler and trainer is measured
in the *sampling* context; under the training context it would be the inverse of what feedback changed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ditto_jax.objective import Mismatch, Term
from ditto_jax.update.loss_rows import LossRows
from ditto_jax.update.token_losses import LOG_RATIO_LIMIT


class Multipliers(NamedTuple):
    """weight: float[R, T], the product of all. mismatch, cross: float[R, T], its parts, None where the term has no such
    part. `cross` is 1 on rows that are trained in their sampling context.
    """

    weight: jax.Array
    mismatch: jax.Array | None
    cross: jax.Array | None


FILTERS = ("neg_floor", "token_floor", "drop_cross_negative", "skip_first")


def filters(rows: LossRows, term: Term) -> dict[str, jax.Array]:
    """Returns bool[R, T] by name for every filter that the term sets: the tokens that it leaves out.

    Weights count as negative only where the term uses them. Values at masked positions mean nothing.
    """
    found: dict[str, jax.Array] = {}
    cross = rows.cross[:, None]
    negative_cross = cross & (rows.weights < 0.0)[:, None]
    if term.uses_rewards and term.neg_floor is not None:
        found["neg_floor"] = negative_cross & (rows.lp_anchor < term.neg_floor)
    if term.token_floor is not None:
        found["token_floor"] = cross & (rows.lp_anchor < term.token_floor)
    if term.uses_rewards and term.drop_cross_negative:
        found["drop_cross_negative"] = jnp.broadcast_to(negative_cross, rows.loss_mask.shape)
    if term.skip_first:
        found["skip_first"] = jnp.cumsum(rows.loss_mask, axis=1, dtype=jnp.int32) <= term.skip_first
    return found


def multipliers(rows: LossRows, term: Term, mask: jax.Array) -> Multipliers:
    """Returns what multiplies the token losses; finite at every position, whatever stands where `mask` is False.

    mask: bool[R, T], tokens of the rows that the term trains, before filters: the weight of a whole sequence is about
    all that was sampled.
    """
    weight = jnp.ones(mask.shape, dtype=rows.lp_anchor.dtype)
    mismatch = cross = None
    if rows.row_weight is not None:
        weight = jnp.where(mask, rows.row_weight.astype(weight.dtype)[:, None], 0.0)
    if term.mismatch is not None:
        assert rows.lp_sample is not None and rows.lp_behave is not None
        mismatch = _mismatch(_difference(rows.lp_sample, rows.lp_behave, mask), term.mismatch, mask)
        weight = weight * mismatch
    if term.cross_is != "none":
        assert rows.lp_sample is not None
        log_weight = _difference(rows.lp_anchor, rows.lp_sample, mask)
        if term.cross_is == "seq":
            log_weight = jnp.sum(log_weight, axis=1, keepdims=True)
        capped = jnp.minimum(_exp(log_weight), term.cross_cap)
        cross = jnp.where(rows.cross[:, None], jnp.broadcast_to(capped, mask.shape), 1.0)
        weight = weight * cross
    return jax.lax.stop_gradient(Multipliers(weight, mismatch, cross))


def _difference(left: jax.Array, right: jax.Array, mask: jax.Array) -> jax.Array:
    """float[R, T]: left - right, 0 where `mask` is False."""
    return jnp.where(mask, left, 0.0) - jnp.where(mask, right, 0.0)


def _exp(log_weight: jax.Array) -> jax.Array:
    return jnp.exp(jnp.clip(log_weight, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def _mismatch(d: jax.Array, setting: Mismatch, mask: jax.Array) -> jax.Array:
    """float[R, T]: the weight of one correction, from d = lp_sample - lp_behave."""
    low, high = setting.low, setting.high
    if setting.correction == "token_tis":
        return jnp.minimum(_exp(d), high)
    if setting.correction == "token_mask":
        return jnp.where((_exp(d) >= low) & (_exp(d) <= high), _exp(d), 0.0)
    total = jnp.sum(d, axis=1, keepdims=True)
    if setting.correction == "seq_tis":
        row = jnp.minimum(_exp(total), high)
    elif setting.correction == "geometric":
        count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.int32), 1).astype(d.dtype)
        mean = _exp(total / count)
        row = ((mean >= low) & (mean <= high)).astype(d.dtype)
    else:  # veto
        row = jnp.all(_exp(d) >= low, axis=1, keepdims=True).astype(d.dtype)
    return jnp.broadcast_to(row, d.shape)
