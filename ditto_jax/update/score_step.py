"""The scoring programs: log-probabilities of a batch's rows without gradients, one micro-batch after the other.

weights and a batch → **log-probs of its tokens, of given candidates, or the likeliest tokens** → columns of views

Each is the update's forward pass over the same shapes, at the same temperature. Attention sees every token of a row
(partners' turns and headers too) and never the loss mask. Which rows and weights is `scoring.py`. No host code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ditto_jax.update.batch import TrainBatch
from ditto_jax.update.train_step import UpdateConfig, allowed_in, on_mesh
from model.logprobs import grouped_logprobs, grouped_scores, grouped_top_k
from model.partition import row_sharding


def make_score(config: UpdateConfig, mesh: Mesh):
    """Returns the function (parameters, batch, masks) → float32[M, n, S, T] log-probs of the tokens under their rows'
    contexts; masks: as for the update.
    """

    def logprobs(params: Any, micro: TrainBatch, masks: jax.Array | None) -> jax.Array:
        return grouped_logprobs(
            params,
            config.model,
            micro.grouped,
            temperature=config.temperature,
            chunk=config.logprob_chunk,
            allowed=allowed_in(micro, masks),
        )

    return over_micro_batches(logprobs, mesh)


def make_score_at(config: UpdateConfig, mesh: Mesh):
    """Returns the function (parameters, batch) → `TokenScores` without entropy: as `make_score`, and
    float32[M, n, S, T, K] log-probs of the batch's `teacher_ids` where its `loss_mask` holds, garbage elsewhere.
    """

    def at_candidates(params: Any, micro: TrainBatch, masks: None):
        return grouped_scores(
            params,
            config.model,
            micro.grouped,
            temperature=config.temperature,
            chunk=config.logprob_chunk,
            entropy=False,
            candidates=micro.teacher_ids,
            wanted=micro.loss_mask,
        )

    return over_micro_batches(at_candidates, mesh)


def make_score_top(config: UpdateConfig, mesh: Mesh, k: int):
    """Returns the function (parameters, batch) → `TopTokens`: as `make_score`, and ids and log-probs [M, n, S, T, k] of
    the likeliest tokens.
    """

    def likeliest(params: Any, micro: TrainBatch, masks: None):
        return grouped_top_k(
            params, config.model, micro.grouped, k, temperature=config.temperature, chunk=config.logprob_chunk
        )

    return over_micro_batches(likeliest, mesh)


def over_micro_batches(read: Callable[[Any, TrainBatch, Any], Any], mesh: Mesh):
    """Returns the compiled-on-first-use function (parameters, batch, masks or nothing) → what `read` makes of each
    micro-batch, stacked; those of padding alone give zeros and cost nothing.
    """

    def scored(params: Any, batch: TrainBatch, masks: Any = None) -> Any:
        def one(_, micro: TrainBatch):
            found = jax.eval_shape(read, params, micro, masks)

            def nothing(micro: TrainBatch) -> Any:
                return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), found)

            return None, jax.lax.cond(jnp.any(micro.row_valid), lambda m: read(params, m, masks), nothing, micro)

        return jax.lax.scan(one, None, batch)[1]

    return on_mesh(jax.jit(scored, out_shardings=row_sharding(mesh, leading=1)), mesh)
