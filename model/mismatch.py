"""How far apart two policies are that should be the same: quantised and full weights, two dtypes, two kernels.

In: two parameter values for one config, and sequences. Out: differences of the log-probabilities of the given tokens,
and the divergence of the whole distributions, in nats a token. Says nothing about which of the two is right.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.llama import Params, forward, logits


class Mismatch(NamedTuple):
    """Of log p(token): mean and largest absolute difference and its root mean square; kl: mean KL(first, second)."""

    mean: float
    rms: float
    largest: float
    kl: float


def policy_mismatch(
    config: ModelConfig,
    first: Params,
    second: Params,
    ids: jax.Array,
    valid: jax.Array | None = None,
    second_config: ModelConfig | None = None,
) -> Mismatch:
    """Returns the mismatch over all tokens but the first of right-padded sequences; ids int32[B, T], valid bool[B, T].

    `second_config` if the second policy computes otherwise, for example in another dtype. One sequence's logits are in
    memory at a time.
    """
    valid = jnp.ones(ids.shape, bool) if valid is None else valid
    sums = _sums(first, second, jnp.asarray(ids), jnp.asarray(valid), config, second_config or config)
    total, squares, largest, kl, count = (float(value) for value in sums)
    return Mismatch(total / count, (squares / count) ** 0.5, largest, kl / count)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _sums(first: Any, second: Any, ids: jax.Array, valid: jax.Array, config: ModelConfig, second_config: ModelConfig):
    def one(row):
        tokens, real = row
        mine, theirs = (_logprobs(params, c, tokens, real) for params, c in ((first, config), (second, second_config)))
        counted = real[1:]
        chosen = [jnp.take_along_axis(lp, tokens[1:, None], axis=-1)[:, 0] for lp in (mine, theirs)]
        gap = jnp.where(counted, jnp.abs(chosen[0] - chosen[1]), 0.0)
        kl = jnp.where(counted, jnp.sum(jnp.exp(mine) * (mine - theirs), axis=-1), 0.0)
        return jnp.stack([gap.sum(), jnp.square(gap).sum(), gap.max(), kl.sum(), counted.sum().astype(jnp.float32)])

    rows = jax.lax.map(one, (ids, valid))
    return rows.sum(axis=0).at[2].set(rows[:, 2].max())


def _logprobs(params: Any, config: ModelConfig, tokens: jax.Array, real: jax.Array) -> jax.Array:
    """float32[T-1, V]."""
    positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)[None]
    hidden, _ = forward(params, config, tokens[None], positions, real[None].astype(jnp.int32))
    return jax.nn.log_softmax(logits(params, config, hidden[0, :-1]), axis=-1)
