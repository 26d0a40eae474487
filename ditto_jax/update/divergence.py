"""How far two next-token distributions are apart, over a few candidate tokens: one formula for every kind of teacher.

log-probabilities of policy and teacher at the candidates → **divergence per token** → token loss

Log-probabilities are normalised over the whole vocabulary. What the candidates leave over is either one more candidate,
the tail, or dropped by renormalising. No mask, no weight, no choice of candidates.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

TEACHER_LIMIT = -30.0  # a teacher's log-prob of -inf would make the divergence infinite
_WHOLE = -1e-7  # rounding may put the candidates' mass at 1 or above, where the tail's logarithm does not exist


def with_tail(lp: jax.Array) -> jax.Array:
    """Returns float[..., K + 1]: `lp` float[..., K] and the logarithm of the mass that its candidates leave over."""
    mass = jax.nn.logsumexp(lp, axis=-1, keepdims=True)
    return jnp.concatenate([lp, jnp.log(-jnp.expm1(jnp.minimum(mass, _WHOLE)))], axis=-1)


def renormalised(lp: jax.Array) -> jax.Array:
    """Returns float[..., K]: `lp` shifted so that its candidates have all the mass."""
    return lp - jax.nn.logsumexp(lp, axis=-1, keepdims=True)


def divergence(student: jax.Array, teacher: jax.Array, alpha: float) -> jax.Array:
    """Returns float[...], in nats, of log-probabilities float[..., K] with mass 1: KL(T || S) for alpha 0, KL(S || T)
    for alpha 1, else (1 - alpha) KL(S || M) + alpha KL(T || M) with M = (1 - alpha) S + alpha T.

    Between 0 and 1 it does not interpolate the two ends: it goes to 0 at both.
    """
    if alpha == 0.0:
        return _kl(teacher, student)
    if alpha == 1.0:
        return _kl(student, teacher)
    middle = jnp.logaddexp(math.log1p(-alpha) + student, math.log(alpha) + teacher)
    return (1.0 - alpha) * _kl(student, middle) + alpha * _kl(teacher, middle)


def _kl(of: jax.Array, against: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(of) * (of - against), axis=-1)
