"""The policy as pure functions on a parameter pytree: init, forward, apply.

Flax Linen modules stand behind these functions; layers are scanned, so parameters are stacked on a leading layer
axis, and what differs between layers (window, rotary or not) is scanned beside them. One forward definition serves
training, prefill and decode; they differ only in where keys come from (`prefix`, own tokens, `cache`). Families differ
by the fields of `ModelConfig` alone. Parameters may carry adapters (`model.lora`) and int8 weights
(`model.quantization`). This file knows nothing of sampling, rewards or text.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from model.attention import KeyValues, Window, attend, segment_mask
from model.config import ModelConfig
from model.layers import Embedding, Projection, RMSNorm, SwiGLU, residual_gain, rotary_tables, rotate
from model.partition import before_its_split, in_stored_order, split_logits
from model.quantization import contract, int8_product, is_quantized
from model.remat import Remat, kept_by
from model.stored_keys import map_tokens, store

Params = Any


class Prefix(NamedTuple):
    """Keys and values of token prefixes that groups of rows share: k, v [L, N, K, P, D], valid bool[N, P].

    valid is bool[N, Q, P] where each of a group's Q = rows * T queries sees other keys; positions int32[N, P] are None
    if they are 0 to P - 1. With unstacked layers k and v are tuples of L arrays [N, K, P, D].
    Arrays may be stored keys (`model.stored_keys`).
    """

    k: Any
    v: Any
    valid: jax.Array
    positions: jax.Array | None = None


class Cache(NamedTuple):
    """Keys and values of each row's own tokens: a ring of C columns, k and v [L, B, K, C, D].

    positions int32[B, C]: of the token in a column, -1 where there is none. All rows write the same `column` (int32
    scalar), so that a write is one in-place slice update; attention looks at positions, never at the order of columns.
    Or each row writes a column of its own (int32[B]), so that sums over columns do not depend on when it came. With
    unstacked layers k and v are tuples of L arrays [B, K, C, D]. Arrays may be stored keys (`model.stored_keys`).
    """

    k: Any
    v: Any
    positions: jax.Array
    column: jax.Array


class _Layer(NamedTuple):
    """What differs between layers, scanned beside the parameters; None where a model's layers are all alike.

    number int32[L], or None where each layer has a cache of its own; window int32[L], as wide as any text in layers
    that see everything; rotated bool[L].
    """

    number: Any
    window: Any
    rotated: Any


def _layers(config: ModelConfig) -> _Layer:
    number = np.arange(config.num_layers, dtype=np.int32)
    window = rotated = None
    if config.sliding_window is not None:
        full = np.isin(number, config.full_attention_layers)
        window = np.where(full, np.iinfo(np.int32).max, config.sliding_window).astype(np.int32)
    if config.no_rope_layers:
        rotated = ~np.isin(number, config.no_rope_layers)
    return _Layer(number, window, rotated)


class _Positions(NamedTuple):
    """int32[B, T] of the queries, int32[B, S] of the own keys, int32[N, P] of the prefix or None."""

    query: jax.Array
    own: jax.Array
    prefix: jax.Array | None


class _PerLayer(NamedTuple):
    """Keys and values layer by layer: tuples of L arrays [B, K, C, D]."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def _write(cache: KeyValues, new: KeyValues, layer: jax.Array | None, column: jax.Array) -> tuple[KeyValues, KeyValues]:
    """Returns the cache with the new keys at `column`, and this layer's part of it."""

    def put(axis, full, part):
        start: list[Any] = [0] * full.ndim
        start[axis] = column
        if column.ndim:
            return put_apart(axis, full, part)
        if layer is None:
            return jax.lax.dynamic_update_slice(full, part, start)
        start[0] = layer
        return in_stored_order(jax.lax.dynamic_update_slice(full, part[None], start))

    def put_apart(axis, full, part):
        place: list[Any] = [slice(None)] * full.ndim
        place[axis], place[-4] = column, jnp.arange(part.shape[0])
        if layer is not None:
            place[0] = layer
        at = full.at[tuple(place)]
        return at.set(jnp.squeeze(part, axis), mode="promise_in_bounds", unique_indices=True)

    pairs = zip(cache, new, strict=True)
    cache = KeyValues(*(map_tokens(put, full, store(part, full.dtype)) for full, part in pairs))
    if layer is None:
        return cache, cache
    return cache, jax.tree.map(lambda full: jax.lax.dynamic_index_in_dim(full, layer, keepdims=False), cache)


class Attention(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x, rope, positions, own_mask, prefix, prefix_valid, cache, layer: _Layer, column):
        c = self.config
        batch, length, _ = x.shape

        def heads(name: str, count: int) -> jax.Array:
            flat = Projection(c, count * c.head_dim, bias=c.qkv_bias, name=name)(x)
            flat = flat if cache is None else before_its_split(flat)
            return flat.reshape(batch, length, count, c.head_dim)

        q, k, v = heads("q", c.num_heads), heads("k", c.num_kv_heads), heads("v", c.num_kv_heads)
        if c.qk_norm:
            q, k = RMSNorm(c, name="q_norm")(q), RMSNorm(c, name="k_norm")(k)
        if layer.rotated is not None:
            cos, sin = rope
            rope = jnp.where(layer.rotated, cos, 1.0), jnp.where(layer.rotated, sin, 0.0)
        q, k, v = (checkpoint_name(x, "qkv") for x in (rotate(q, *rope), rotate(k, *rope), v))
        window = None if layer.window is None else Window(layer.window, *positions)
        own = new = KeyValues(k.swapaxes(1, 2), v.swapaxes(1, 2))
        if cache is not None:
            cache, own = _write(cache, new, layer.number, column)
        out = attend(q, own, own_mask, prefix, prefix_valid, window, c.attention).reshape(batch, length, -1)
        out = Projection(c, x.shape[-1], residual_gain(c), c.output_bias, name="o")(checkpoint_name(out, "attended"))
        return checkpoint_name(out, "attention_out"), new, cache


class Block(nn.Module):
    """One decoder layer, shaped for nn.scan: the carry is (hidden, cache), the output this layer's new keys."""

    config: ModelConfig
    keep_keys: bool

    @nn.compact
    def __call__(self, carry, layer, prefix, rope, positions, own_mask, prefix_valid, column):
        x, cache = carry
        normed = RMSNorm(self.config, name="attn_norm")(x)
        attended, keys, cache = Attention(self.config, name="attn")(
            normed, rope, positions, own_mask, prefix, prefix_valid, cache, layer, column
        )
        x = x + attended
        x = x + SwiGLU(self.config, name="mlp")(RMSNorm(self.config, name="mlp_norm")(x))
        return (x, cache), keys if self.keep_keys else None


class Llama(nn.Module):
    """Token ids → final hidden states; the head is applied by `logits` so that callers choose the positions.

    unstacked: parameters, prefix and cache come layer by layer (`unstack`), and layers are not scanned.
    """

    config: ModelConfig
    keep_keys: bool = False
    remat: Remat = "none"
    unstacked: bool = False

    @nn.compact
    def __call__(self, ids, positions, own_mask, prefix: Prefix | None, cache: Cache | None):
        c = self.config
        embedding = Embedding(c, name="embed")
        x = nn.with_logical_constraint(embedding(ids), ("row", "length", "embed"))  # pyright: ignore[reportPrivateImportUsage]
        shared = (
            rotary_tables(c, positions),
            _Positions(
                positions,
                positions if cache is None else cache.positions,
                None if prefix is None else prefix.positions,
            ),
            own_mask,
            None if prefix is None else prefix.valid,
            None if cache is None else cache.column,
        )
        if self.unstacked and cache is not None:
            x, keys = self._one_by_one(x, prefix, cache, shared)
            new_keys = None
        else:
            (x, keys), new_keys = self._scanned(x, prefix, cache, shared)
        if not c.tie_embeddings and self.is_initializing():
            # Created here so that `init` makes it; `logits` reads it from the tree.
            self.param(
                "head_kernel",
                nn.initializers.normal(c.hidden_size**-0.5),
                (c.hidden_size, c.vocab_size),
                jnp.dtype(c.param_dtype),
            )
        return RMSNorm(c, name="final_norm")(x), new_keys, keys

    def _scanned(self, x, prefix: Prefix | None, cache: Cache | None, shared):
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=kept_by(self.remat))
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.config.num_layers,
        )(self.config, self.keep_keys, name="layers")
        held = None if cache is None else KeyValues(cache.k, cache.v)
        return layers(
            (x, held), _layers(self.config), None if prefix is None else KeyValues(prefix.k, prefix.v), *shared
        )

    def _one_by_one(self, x, prefix: Prefix | None, cache: Cache, shared):
        pattern, kept = _layers(self.config), []
        for number in range(self.config.num_layers):
            layer = _Layer(None, *(None if each is None else each[number] for each in pattern[1:]))
            source = None if prefix is None else KeyValues(prefix.k[number], prefix.v[number])
            held = KeyValues(cache.k[number], cache.v[number])
            block = Block(self.config, False, name=_layer_name(number))
            (x, held), _ = block((x, held), layer, source, *shared)
            kept.append(held)
        return x, _PerLayer(*zip(*kept, strict=True))


def _layer_name(number: int) -> str:
    return f"layer_{number}"


@functools.partial(jax.jit, static_argnames="config")
def unstack(params: Params, config: ModelConfig) -> Params:
    """Returns the parameters with an own tree for every layer, for decoding where slicing a stack means copying it."""
    layers = {
        _layer_name(n): jax.tree.map(lambda leaf, n=n: leaf[n], params["layers"]) for n in range(config.num_layers)
    }
    return {**{name: leaf for name, leaf in params.items() if name != "layers"}, **layers}


def is_unstacked(params: Params) -> bool:
    """Returns whether these parameters come from `unstack`."""
    return "layers" not in params


def init(key: jax.Array, config: ModelConfig) -> Params:
    """Returns freshly initialised parameters, layers stacked on axis 0 (names: see model/hf_io.py)."""
    ids = jnp.zeros((1, 1), jnp.int32)
    mask = jnp.ones((1, 1, 1), bool)
    tree = Llama(config).init(key, ids, ids, mask, None, None)["params"]
    if not config.tie_embeddings:
        tree["head"] = {"kernel": tree.pop("head_kernel")}
    return tree


def _module_params(params: Params) -> Params:
    return {"params": {name: leaf for name, leaf in params.items() if name != "head"}}


def forward(
    params: Params,
    config: ModelConfig,
    ids: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    prefix: Prefix | None = None,
    *,
    keep_keys: bool = False,
    remat: Remat = "none",
) -> tuple[jax.Array, Any]:
    """Returns final hidden states [B, T, E], and this call's keys [L, B, K, T, D] if `keep_keys`.

    ids, positions, segments: int32[B, T]. Attention is causal in array order, over own tokens of the same segment and
    over the valid prefix; segment 0 is padding, anywhere. A layer with a sliding window sees keys fewer than so many
    `positions` back, be they own or the prefix's. Differentiable in params and prefix.
    """
    module = Llama(config, keep_keys=keep_keys, remat=remat)
    applied: Any = module.apply(_module_params(params), ids, positions, segment_mask(segments), prefix, None)
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
    of the ring; T is 1 where rows write columns of their own. A token sees the prefix and those own tokens whose
    position is not above its own.
    """
    if cache.column.ndim:
        table = cache.positions.at[jnp.arange(ids.shape[0]), cache.column].set(positions[:, 0])
    else:
        table = jax.lax.dynamic_update_slice(cache.positions, positions, (jnp.int32(0), cache.column))
    visible = (table >= 0)[:, None, :] & (table[:, None, :] <= positions[:, :, None])
    module = Llama(config, unstacked=is_unstacked(params))
    applied: Any = module.apply(
        _module_params(params), ids, jnp.maximum(positions, 0), visible, prefix, cache._replace(positions=table)
    )
    hidden, _, keys = applied
    column = (cache.column + ids.shape[1]) % cache.positions.shape[1]
    return hidden, Cache(keys.k, keys.v, table, column)


def run_prefix(
    params: Params,
    config: ModelConfig,
    ids: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
    *,
    remat: Remat = "none",
) -> tuple[jax.Array, Prefix]:
    """Returns the final hidden states [N, P, E] of token prefixes and their keys. Differentiable.

    ids, segments, positions int32[N, P], as for `forward`.
    """
    hidden, keys = forward(params, config, ids, positions, segments, keep_keys=True, remat=remat)
    return hidden, Prefix(keys.k, keys.v, segments > 0)


def make_prefix(params: Params, config: ModelConfig, ids: jax.Array, valid: jax.Array) -> Prefix:
    """Returns the keys of right-padded token prefixes; ids int32[N, P], valid bool[N, P]. Differentiable."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    return run_prefix(params, config, ids, valid.astype(jnp.int32), positions)[1]


class Head(NamedTuple):
    """matrix [V, E] of a tied head or [E, V], float or int8 codes; scale float32[V] of the codes, else None."""

    matrix: jax.Array
    scale: jax.Array | None


def head_of(params: Params, config: ModelConfig) -> tuple[Head, int]:
    """Returns the head and the axis of its matrix that hidden states meet: -1 if tied, else -2."""
    name, leaves, axis = ("embedding", params["embed"], -1) if config.tie_embeddings else ("kernel", params["head"], -2)
    if is_quantized(leaves, name):
        return Head(leaves[f"{name}_int8"], leaves[f"{name}_scale"]), axis
    return Head(leaves[name], None), axis


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V]; the head multiplies in the compute dtype and accumulates in float32."""
    return head_product(*head_of(params, config), hidden)


def head_product(head: Head, axis: int, hidden: jax.Array) -> jax.Array:
    """Returns float32 logits [..., V] of a head whose `axis` meets the hidden states (`head_of`)."""
    if head.scale is not None:
        scores = int8_product(hidden, head.matrix, head.scale, axis)
    else:
        scores = contract(hidden, head.matrix.astype(hidden.dtype), axis)
    return split_logits(scores)


@functools.partial(jax.jit, static_argnames="config")
def apply(params: Params, config: ModelConfig, ids: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Returns float32 logits [B, T, V] of whole sequences int32[B, T]: the reference path of tests and notebooks."""
    if valid is None:
        valid = jnp.ones(ids.shape, bool)
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0).astype(jnp.int32)
    hidden, _ = forward(params, config, ids, positions, valid.astype(jnp.int32))
    return logits(params, config, hidden)
