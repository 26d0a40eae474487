"""Drawing tokens from logits, with the exact log-probability of the distribution that was drawn from.

Pure and shape-static. Each row has its own key, derived by the caller from the sample's identity; the key of token
number i is `fold_in(row key, i)`. So a sample does not depend on its batch neighbours, on its slot or on chunk
boundaries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.token_masks import EXCLUDED, only_allowed


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. Hashable: each distinct value compiles its own sampler.

    temperature: 0 means greedy (log-prob then is that of the untempered policy). top_k 0, top_p 1 and min_p 0 switch
    their truncation off; truncations apply in the order top-k, top-p, min-p to the tempered distribution.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        checks = {
            f"temperature={self.temperature}: must be >= 0": self.temperature >= 0,
            f"top_k={self.top_k}: must be >= 0 (0 = off)": self.top_k >= 0,
            f"top_p={self.top_p}: must be in (0, 1]": 0 < self.top_p <= 1,
            f"min_p={self.min_p}: must be in [0, 1)": 0 <= self.min_p < 1,
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)


class RowSampling(NamedTuple):
    """How tokens are drawn where rows differ, as arrays, so that no setting compiles a program of its own.

    temperature float32[B] (0 = greedy), top_k int32[B] (0 = off), top_p float32[B] (1 = off), min_p float32[B] (0 =
    off).
    """

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any


def truncate(logprobs: jax.Array, params: SamplingParams) -> jax.Array:
    """Returns float32[B, V] with excluded tokens at a large negative value; rows keep at least their best token.

    Tokens are kept from a threshold on, so that tokens that tie with the last one kept are kept too. The nucleus is the
    shortest head whose mass reaches top_p. No sort: the threshold is searched for in 32 passes over the row.
    """
    if params.top_k and params.top_k < logprobs.shape[-1]:
        kth = _largest(logprobs, lambda kept: jnp.sum(kept, axis=-1) >= params.top_k)
        logprobs = jnp.where(logprobs < kth[:, None], EXCLUDED, logprobs)
    if params.top_p < 1:
        probs = jax.nn.softmax(logprobs, axis=-1)
        wanted = params.top_p * jnp.sum(probs, axis=-1)
        least = _largest(probs, lambda kept: jnp.sum(jnp.where(kept, probs, 0), axis=-1) >= wanted)
        logprobs = jnp.where(probs < least[:, None], EXCLUDED, logprobs)
    if params.min_p > 0:
        best = jnp.max(logprobs, axis=-1, keepdims=True)
        logprobs = jnp.where(logprobs < best + jnp.log(params.min_p), EXCLUDED, logprobs)
    return logprobs


def _largest(values: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """float32[B]: the largest threshold that keeps enough of values [B, V]; enough: bool[B, V] of kept → bool[B].

    A bisection over the float32 numbers, as integers in the same order: it ends at the exact value.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # the mean, without the sum, which would overflow
        holds = enough(values >= _float_at(middle)[:, None])
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle)

    bounds = _place(jnp.min(values, axis=-1)), _place(jnp.max(values, axis=-1)) + 1
    low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return _float_at(low)


def _place(numbers: jax.Array) -> jax.Array:
    """int32 in the order of float32 numbers; `_float_at` is the way back."""
    bits = jax.lax.bitcast_convert_type(numbers, jnp.int32)
    return bits ^ ((bits >> 31) & jnp.iinfo(jnp.int32).max)


def _float_at(places: jax.Array) -> jax.Array:
    bits = places ^ ((places >> 31) & jnp.iinfo(jnp.int32).max)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _draw_apart(
    logits: jax.Array, row_keys: jax.Array, index: jax.Array, rows: RowSampling, allowed: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """`draw` where every row has settings of its own; the same settings in every row draw the same tokens.

    Log-probs are those before temperature, truncation and `allowed`, so that they can be compared between requests.
    """
    own = jax.nn.log_softmax(logits, axis=-1)
    if allowed is not None:
        logits = only_allowed(logits, allowed)
    greedy = rows.temperature <= 0
    scaled = logits / jnp.where(greedy, 1.0, rows.temperature)[:, None]
    truncated = jax.lax.cond(_any_truncates(rows), lambda: _truncate_apart(scaled, rows), lambda: scaled)
    uniforms = jax.vmap(lambda key, i: jax.random.uniform(jax.random.fold_in(key, i)))(row_keys, index)
    probs = jnp.exp(truncated - jax.nn.logsumexp(truncated, axis=-1)[:, None])
    drawn = _inverse_cdf(probs, uniforms)
    tokens = jnp.where(greedy, jnp.argmax(logits, axis=-1).astype(jnp.int32), drawn)
    return tokens, jnp.take_along_axis(own, tokens[:, None], axis=-1)[:, 0]


def _any_truncates(rows: RowSampling) -> jax.Array:
    return jnp.any((rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0))


def _truncate_apart(logprobs: jax.Array, rows: RowSampling) -> jax.Array:
    """`truncate` with thresholds that differ by row; a row whose settings are off keeps all tokens."""
    wanted_k = jnp.where(rows.top_k > 0, rows.top_k, logprobs.shape[-1])
    kth = _largest(logprobs, lambda kept: jnp.sum(kept, axis=-1) >= wanted_k)
    logprobs = jnp.where(logprobs < kth[:, None], EXCLUDED, logprobs)
    probs = jax.nn.softmax(logprobs, axis=-1)
    wanted = rows.top_p * jnp.sum(probs, axis=-1)
    least = _largest(probs, lambda kept: jnp.sum(jnp.where(kept, probs, 0), axis=-1) >= wanted)
    outside = (probs < least[:, None]) & (rows.top_p < 1)[:, None]
    logprobs = jnp.where(outside, EXCLUDED, logprobs)
    best = jnp.max(logprobs, axis=-1, keepdims=True)
    return jnp.where(logprobs < best + jnp.log(rows.min_p)[:, None], EXCLUDED, logprobs)


def draw(
    logits: jax.Array,
    row_keys: jax.Array,
    index: jax.Array,
    params: SamplingParams,
    apart: RowSampling | None = None,
    allowed: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns (tokens int32[B], logprobs float32[B]) drawn from float32 logits [B, V].

    row_keys: uint32[B, 2] raw threefry keys; index: int32[B], the number of the token within its sample. apart:
    settings of each row in place of `params`; log-probs are then those of the model itself. allowed: int32[B,
    ceil(V / 32)], bits of the tokens that may be drawn (`token_masks`), None = all; log-probs are those of the
    distribution over these, unless `apart`.
    """
    if apart is not None:
        return _draw_apart(logits, row_keys, index, apart, allowed)
    if allowed is not None:
        logits = only_allowed(logits, allowed)
    if params.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
        return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)
    scaled = logits / params.temperature
    truncated = truncate(scaled, params)
    log_norm = jax.nn.logsumexp(truncated, axis=-1)
    uniforms = jax.vmap(lambda key, i: jax.random.uniform(jax.random.fold_in(key, i)))(row_keys, index)
    tokens = _inverse_cdf(jnp.exp(truncated - log_norm[:, None]), uniforms)
    chosen = jnp.take_along_axis(truncated, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - log_norm


def _inverse_cdf(probs: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Returns int32[B]: the token whose cumulative interval holds uniforms[b]; never one of probability 0.

    One uniform number a row replaces V Gumbel numbers. Two levels (blocks, then tokens of the chosen block) keep
    the float32 sums short, so that a vocabulary of 150,000 loses no accuracy and needs no long scan.
    """
    batch, vocab = probs.shape
    blocks = _block_count(vocab)
    padded = jnp.pad(probs, ((0, 0), (0, -vocab % blocks))).reshape(batch, blocks, -1)
    width = padded.shape[-1]
    block_mass = padded.sum(-1)
    block_ends = jnp.cumsum(block_mass, axis=-1)
    target = uniforms * block_ends[:, -1]
    block = _first_above(block_ends, block_mass, target)
    rows = jnp.arange(batch)
    within = padded[rows, block]
    start = block_ends[rows, block] - block_mass[rows, block]
    ends = jnp.cumsum(within, axis=-1)
    token = _first_above(ends, within, target - start)
    return (block * width + token).astype(jnp.int32)


def _block_count(vocab: int) -> int:
    """A power of two near the root of the vocabulary, which divides it where one does.

    Blocks then end where the parts of a vocabulary that is split over devices end, and no probability moves.
    """
    wanted = 1 << (vocab.bit_length() // 2)
    divisor = vocab & -vocab
    return min(wanted, divisor) if divisor**4 >= vocab else wanted


def _first_above(ends: jax.Array, mass: jax.Array, target: jax.Array) -> jax.Array:
    """First index with mass whose cumulative end exceeds target; the last with mass if rounding leaves none."""
    index = jnp.arange(ends.shape[-1])
    hit = (ends > target[:, None]) & (mass > 0)
    last = jnp.max(jnp.where(mass > 0, index, 0), axis=-1)
    return jnp.where(jnp.any(hit, axis=-1), jnp.argmax(hit, axis=-1), last)
