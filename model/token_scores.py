"""Hidden states → log-probabilities of given tokens, exact entropies, likeliest tokens; never all logits at once.

The forward pass keeps one log-sum-exp (and entropy) a position; the backward pass computes the logits again: for a
trained head a block of the vocabulary at a time, whose gradient is then complete, and else a piece of the positions. A
head that is not differentiated, under adapters or in int8, costs neither a gradient nor an array of its size. Which
token belongs to which row is not known here.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.llama import Head, Params, head_of, head_product, logits
from model.partition import splits_vocabulary
from model.quantization import contract
from model.token_masks import Allowed, only_allowed_at

CHUNK = 1024
_ALIGNED = 64  # columns of a block: whole vectors of the machine


class TokenScores(NamedTuple):
    """logprob float32[R]: log p(target | hidden). entropy float32[R]: of that distribution, in nats, or None.

    of_candidates float32[R, K]: log p of further tokens in the target's place, or None.
    """

    logprob: jax.Array
    entropy: jax.Array | None
    of_candidates: jax.Array | None = None


class TopTokens(NamedTuple):
    """logprob float32[R]: log p(target | hidden). ids int32[R, K]: the likeliest tokens in the target's place, the
    likeliest first; of_ids float32[R, K]: their log-probs.
    """

    logprob: jax.Array
    ids: jax.Array
    of_ids: jax.Array


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
    candidates: jax.Array | None = None,
    allowed: Allowed | None = None,
    chunk: int = CHUNK,
) -> TokenScores:
    """Returns log-probs of targets int32[R] given hidden [R, E], and entropies if asked for, all at `temperature`.

    candidates: int32[R, K], further tokens whose log-probs are wanted; one may be the target or occur twice. allowed:
    the tokens, target and candidates among them, over which each position's distribution is taken; index int32[R].
    Differentiable in params and hidden. At most `chunk` positions have logits at a time; where that is all of them,
    they are kept for the backward pass.
    """
    if hidden.shape[0] <= chunk:
        scores = _among(logits(params, config, hidden) / temperature, allowed)
        return _scores(scores, targets, candidates, entropy)[0]
    head, axis = head_of(params, config)
    return _recomputed(head, hidden, targets, candidates, allowed, _Way(axis, temperature, chunk, entropy))


def token_top_k(
    params: Params,
    config: ModelConfig,
    hidden: jax.Array,
    targets: jax.Array,
    k: int,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> TopTokens:
    """Returns the `k` likeliest tokens given hidden [R, E], their log-probs and those of targets int32[R], all at
    `temperature`. Of equal ones the lowest id comes first. At most `chunk` positions have logits at a time.
    """

    def some(piece):
        scores = logits(params, config, piece[0]) / temperature
        found, total = _scores(scores, piece[1], None, entropy=False)
        best, ids = jax.lax.top_k(scores, k)
        return TopTokens(found.logprob, ids.astype(jnp.int32), best - total[:, None])

    if hidden.shape[0] <= chunk:
        return some((hidden, targets))
    found = jax.lax.map(some, (_pieces(hidden, chunk), _pieces(targets, chunk)))
    return jax.tree.map(lambda array: _whole(array, hidden.shape[0]), found)


def _scores(
    scores: jax.Array, targets: jax.Array, candidates: jax.Array | None, entropy: bool
) -> tuple[TokenScores, jax.Array]:
    """Returns what is asked for and the log-sum-exp, of scores [R, V]."""
    total = jax.nn.logsumexp(scores, axis=-1)
    chosen = jnp.take_along_axis(scores, targets[:, None], axis=-1)[:, 0]
    of_candidates = spread = None
    if candidates is not None:
        of_candidates = jnp.take_along_axis(scores, candidates, axis=-1) - total[:, None]
    if entropy:
        logp = scores - total[:, None]
        spread = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return TokenScores(chosen - total, spread, of_candidates), total


def _among(scores: jax.Array, allowed: Allowed | None, first: jax.Array | int = 0) -> jax.Array:
    return scores if allowed is None else only_allowed_at(scores, allowed, first)


def _piece_scores(
    head: Head, hidden: jax.Array, way: _Way, allowed: Allowed | None, first: jax.Array | int = 0
) -> jax.Array:
    """float32[R, columns of this head]: logits over temperature; the first is of token number `first`."""
    return _among(head_product(head, way.axis, hidden) / way.temperature, allowed, first)


def _of_piece(allowed: Allowed | None, index: jax.Array | None) -> Allowed | None:
    return None if allowed is None else allowed._replace(index=index)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _recomputed(
    head: Head,
    hidden: jax.Array,
    targets: jax.Array,
    candidates: jax.Array | None,
    allowed: Allowed | None,
    way: _Way,
) -> TokenScores:
    return _in_pieces(head, hidden, targets, candidates, allowed, way)[0]


def _in_pieces(
    head: Head,
    hidden: jax.Array,
    targets: jax.Array,
    candidates: jax.Array | None,
    allowed: Allowed | None,
    way: _Way,
) -> tuple[TokenScores, jax.Array]:
    def some(piece):
        own, wanted, others, index = piece
        return _scores(_piece_scores(head, own, way, _of_piece(allowed, index)), wanted, others, way.entropy)

    index = None if allowed is None else allowed.index
    found = jax.lax.map(some, jax.tree.map(lambda a: _pieces(a, way.chunk), (hidden, targets, candidates, index)))
    return jax.tree.map(lambda array: _whole(array, hidden.shape[0]), found)


class _Kept(NamedTuple):
    """Residuals. wants_head: () or None, for the structure of a pytree is known when a program is traced."""

    head: Head
    hidden: jax.Array
    targets: jax.Array
    candidates: jax.Array | None
    allowed: Allowed | None
    total: jax.Array
    entropy: jax.Array | None
    wants_head: tuple[()] | None


def _forward(
    head: Any, hidden: Any, targets: Any, candidates: Any, allowed: Any, way: _Way
) -> tuple[TokenScores, _Kept]:
    wants_head = () if head.matrix.perturbed else None
    head = Head(head.matrix.value, None if head.scale is None else head.scale.value)
    others = None if candidates is None else candidates.value
    masks = None if allowed is None else Allowed(allowed.words.value, allowed.index.value)
    found, total = _in_pieces(head, hidden.value, targets.value, others, masks, way)
    return found, _Kept(head, hidden.value, targets.value, others, masks, total, found.entropy, wants_head)


class _Piece(NamedTuple):
    """What the backward pass knows of some positions; by_logprob and by_entropy are None where nothing flows back."""

    hidden: jax.Array
    targets: jax.Array
    candidates: jax.Array | None
    index: jax.Array | None
    total: jax.Array
    entropy: jax.Array | None
    by_logprob: jax.Array | None
    by_entropy: jax.Array | None
    by_candidates: jax.Array | None


def _backward(way: _Way, kept: _Kept, gradient: TokenScores) -> tuple[Any, jax.Array, None, None, None]:
    head, hidden, allowed = kept.head, kept.hidden, kept.allowed
    parts = (None if _is_zero(part) else part for part in gradient)
    index = None if allowed is None else allowed.index
    known = _Piece(hidden, kept.targets, kept.candidates, index, kept.total, kept.entropy, *parts)
    if kept.wants_head is not None and not splits_vocabulary():
        of_head, of_hidden = _by_blocks(head, known, allowed, way)
    else:
        of_head, of_hidden = _by_pieces(head, known, allowed, way, kept.wants_head is not None)
    return head._replace(matrix=of_head, scale=None), of_hidden, None, None, None


def _towards_logits(
    head: Head, piece: _Piece, allowed: Allowed | None, way: _Way, first: jax.Array | int = 0
) -> jax.Array:
    """float32[R, columns of this head]: the gradient of the logits, of which the first is number `first`."""
    logp = _piece_scores(head, piece.hidden, way, _of_piece(allowed, piece.index), first) - piece.total[:, None]
    towards = jnp.zeros_like(logp)
    if piece.by_logprob is not None:
        is_target = first + jnp.arange(logp.shape[-1], dtype=piece.targets.dtype) == piece.targets[:, None]
        towards = piece.by_logprob[:, None] * (is_target - jnp.exp(logp))
    if piece.by_candidates is not None:
        assert piece.candidates is not None
        columns = piece.candidates - first
        absent = (columns < 0) | (columns >= logp.shape[-1])
        where = jnp.arange(len(columns))[:, None], jnp.where(absent, logp.shape[-1], columns)
        towards = towards - jnp.sum(piece.by_candidates, axis=-1, keepdims=True) * jnp.exp(logp)
        towards = towards.at[where].add(piece.by_candidates, mode="drop")
    if piece.by_entropy is not None:
        assert piece.entropy is not None
        towards = towards - piece.by_entropy[:, None] * jnp.exp(logp) * (logp + piece.entropy[:, None])
    towards = towards / way.temperature
    return towards if head.scale is None else towards * head.scale


def _towards_hidden(head: Head, towards: jax.Array, way: _Way) -> jax.Array:
    return contract(towards, head.matrix.astype(towards.dtype), -1 if way.axis == -2 else -2)


def _towards_matrix(hidden: jax.Array, towards: jax.Array, way: _Way) -> jax.Array:
    left, right = (towards, hidden) if way.axis == -1 else (hidden, towards)
    return contract(left.T, right, -2)


def _by_pieces(
    head: Head, known: _Piece, allowed: Allowed | None, way: _Way, wants_head: bool
) -> tuple[jax.Array | None, jax.Array]:
    """Returns the gradients of head and hidden states, some positions after the other.

    Each adds an array as large as the head to its gradient.
    """

    def some(of_head, piece: _Piece):
        towards = _towards_logits(head, piece, allowed, way).astype(piece.hidden.dtype)
        if of_head is not None:
            of_head = of_head + _towards_matrix(piece.hidden, towards, way)
        return of_head, _towards_hidden(head, towards, way).astype(piece.hidden.dtype)

    start = jnp.zeros(head.matrix.shape, jnp.float32) if wants_head else None
    of_head, of_hidden = jax.lax.scan(some, start, jax.tree.map(lambda a: _pieces(a, way.chunk), known))
    if of_head is not None:
        of_head = of_head.astype(head.matrix.dtype)
    return of_head, _whole(of_hidden, known.hidden.shape[0])


def _by_blocks(head: Head, known: _Piece, allowed: Allowed | None, way: _Way) -> tuple[jax.Array, jax.Array]:
    """Returns the same, some columns of the vocabulary after the other and all positions at once.

    As many logits exist at a time as in a piece, and each column's gradient is written once, where it stays. A head
    whose vocabulary lies on several devices cannot be cut in this way.
    """
    axis = -2 if way.axis == -1 else -1
    count, columns = known.hidden.shape[0], head.matrix.shape[axis]
    width = min(columns, _round_up(-(-columns * way.chunk // count)))

    def some(carry, number):
        of_head, of_hidden = carry
        # The last block begins early enough to be whole; its first columns are those of the block before.
        first = jnp.minimum(number * width, columns - width)
        block = Head(jax.lax.dynamic_slice_in_dim(head.matrix, first, width, axis), None)
        fresh = first + jnp.arange(width) >= number * width
        towards = _towards_logits(block, known, allowed, way, first)
        towards = jnp.where(fresh, towards, 0.0).astype(known.hidden.dtype)
        of_hidden = of_hidden + _towards_hidden(block, towards, way)
        before = jax.lax.dynamic_slice_in_dim(of_head, first, width, axis)
        of_block = before + _towards_matrix(known.hidden, towards, way).astype(of_head.dtype)
        return (jax.lax.dynamic_update_slice_in_dim(of_head, of_block, first, axis), of_hidden), None

    start = jnp.zeros_like(head.matrix), jnp.zeros(known.hidden.shape, jnp.float32)
    (of_head, of_hidden), _ = jax.lax.scan(some, start, jnp.arange(-(-columns // width)))
    return of_head, of_hidden.astype(known.hidden.dtype)


def _round_up(count: int) -> int:
    return -(-count // _ALIGNED) * _ALIGNED


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
