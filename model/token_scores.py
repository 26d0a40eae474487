"""Hidden states → log-probabilities of given tokens and exact entropies, never all logits at once.

The forward pass keeps one log-sum-exp (and entropy) a position; the backward pass computes the logits again, a piece
of the positions at a time, and adds up the gradient of the head in float32. A head that is not differentiated, under
adapters or in int8, costs neither a gradient nor an array of its size. Which token belongs to which row is not known
here.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.llama import Head, Params, head_of, head_product, logits
from model.quantization import contract

CHUNK = 1024


class TokenScores(NamedTuple):
    """logprob float32[R]: log p(target | hidden). entropy float32[R]: of that distribution, in nats, or None."""

    logprob: jax.Array
    entropy: jax.Array | None


class _Way(NamedTuple):
    """What is fixed when a program is traced; axis: of the head's matrix that hidden states meet."""

    axis: int
    temperature: float
    chunk: int
    entropy: bool


def token_scores(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    targets: jax.Array,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk: int = CHUNK,
) -> TokenScores:
    """Returns log-probs of targets int32[R] given hidden [R, E], and entropies if asked for, both at `temperature`.

    Differentiable in params and hidden. At most `chunk` positions have logits at a time; where that is all of them,
    they are kept for the backward pass.
    """
    if hidden.shape[0] <= chunk:
        scores = logits(params, config, hidden) / temperature
        return _scores(scores, targets, entropy)[0]
    head, axis = head_of(params, config)
    return _recomputed(head, hidden, targets, _Way(axis, temperature, chunk, entropy))


def _scores(scores: jax.Array, targets: jax.Array, entropy: bool) -> tuple[TokenScores, jax.Array]:
    """Returns what is asked for and the log-sum-exp, of scores [R, V]."""
    total = jax.nn.logsumexp(scores, axis=-1)
    chosen = jnp.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
    if not entropy:
        return TokenScores(chosen - total, None), total
    logp = scores - total[:, None]
    return TokenScores(chosen - total, -jnp.sum(jnp.exp(logp) * logp, axis=-1)), total


def _piece_scores(head: Head, hidden: jax.Array, way: _Way) -> jax.Array:
    """float32[R, V]: logits over temperature."""
    return head_product(head, way.axis, hidden) / way.temperature


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _recomputed(head: Head, hidden: jax.Array, targets: jax.Array, way: _Way) -> TokenScores:
    return _in_pieces(head, hidden, targets, way)[0]


def _in_pieces(head: Head, hidden: jax.Array, targets: jax.Array, way: _Way) -> tuple[TokenScores, jax.Array]:
    def some(piece):
        return _scores(_piece_scores(head, piece[0], way), piece[1], way.entropy)

    found = jax.lax.map(some, (_pieces(hidden, way.chunk), _pieces(targets, way.chunk)))
    return jax.tree.map(lambda array: _whole(array, hidden.shape[0]), found)


class _Kept(NamedTuple):
    """Residuals. wants_head: () or None, for the structure of a pytree is known when a program is traced."""

    head: Head
    hidden: jax.Array
    targets: jax.Array
    total: jax.Array
    entropy: jax.Array | None
    wants_head: tuple[()] | None


def _forward(head: Any, hidden: Any, targets: Any, way: _Way) -> tuple[TokenScores, _Kept]:
    wants_head = () if head.matrix.perturbed else None
    head = Head(head.matrix.value, None if head.scale is None else head.scale.value)
    found, total = _in_pieces(head, hidden.value, targets.value, way)
    return found, _Kept(head, hidden.value, targets.value, total, found.entropy, wants_head)


def _backward(way: _Way, kept: _Kept, gradient: TokenScores) -> tuple[Any, jax.Array, None]:
    head, hidden = kept.head, kept.hidden
    of_logprob, of_entropy = (None if _is_zero(part) else part for part in gradient)

    def some(of_head, piece):
        hidden, targets, total, entropy, by_logprob, by_entropy = piece
        logp = _piece_scores(head, hidden, way) - total[:, None]
        towards = jnp.zeros_like(logp)
        if by_logprob is not None:
            is_target = jnp.arange(logp.shape[-1], dtype=targets.dtype) == targets[:, None]
            towards = by_logprob[:, None] * (is_target - jnp.exp(logp))
        if by_entropy is not None:
            towards = towards - by_entropy[:, None] * jnp.exp(logp) * (logp + entropy[:, None])
        towards = towards / way.temperature
        scaled = (towards if head.scale is None else towards * head.scale).astype(hidden.dtype)
        towards_hidden = contract(scaled, head.matrix.astype(hidden.dtype), -1 if way.axis == -2 else -2)
        if of_head is not None:
            left, right = (scaled, hidden) if way.axis == -1 else (hidden, scaled)
            of_head = of_head + contract(left.T, right, -2)
        return of_head, towards_hidden.astype(hidden.dtype)

    per_position = (hidden, kept.targets, kept.total, kept.entropy, of_logprob, of_entropy)
    start = None if kept.wants_head is None else jnp.zeros(head.matrix.shape, jnp.float32)
    of_head, of_hidden = jax.lax.scan(some, start, jax.tree.map(lambda a: _pieces(a, way.chunk), per_position))
    if of_head is not None:
        of_head = of_head.astype(head.matrix.dtype)
    return head._replace(matrix=of_head, scale=None), _whole(of_hidden, hidden.shape[0]), None


_recomputed.defvjp(_forward, _backward, symbolic_zeros=True)


def _is_zero(gradient: Any) -> bool:
    return gradient is None or isinstance(gradient, jax.custom_derivatives.SymbolicZero)


def _pieces(array: jax.Array, chunk: int) -> jax.Array:
    """[R, ...] → [pieces, chunk, ...], padded; a piece takes every so-manieth position.

    Rows that are split over devices stay split in each piece; consecutive positions would lie on one device.
    """
    count = -(-array.shape[0] // chunk)
    padded = jnp.pad(array, ((0, count * chunk - array.shape[0]), *((0, 0) for _ in array.shape[1:])))
    return padded.reshape(chunk, count, *array.shape[1:]).swapaxes(0, 1)


def _whole(pieces: jax.Array, count: int) -> jax.Array:
    """Undoes `_pieces`."""
    return pieces.swapaxes(0, 1).reshape(-1, *pieces.shape[2:])[:count]
