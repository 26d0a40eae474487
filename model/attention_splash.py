"""Attention of a call by the splash kernel, on TPUs: block by block, blocks in which nobody sees anything skipped.

q [B, T, H, D], k and v [B, K, S, D], mask bool[B, T, S] → **output [B, T, H, D]**. The mask is data, not a rule: rows
have segments and prefixes of their own, which the kernel's segment ids cannot say of a prefix that all segments see.
Which calls come here is decided in `attention_kernels`.
"""

from __future__ import annotations

import functools

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash

_BLOCKS = (512, 256, 128)  # of queries and of keys, the largest that divides


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, interpret: bool = False) -> jax.Array:
    """Returns softmax(q k' / sqrt(D)) v over the keys that the mask shows, in q's dtype.

    Every query must see a key. `interpret` runs the kernel step by step on any device.
    """
    heads_first = (q * q.shape[-1] ** -0.5).swapaxes(1, 2)
    row = functools.partial(_row, interpret=interpret)
    return jax.vmap(row)(heads_first, k, v, mask).swapaxes(1, 2)


def _row(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, interpret: bool) -> jax.Array:
    """q [H, T, D], k and v [K, S, D], mask bool[T, S]: one mask for all heads."""
    queries, keys = (next(size for size in _BLOCKS if length % size == 0) for length in mask.shape)
    blocks = splash.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )
    kernel = splash.make_splash_mha(mask[None], block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)
    # Made under a trace, the flag would be an array, of which the kernel asks whether it is true.
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
        setattr(kernel, name, getattr(kernel, name)._replace(is_dynamic_mask=True))
    out = kernel(q, k, v)
    assert isinstance(out, jax.Array)  # a pair only for kernels that were asked for the log-sum-exp
    return out
