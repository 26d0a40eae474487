"""The policy as pure functions on a parameter pytree: init, forward, apply.

Flax Linen modules stand behind these functions; layers are scanned, so parameters are stacked on a leading layer
axis. One forward definition serves training, prefill and decode; they differ only in where keys come from (`prefix`,
own tokens, `cache`). This file knows nothing of sampling, rewards or text.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.attention import KeyValues, attend, segment_mask
from model.config import ModelConfig
from model.layers import Projection, RMSNorm, SwiGLU, residual_gain, rotary_tables, rotate

Params = Any


class Prefix(NamedTuple):
    """Keys and values of token prefixes that groups of rows share: k, v [L, N, P, K, D], valid bool[N, P]."""

    k: jax.Array
    v: jax.Array
    valid: jax.Array


class Cache(NamedTuple):
    """Keys and values of each row's own tokens: a ring of C columns, k and v [L, B, C, K, D].

    positions int32[B, C]: of the token in a column, -1 where there is none. All rows write the same `column` (int32
    scalar), so that a write is one in-place slice update; attention looks at positions, never at the order of columns.
    """

    k: jax.Array
    v: jax.Array
    positions: jax.Array
    column: jax.Array


class Attention(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x, rope, own_mask, prefix, prefix_valid, cache, layer, column):
        c = self.config
        batch, length, _ = x.shape
        q = Projection(c, c.num_heads * c.head_dim, name="q")(x).reshape(batch, length, c.num_heads, c.head_dim)
        k = Projection(c, c.num_kv_heads * c.head_dim, name="k")(x).reshape(batch, length, c.num_kv_heads, c.head_dim)
        v = Projection(c, c.num_kv_heads * c.head_dim, name="v")(x).reshape(batch, length, c.num_kv_heads, c.head_dim)
        q, k = rotate(q, *rope), rotate(k, *rope)
        own = KeyValues(k, v)
        if cache is not None:
            start = (layer, 0, column, 0, 0)
            cache = KeyValues(
                *(jax.lax.dynamic_update_slice(full, new[None], start) for full, new in zip(cache, own, strict=True))
            )
            own = KeyValues(*(jax.lax.dynamic_index_in_dim(full, layer, keepdims=False) for full in cache))
        out = attend(q, own, own_mask, prefix, prefix_valid).reshape(batch, length, -1)
        return Projection(c, x.shape[-1], residual_gain(c), name="o")(out), KeyValues(k, v), cache


class Block(nn.Module):
    """One decoder layer, shaped for nn.scan: the carry is (hidden, cache), the output this layer's new keys."""

    config: ModelConfig
    keep_keys: bool

    @nn.compact
    def __call__(self, carry, layer, prefix, rope, own_mask, prefix_valid, column):
        x, cache = carry
        attended, keys, cache = Attention(self.config, name="attn")(
            RMSNorm(self.config, name="attn_norm")(x), rope, own_mask, prefix, prefix_valid, cache, layer, column
        )
        x = x + attended
        x = x + SwiGLU(self.config, name="mlp")(RMSNorm(self.config, name="mlp_norm")(x))
        return (x, cache), keys if self.keep_keys else None


class Llama(nn.Module):
    """Token ids → final hidden states; the head is applied by `logits` so that callers choose the positions."""

    config: ModelConfig
    keep_keys: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, ids, positions, own_mask, prefix: Prefix | None, cache: Cache | None):
        c = self.config
        embedding = nn.Embed(
            c.vocab_size,
            c.hidden_size,
            param_dtype=jnp.dtype(c.param_dtype),
            dtype=jnp.dtype(c.compute_dtype),
            embedding_init=nn.initializers.normal(c.hidden_size**-0.5),
            name="embed",
        )
        x = nn.with_logical_constraint(embedding(ids), ("row", "length", "embed"))  # pyright: ignore[reportPrivateImportUsage]
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.num_layers,
        )(c, self.keep_keys, name="layers")
        (x, keys), new_keys = layers(
            (x, None if cache is None else KeyValues(cache.k, cache.v)),
            jnp.arange(c.num_layers),
            None if prefix is None else KeyValues(prefix.k, prefix.v),
            rotary_tables(c, positions),
            own_mask,
            None if prefix is None else prefix.valid,
            None if cache is None else cache.column,
        )
        if not c.tie_embeddings:
            # Created here so that `init` makes it; `logits` reads it from the tree.
            self.param(
                "head_kernel",
                nn.initializers.normal(c.hidden_size**-0.5),
                (c.hidden_size, c.vocab_size),
                jnp.dtype(c.param_dtype),
            )
        return RMSNorm(c, name="final_norm")(x), new_keys, keys


def init(key: jax.Array, config: ModelConfig) -> Params:
    """Returns freshly initialised parameters, layers stacked on axis 0 (names: see model/hf_io.py)."""
    ids = jnp.zeros((1, 1), jnp.int32)
    mask = jnp.ones((1, 1, 1), bool)
    tree = Llama(config).init(key, ids, ids, mask, None, None)["params"]
    if not config.tie_embeddings:
        tree["head"] = {"kernel": tree.pop("head_kernel")}
    return tree


def _module_params(params: Params, config: ModelConfig) -> Params:
    if config.tie_embeddings:
        return {"params": params}
    rest = {name: leaf for name, leaf in params.items() if name != "head"}
    return {"params": {**rest, "head_kernel": params["head"]["kernel"]}}


def forward(
    params: Params,
    config: ModelConfig,
    ids: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    prefix: Prefix | None = None,
    *,
    keep_keys: bool = False,
    remat: bool = False,
) -> tuple[jax.Array, Any]:
    """Returns final hidden states [B, T, E], and this call's keys [L, B, T, K, D] if `keep_keys`.

    ids, positions, segments: int32[B, T]. Attention is causal in array order, over own tokens of the same segment and
    over the whole valid prefix; segment 0 is padding, anywhere. Differentiable in params and prefix.
    """
    module = Llama(config, keep_keys=keep_keys, remat=remat)
    applied: Any = module.apply(_module_params(params, config), ids, positions, segment_mask(segments), prefix, None)
    hidden, keys, _ = applied
    return hidden, keys


def extend(
    params: Params,
    config: ModelConfig,
    ids: jax.Array,
    positions: jax.Array,
    cache: Cache,
    prefix: Prefix | None,
) -> tuple[jax.Array, Cache]:
    """Returns hidden states [B, T, E] of T further tokens a row, and the cache with their keys from `column` on.

    ids, positions: int32[B, T]; a position of -1 is padding, which no token sees. The T columns must not pass the end
    of the ring. A token sees the prefix and those own tokens whose position is not above its own.
    """
    table = jax.lax.dynamic_update_slice(cache.positions, positions, (jnp.int32(0), cache.column))
    visible = (table >= 0)[:, None, :] & (table[:, None, :] <= positions[:, :, None])
    applied: Any = Llama(config).apply(
        _module_params(params, config), ids, jnp.maximum(positions, 0), visible, prefix, cache._replace(positions=table)
    )
    hidden, _, keys = applied
    column = (cache.column + ids.shape[1]) % cache.k.shape[2]
    return hidden, Cache(keys.k, keys.v, table, column)


def make_prefix(
    params: Params, config: ModelConfig, ids: jax.Array, valid: jax.Array, *, remat: bool = False
) -> Prefix:
    """Returns the keys of right-padded token prefixes; ids int32[N, P], valid bool[N, P]. Differentiable."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    _, keys = forward(params, config, ids, positions, valid.astype(jnp.int32), keep_keys=True, remat=remat)
    return Prefix(keys.k, keys.v, valid)


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V]; the head multiplies in the compute dtype and accumulates in float32."""
    if config.tie_embeddings:
        table = params["embed"]["embedding"].astype(hidden.dtype)
        return jnp.einsum("...e,ve->...v", hidden, table, preferred_element_type=jnp.float32)
    kernel = params["head"]["kernel"].astype(hidden.dtype)
    return jnp.einsum("...e,ev->...v", hidden, kernel, preferred_element_type=jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def apply(params: Params, config: ModelConfig, ids: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Returns float32 logits [B, T, V] of whole sequences int32[B, T]: the reference path of tests and notebooks."""
    if valid is None:
        valid = jnp.ones(ids.shape, bool)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    hidden, _ = forward(params, config, ids, positions, valid.astype(jnp.int32))
    return logits(params, config, hidden)
