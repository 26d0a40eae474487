"""Compiled for eight simulated devices, no program gathers logits, keys, or more than a layer; a broken twin is caught.

The programs are those of a training step at tiny size, traced as the TPU benchmark traces them. No two of the sizes
that the rules tell arrays apart by are alike, and a table is larger than a layer, as in models of published size.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.collectives import Collective, Sizes, collectives, custom_calls, forbidden
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


def programs(mesh: str, tied: bool = False) -> Programs:
    model = dataclasses.replace(MODEL, tie_embeddings=tied)
    return Programs(model, LoraConfig(rank=4, alpha=8.0), STEP, make_mesh(*MESHES[mesh], devices=jax.devices()[:8]))


def broken_rules(found: list[Collective], sizes: Sizes) -> dict[str, list[str]]:
    return {rule: [str(one) for one in breaches] for rule, breaches in forbidden(found, sizes).items() if breaches}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("program", ["update", "scoring", "prefill", "decode chunk", "decode chunk, adapters apart"])
def test_no_program_gathers_logits_or_keys_or_more_than_a_layer(program, mesh):
    step = programs(mesh)
    found = collectives(step.lowered()[program]().compile().as_text())
    assert found, "a program on eight devices that moves nothing was not read"
    assert not broken_rules(found, step.bounds)


@pytest.mark.parametrize("program", ["update", "decode chunk"])
def test_a_head_that_is_the_embedding_is_not_gathered(program):
    step = programs("1x8", tied=True)
    assert not broken_rules(collectives(step.lowered()[program]().compile().as_text()), step.bounds)


@pytest.mark.parametrize(("rule", "shape"), [("logits", (16, 2048)), ("keys", (16, 40, 24))])
def test_a_program_that_gathers_logits_or_keys_is_caught(rule, shape):
    step = programs("1x8")

    def whole(array: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(array * 2, NamedSharding(step.mesh, PartitionSpec()))

    split = NamedSharding(step.mesh, PartitionSpec("fsdp"))
    array = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
    assert rule in broken_rules(collectives(jax.jit(whole).lower(array).compile().as_text()), step.bounds)


def test_a_program_that_gathers_all_layers_at_once_is_caught():
    step = programs("1x8")
    split = NamedSharding(step.mesh, PartitionSpec(None, "fsdp"))
    kernel = jax.ShapeDtypeStruct((MODEL.num_layers, 704, 64), jnp.float32, sharding=split)

    def whole(array: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(array, NamedSharding(step.mesh, PartitionSpec()))

    found = collectives(jax.jit(whole).lower(kernel).compile().as_text())
    assert list(broken_rules(found, step.bounds)) == ["larger than a layer"]


def test_collectives_are_read_from_the_text_of_a_program():
    found = collectives(
        "\n".join(
            [
                '%a = bf16[8,19008,64]{1,0:T(8,128)(2,1)} all-gather(%x), dimensions={1}, metadata={op_name="f/g"}',
                "%b = (f32[4]{0}, f32[32]{0}) all-gather-start(%y), dimensions={0}",
                "%c = f32[32]{0} all-gather-done(%b)",
                "ROOT %d = (f32[3]{0}, pred[5]{0}) all-reduce(%p, %q), to_apply=%sum",
                "%e = f32[3]{0} add(%a, %all-gather.1)",
            ]
        )
    )
    assert [(one.kind, one.shape, one.bytes, one.origin) for one in found] == [
        ("all-gather", (8, 19008, 64), 19_464_192, "f/g"),
        ("all-gather", (32,), 128, ""),
        ("all-reduce", (3,), 12, ""),
        ("all-reduce", (5,), 5, ""),
    ]


def test_a_gathered_table_is_no_logits_and_blocks_of_a_padded_vocabulary_are():
    def rules(*shape: int) -> list[str]:
        return list(broken_rules([Collective("all-gather", "bf16", shape, 1, "")], SIZES))

    assert rules(1000, 64) == rules(64, 500) == []
    assert rules(8, 1000) == rules(8, 126, 8) == ["logits"]
    assert rules(3, 40, 24) == ["keys"]


def test_kernels_are_read_from_the_text_of_a_program():
    text = """
      %a = f32[8] custom-call(%x), custom_call_target="tpu_custom_call"
      %b = f32[8] custom-call(%a), custom_call_target="tpu_custom_call"
      %c = f32[8] custom-call(%b), custom_call_target="LayoutConstraint"
      %d = f32[8] add(%b, %c)
    """
    assert custom_calls(text) == {"tpu_custom_call": 2}
