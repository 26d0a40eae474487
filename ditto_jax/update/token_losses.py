"""The formula of every kind of term: token losses before masks, multipliers and aggregation.

log-probabilities and weights of tokens → **one loss a token, and what the limits did** → aggregation

Gradients flow through the policy's own log-probabilities alone (`lp`, `student_lp`); everything else is a constant.
Inputs are finite at every token, also where nothing is trained: `loss.py` has replaced what was there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ditto_jax.objective import Cispo, Kl, KlRef, Nll, PgClip, Reinforce, Shaped, TokenLoss
from ditto_jax.update.divergence import TEACHER_LIMIT, divergence, renormalised, with_tail

LOG_RATIO_LIMIT = 20.0  # exp(20) is finite in float32 and beyond every useful trust region


class TokenInputs(NamedTuple):
    """What the formulas read, float[R, T] unless said otherwise; only `lp` and `student_lp` have a gradient.

    weights: W, of the row. kept: bool[R, T], tokens that are trained; a sequence's ratio is a mean over them. lp_ref,
    teacher_lp float[R, T, K] and student_lp float[R, T, K] may be None where the kind does not read them.
    """

    lp: jax.Array
    lp_anchor: jax.Array
    weights: jax.Array
    kept: jax.Array
    lp_ref: jax.Array | None = None
    teacher_lp: jax.Array | None = None
    student_lp: jax.Array | None = None


class Clips(NamedTuple):
    """bool[R, T] each: which limit replaced the token's loss, or the weight of its gradient (`Cispo`)."""

    low: jax.Array
    high: jax.Array
    dual: jax.Array


class TeacherGap(NamedTuple):
    """Policy S against teacher T, float[R, T] each, in nats.

    value: the divergence, before any weight; of a sampled one lp_S - lp_T. excess: lp_T - lp_S of the sampled token, or
    its mean under S over the candidates. excess_max: the largest of it over the candidates.
    """

    value: jax.Array
    excess: jax.Array
    excess_max: jax.Array


class TokenLosses(NamedTuple):
    """loss: float[R, T], minimised. ratio: float[R, T], the one that the loss has, else exp(lp - lp_anchor).

    clips: None for kinds without limits. teacher: None for kinds without a teacher. reference: float[R, T], the
    estimate of the divergence from the initial policy; None for kinds without it.
    """

    loss: jax.Array
    ratio: jax.Array
    clips: Clips | None = None
    teacher: TeacherGap | None = None
    reference: jax.Array | None = None


def token_losses(inputs: TokenInputs, kind: TokenLoss, vocabulary: int | None = None) -> TokenLosses:
    """Returns the unaggregated losses of one kind of term.

    vocabulary: its size; where every token is a candidate there is no tail. None: candidates are fewer.
    """
    constants = jax.lax.stop_gradient(inputs)
    inputs = constants._replace(lp=inputs.lp, student_lp=inputs.student_lp)
    ratio = jnp.exp(_limited(inputs.lp - inputs.lp_anchor))
    if isinstance(kind, Kl):
        return _kl(inputs, ratio, kind, vocabulary)
    return _FORMULAS[type(kind)](inputs, ratio, kind)


def _limited(log_ratio: jax.Array) -> jax.Array:
    return jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _pg_clip(x: TokenInputs, ratio: jax.Array, kind: PgClip) -> TokenLosses:
    if kind.ratio != "token":
        ratio = _sequence_ratio(x, own_gradient=kind.ratio == "seq_token")
    low, high = 1.0 - kind.epsilon, 1.0 + kind.epsilon_high
    clipped_high = (x.weights > 0.0) & (ratio > high)
    clipped_low = (x.weights < 0.0) & (ratio < low)
    loss = -ratio * x.weights
    loss = jnp.where(clipped_high, -high * x.weights if math.isfinite(high) else loss, loss)
    loss = jnp.where(clipped_low, -low * x.weights if math.isfinite(low) else loss, loss)
    clipped_dual = jnp.zeros_like(clipped_low)
    if kind.dual_clip is not None:
        cap = -kind.dual_clip * x.weights
        clipped_dual = (x.weights < 0.0) & (loss > cap)
        loss = jnp.where(clipped_dual, cap, loss)
    return TokenLosses(loss, ratio, Clips(clipped_low, clipped_high, clipped_dual))


def _sequence_ratio(x: TokenInputs, own_gradient: bool) -> jax.Array:
    """float[R, T]: exp of the row's mean log-ratio at each of its tokens (arXiv 2507.18071 equations 7 and 14)."""
    count = jnp.maximum(jnp.sum(x.kept, axis=1, keepdims=True, dtype=jnp.int32), 1).astype(x.lp.dtype)
    log_ratio = jnp.where(x.kept, _limited(x.lp - x.lp_anchor), 0.0)
    ratio = jnp.broadcast_to(jnp.exp(jnp.sum(log_ratio, axis=1, keepdims=True) / count), x.lp.shape)
    if own_gradient:
        return jax.lax.stop_gradient(ratio) * jnp.exp(x.lp - jax.lax.stop_gradient(x.lp))
    return ratio


def _cispo(x: TokenInputs, ratio: jax.Array, kind: Cispo) -> TokenLosses:
    low, high = 1.0 - kind.epsilon, 1.0 + kind.epsilon_high
    loss = -jax.lax.stop_gradient(jnp.clip(ratio, low, high)) * x.weights * x.lp
    return TokenLosses(loss, ratio, Clips(ratio < low, ratio > high, jnp.zeros(ratio.shape, dtype=bool)))


def _reinforce(x: TokenInputs, ratio: jax.Array, kind: Reinforce) -> TokenLosses:
    return TokenLosses(-x.weights * x.lp, ratio)


def _shaped(x: TokenInputs, ratio: jax.Array, kind: Shaped) -> TokenLosses:
    z = jnp.exp(x.lp) if kind.of == "p" else ratio
    return TokenLosses(-x.weights * z / (z + kind.gamma), ratio)


def _nll(x: TokenInputs, ratio: jax.Array, kind: Nll) -> TokenLosses:
    return TokenLosses(-x.lp, ratio)


def _kl(x: TokenInputs, ratio: jax.Array, kind: Kl, vocabulary: int | None) -> TokenLosses:
    assert x.teacher_lp is not None
    teacher = jnp.maximum(x.teacher_lp, TEACHER_LIMIT)
    if kind.sampled:
        value = jax.lax.stop_gradient(x.lp - teacher[..., 0])
        loss, gap = value * x.lp, TeacherGap(value, -value, -value)
    else:
        assert x.student_lp is not None
        loss = _candidate_divergence(x.student_lp, teacher, kind, vocabulary)
        excess = teacher - x.student_lp
        mean = jnp.sum(jax.nn.softmax(x.student_lp, axis=-1) * excess, axis=-1)
        gap = jax.lax.stop_gradient(TeacherGap(loss, mean, jnp.max(excess, axis=-1)))
    if kind.is_clip is not None:
        loss = loss * jax.lax.stop_gradient(jnp.minimum(ratio, kind.is_clip))
    return TokenLosses(loss, ratio, teacher=gap)


def _candidate_divergence(student: jax.Array, teacher: jax.Array, kind: Kl, vocabulary: int | None) -> jax.Array:
    if student.shape[-1] != vocabulary:
        complete = with_tail if kind.tail else renormalised
        student, teacher = complete(student), complete(teacher)
    return divergence(student, teacher, kind.alpha)


def _kl_ref(x: TokenInputs, ratio: jax.Array, kind: KlRef) -> TokenLosses:
    assert x.lp_ref is not None
    u = x.lp_ref - x.lp
    k3 = jnp.minimum(u, LOG_RATIO_LIMIT)
    estimate = {"k1": -u, "k2": 0.5 * u * u, "k3": jnp.expm1(k3) - k3}[kind.estimator]
    # The gradient goes through the ratio too: the mean of rho k under the old policy is the divergence under the new.
    loss = ratio * estimate if kind.with_ratio else estimate
    return TokenLosses(loss, ratio, reference=jax.lax.stop_gradient(estimate))


_FORMULAS: Mapping[type, Callable[[TokenInputs, jax.Array, Any], TokenLosses]] = {
    PgClip: _pg_clip,
    Cispo: _cispo,
    Reinforce: _reinforce,
    Shaped: _shaped,
    Nll: _nll,
    KlRef: _kl_ref,
}
