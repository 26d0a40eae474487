"""Which tensor of a Hugging Face Llama is which leaf of the parameter tree.

In: a `ModelConfig`. Out: the shape of every leaf, and for every tensor name its leaf, layer row and shape in the file.
Layers are stacked on axis 0 of a leaf. Rotary dimensions keep the half-split order of Hugging Face, so nothing is
permuted; kernels are [in, out] here and [out, in] there. Reads and writes nothing (see `model.hf_io`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from model.config import ModelConfig

# Leaf of a layer → (name within "model.layers.N.", whether Hugging Face stores it as [out, in]).
_LAYER_TENSORS: Mapping[str, tuple[str, bool]] = {
    "attn_norm/scale": ("input_layernorm.weight", False),
    "attn/q/kernel": ("self_attn.q_proj.weight", True),
    "attn/k/kernel": ("self_attn.k_proj.weight", True),
    "attn/v/kernel": ("self_attn.v_proj.weight", True),
    "attn/o/kernel": ("self_attn.o_proj.weight", True),
    "mlp_norm/scale": ("post_attention_layernorm.weight", False),
    "mlp/gate/kernel": ("mlp.gate_proj.weight", True),
    "mlp/up/kernel": ("mlp.up_proj.weight", True),
    "mlp/down/kernel": ("mlp.down_proj.weight", True),
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one tensor of the file lives in the tree: leaf `path`, its `layer` row, and its shape in the file."""

    path: str
    layer: int | None
    transposed: bool
    file_shape: tuple[int, ...]


def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every leaf of the parameter tree, keyed by its path ("layers/attn/q/kernel")."""
    c = config
    n, e, f = c.num_layers, c.hidden_size, c.intermediate_size
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed/embedding": (c.vocab_size, e),
        "layers/attn_norm/scale": (n, e),
        "layers/attn/q/kernel": (n, e, queries),
        "layers/attn/k/kernel": (n, e, keys),
        "layers/attn/v/kernel": (n, e, keys),
        "layers/attn/o/kernel": (n, queries, e),
        "layers/mlp_norm/scale": (n, e),
        "layers/mlp/gate/kernel": (n, e, f),
        "layers/mlp/up/kernel": (n, e, f),
        "layers/mlp/down/kernel": (n, f, e),
        "final_norm/scale": (e,),
    }
    if not c.tie_embeddings:
        shapes["head/kernel"] = (e, c.vocab_size)
    return shapes


def tensor_plan(config: ModelConfig) -> dict[str, Slot]:
    """Returns tensor name → slot, in the order of a Hugging Face export."""
    shapes = param_shapes(config)

    def slot(path: str, layer: int | None, transposed: bool) -> Slot:
        shape = shapes[path] if layer is None else shapes[path][1:]
        return Slot(path, layer, transposed, shape[::-1] if transposed else shape)

    plan = {"model.embed_tokens.weight": slot("embed/embedding", None, False)}
    for layer in range(config.num_layers):
        for leaf, (name, transposed) in _LAYER_TENSORS.items():
            plan[f"model.layers.{layer}.{name}"] = slot(f"layers/{leaf}", layer, transposed)
    plan["model.norm.weight"] = slot("final_norm/scale", None, False)
    if not config.tie_embeddings:
        plan["lm_head.weight"] = slot("head/kernel", None, True)
    return plan
