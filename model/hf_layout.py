"""Which tensor of a Hugging Face model is which leaf of the parameter tree.

In: a `ModelConfig`. Out: the shape of every leaf, and for every tensor name its leaf, layer row and shape in the file.
Layers are stacked on axis 0 of a leaf. Rotary dimensions keep the half-split order of Hugging Face, so nothing is
permuted; kernels are [in, out] here and [out, in] there. Reads and writes nothing (see `model.hf_io`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from model.config import ModelConfig
from model.families import FAMILIES

# Leaf of a layer → (name within "layers.N.", whether Hugging Face stores it as [out, in]).
_LAYER_TENSORS: Mapping[str, tuple[str, bool]] = {
    "attn_norm/scale": ("input_layernorm.weight", False),
    "attn/q/kernel": ("self_attn.q_proj.weight", True),
    "attn/q/bias": ("self_attn.q_proj.bias", False),
    "attn/k/kernel": ("self_attn.k_proj.weight", True),
    "attn/k/bias": ("self_attn.k_proj.bias", False),
    "attn/v/kernel": ("self_attn.v_proj.weight", True),
    "attn/v/bias": ("self_attn.v_proj.bias", False),
    "attn/o/kernel": ("self_attn.o_proj.weight", True),
    "attn/o/bias": ("self_attn.o_proj.bias", False),
    "attn/q_norm/scale": ("self_attn.q_norm.weight", False),
    "attn/k_norm/scale": ("self_attn.k_norm.weight", False),
    "mlp_norm/scale": ("post_attention_layernorm.weight", False),
    "mlp/gate/kernel": ("mlp.gate_proj.weight", True),
    "mlp/gate/bias": ("mlp.gate_proj.bias", False),
    "mlp/up/kernel": ("mlp.up_proj.weight", True),
    "mlp/up/bias": ("mlp.up_proj.bias", False),
    "mlp/down/kernel": ("mlp.down_proj.weight", True),
    "mlp/down/bias": ("mlp.down_proj.bias", False),
}


HEAD_TENSOR = "lm_head.weight"  # in the files of every family


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
    if c.qkv_bias:
        shapes |= {f"layers/attn/{name}/bias": (n, width) for name, width in (("q", queries), ("k", keys), ("v", keys))}
    if c.output_bias:
        shapes["layers/attn/o/bias"] = (n, e)
    if c.qk_norm:
        shapes |= {f"layers/attn/{name}/scale": (n, c.head_dim) for name in ("q_norm", "k_norm")}
    if c.mlp_bias:
        shapes |= {f"layers/mlp/{name}/bias": (n, width) for name, width in (("gate", f), ("up", f), ("down", e))}
    if not c.tie_embeddings:
        shapes["head/kernel"] = (e, c.vocab_size)
    return shapes


def tensor_plan(config: ModelConfig) -> dict[str, Slot]:
    """Returns tensor name → slot, named as in the files of `config.family`, in the order of a Hugging Face export."""
    shapes = param_shapes(config)
    before = FAMILIES[config.family].tensors

    def slot(path: str, layer: int | None, transposed: bool) -> Slot:
        shape = shapes[path] if layer is None else shapes[path][1:]
        return Slot(path, layer, transposed, shape[::-1] if transposed else shape)

    plan = {f"{before}embed_tokens.weight": slot("embed/embedding", None, False)}
    for layer in range(config.num_layers):
        for leaf, (name, transposed) in _LAYER_TENSORS.items():
            if f"layers/{leaf}" in shapes:
                plan[f"{before}layers.{layer}.{name}"] = slot(f"layers/{leaf}", layer, transposed)
    plan[f"{before}norm.weight"] = slot("final_norm/scale", None, False)
    if not config.tie_embeddings:
        plan[HEAD_TENSOR] = slot("head/kernel", None, True)
    return plan
