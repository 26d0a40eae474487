"""Compiled for eight simulated devices, no program gathers logits, keys, or more than a layer; a broken twin is caught.

The programs are those of a training step at tiny size, traced as the TPU benchmark traces them. No two of the sizes
that the rules tell arrays apart by are alike, and a table is larger than a layer, as in models of published size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.collectives import Collective, Sizes, collectives, forbidden, largest
from benchmarks.programs import Programs, StepSizes
from model.config import ModelConfig
from model.lora import LoraConfig
from model.partition import make_mesh

MODEL = ModelConfig(
    vocab_size=2048,
    hidden_size=64,
    intermediate_size=176,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=24,
    qk_norm=True,
    family="qwen3",
)
STEP = StepSizes(
    prompts=16, rows=2, prefix=40, suffix=20, groups=8, decode_rows=16, ring=28, tail=12, steps=3, logprob_chunk=160
)
MESHES = {"1x8": (1, 8, 1), "4x2": (1, 4, 2), "2x2x2": (2, 2, 2)}
SIZES = Sizes(layer_bytes=10_000, vocab=1000, hidden=64, head_dim=24, columns={40})


def programs(mesh: str) -> Programs:
    return Programs(MODEL, LoraConfig(rank=4, alpha=8.0), STEP, make_mesh(*MESHES[mesh], devices=jax.devices()[:8]))


def broken_rules(found: list[Collective], sizes: Sizes) -> dict[str, list[str]]:
    return {rule: [str(one) for one in breaches] for rule, breaches in forbidden(found, sizes).items() if breaches}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("program", ["update", "scoring", "prefill", "decode chunk", "decode chunk, adapters apart"])
def test_no_program_gathers_logits_or_keys_or_more_than_a_layer(program, mesh):
    step = programs(mesh)
    found = collectives(step.lowered()[program]().compile().as_text())
    assert found, "a program on eight devices that moves nothing was not read"
    assert not broken_rules(found, step.bounds)
