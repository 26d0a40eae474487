"""What an update makes of every token: its log-probability, the limits that it met, and its part of the loss.

state before an update and its batch → **arrays over tokens, by term** → replay

The forward pass and the terms are those of the update itself (`train_step.read_rows`, `loss.each_term`), compiled
without the gradient. Changes no state and chooses nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ditto_jax.update.batch import TrainBatch
from ditto_jax.update.loss import each_term, token_parts
from ditto_jax.update.loss_metrics import TermTokens
from ditto_jax.update.multipliers import FILTERS
from ditto_jax.update.score_step import over_micro_batches
from ditto_jax.update.train_step import UpdateConfig, batch_denominators, read_rows

# What `TermReading.limit` numbers: "" for none, what replaced a loss or its gradient, and what left the token out.
LIMITS = ("", "clip low", "clip high", "dual clip", *FILTERS)
_CLIPS, _FIRST_FILTER = ("low", "high", "dual"), 4


class TermReading(NamedTuple):
    """One term, arrays [M, n, S, T]. trains: bool, its tokens before filters. loss: float32, what a token adds to the
    loss of the update. ratio: float32, of the policy to its anchor. limit: int8, index of `LIMITS`. multiplier:
    float32, of all corrections for how the row was sampled.
    """

    trains: jax.Array
    loss: jax.Array
    ratio: jax.Array
    limit: jax.Array
    multiplier: jax.Array


class TokenReading(NamedTuple):
    """lp, anchor: float32[M, n, S, T] in nats, of the weights before this update and before the first one of the step.
    terms: one for each of the objective.
    """

    lp: jax.Array
    anchor: jax.Array
    terms: tuple[TermReading, ...]


def make_token_reading(config: UpdateConfig, mesh: Mesh) -> Callable[[Any, Any, TrainBatch, Any], TokenReading]:
    """Returns the compiled-on-first-use function (trained parameters, frozen base or None, batch of one update, masks
    of the step or None) → what the update makes of its tokens. Values where no token is trained mean nothing, but for
    `loss`, which is 0 there.
    """
    objective = config.objective

    def read(given: Any, micro: TrainBatch, masks: Any) -> TokenReading:
        trained, base, denominators = given
        lp, _, rows, student_lp = read_rows(trained, base, micro, masks, config)
        shape = micro.loss_mask.shape
        terms = each_term(lp, rows, objective, denominators, student_lp, config.model.vocab_size)
        readings = [
            TermReading(
                trains=found.mask,
                loss=token_parts(found, term, objective, denominators[index]),
                ratio=jnp.broadcast_to(found.tokens.ratio, lp.shape),
                limit=_limits(found),
                multiplier=jnp.broadcast_to(found.multipliers.weight, lp.shape),
            )
            for index, (term, found) in enumerate(terms)
        ]
        return jax.tree.map(lambda a: a.reshape(shape), TokenReading(lp, rows.lp_anchor, tuple(readings)))

    reading = over_micro_batches(read, mesh)

    def call(trained: Any, base: Any, batch: TrainBatch, masks: Any) -> TokenReading:
        return reading((trained, base, batch_denominators(batch, objective)), batch, masks)

    return call


def _limits(found: TermTokens) -> jax.Array:
    """int8[R, T]: of several filters the first, in the place of any clip."""
    limit = jnp.zeros(found.mask.shape, jnp.int8)
    clips = found.tokens.clips
    if clips is not None:
        for number, name in enumerate(_CLIPS, start=1):
            limit = jnp.where(found.kept & getattr(clips, name), jnp.int8(number), limit)
    for number, name in reversed(list(enumerate(FILTERS, start=_FIRST_FILTER))):
        if name in found.removed:
            limit = jnp.where(found.mask & found.removed[name], jnp.int8(number), limit)
    return limit
