"""What the backward pass computes again instead of reading it, by name: from nothing to whole layers.

In: a policy's name. Out: the rule for `jax.checkpoint` over one layer. The tensors that rules speak of get their names
in `model.llama` and `model.layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

Remat = Literal["none", "full", "save_attention", "save_projections"]

# Kept beside each layer's input, from least to most memory. Scores of attention are in none of them.
KEPT_NAMES: Mapping[str, tuple[str, ...]] = {
    "full": (),
    "save_attention": ("qkv", "attended", "attention_out"),
    "save_projections": ("qkv", "attended", "attention_out", "mlp_in"),
}


def kept_by(remat: Remat) -> Callable[..., Any]:
    """Returns the rule of a policy other than "none", which keeps everything and needs no rule.

    Raises ValueError for a name that is not a policy's.
    """
    if remat not in KEPT_NAMES:
        raise ValueError(f"remat={remat!r}: choose one of none, {', '.join(KEPT_NAMES)}")
    return jax.checkpoint_policies.save_only_these_names(*KEPT_NAMES[remat])
