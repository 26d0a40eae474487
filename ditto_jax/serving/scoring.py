"""Ids → what the model thought of each of them: its log-probability and the likeliest tokens in its place.

In: ids of one sequence. Out: NumPy arrays. One forward pass, with vocabulary scores for a piece of the positions at a
time. For requests that ask for likeliest tokens or for scores of their prompt; sampling needs none of this.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig
from model.llama import Params, forward, logits

MOST = 20
_PIECE = 64


def score(params: Params, config: ModelConfig, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (logprobs float32[T - 1], likeliest int32[T - 1, 20], their logprobs float32[T - 1, 20]) of ids 1 to T-1,
    each given those before it. Smaller vocabularies have fewer likeliest tokens.
    """
    width = max(_PIECE, 1 << (len(ids) - 1).bit_length())
    padded = np.zeros((1, width), np.int32)
    padded[0, : len(ids)] = ids
    chosen, top, top_logprobs = jax.device_get(_scores(params, padded, np.int32(len(ids)), config=config))
    count = len(ids) - 1
    return chosen[:count], top[:count], top_logprobs[:count]


@functools.partial(jax.jit, static_argnames="config")
def _scores(params, ids, length, *, config: ModelConfig):
    positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    hidden, _ = forward(params, config, ids, positions, (positions < length).astype(jnp.int32))
    following = jnp.roll(ids[0], -1).reshape(-1, _PIECE)

    def piece(inputs):
        states, targets = inputs
        logprobs = jax.nn.log_softmax(logits(params, config, states), axis=-1)
        best, which = jax.lax.top_k(logprobs, min(MOST, logprobs.shape[-1]))
        return jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0], which, best

    parts = jax.lax.map(piece, (hidden[0].reshape(-1, _PIECE, hidden.shape[-1]), following))
    return jax.tree.map(lambda x: x.reshape(ids.shape[1], *x.shape[2:]), parts)
