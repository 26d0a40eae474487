"""Sizes of models by name: one for trials on a laptop, and published ones to plan and compile for without weights.

Only the sizes: weights come from a folder, whose config.json says the same. Dtypes are the defaults of `ModelConfig`;
`dataclasses.replace` sets others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from model.config import ModelConfig
from model.rope import Llama3RopeScaling

TINY = ModelConfig(
    vocab_size=768,
    hidden_size=128,
    intermediate_size=352,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    tie_embeddings=True,
)

QWEN3_0_6B = ModelConfig(
    family="qwen3",
    vocab_size=151936,
    hidden_size=1024,
    intermediate_size=3072,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    qk_norm=True,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_embeddings=True,
    max_position_embeddings=40960,
    bos_token_id=151643,
    eos_token_ids=(151645,),
)

QWEN3_1_7B = dataclasses.replace(QWEN3_0_6B, hidden_size=2048, intermediate_size=6144)

QWEN3_8B = dataclasses.replace(
    QWEN3_0_6B, hidden_size=4096, intermediate_size=12288, num_layers=36, num_heads=32, tie_embeddings=False
)

QWEN3_VL_8B = dataclasses.replace(QWEN3_8B, family="qwen3_vl", rope_theta=5e6, max_position_embeddings=262144)

LLAMA_3_1_8B = ModelConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=5e5,
    rope_scaling=Llama3RopeScaling(8.0, 1.0, 4.0, 8192),
    max_position_embeddings=131072,
    bos_token_id=128000,
    eos_token_ids=(128001, 128008, 128009),
)

PRESETS: Mapping[str, ModelConfig] = {
    "tiny": TINY,
    "qwen3-0.6b": QWEN3_0_6B,
    "qwen3-1.7b": QWEN3_1_7B,
    "qwen3-8b": QWEN3_8B,
    "qwen3-vl-8b": QWEN3_VL_8B,
    "llama-3.1-8b": LLAMA_3_1_8B,
}
