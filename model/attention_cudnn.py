"""Attention of a call by cuDNN's flash kernel, on GPUs: no array of scores, in the forward or the backward pass.

q [B, T, H, D], k and v [B, K, S, D], mask bool[B, T, S] → **output [B, T, H, D]**. `implementation="xla"` runs the same
call without a GPU. Which calls come here is decided in `attention_kernels`.
"""

from __future__ import annotations

from typing import Literal

import jax


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Returns softmax(q k' / sqrt(D)) v over the keys that the mask shows, in q's dtype.

    cuDNN knows only lengths and one window of its own, so that the mask goes to it as a bias that all heads share.
    """
    return jax.nn.dot_product_attention(
        q,
        k.swapaxes(1, 2),
        v.swapaxes(1, 2),
        mask=mask[:, None],
        scale=q.shape[-1] ** -0.5,
        implementation=implementation,
    )
