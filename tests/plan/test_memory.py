"""What is held and cached is counted to the byte, and split as the mesh splits it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from ditto_jax.config import MeshConfig, RunConfig, TaskConfig
from ditto_jax.config_io import load_config
from ditto_jax.errors import ConfigError
from ditto_jax.objective import ObjectiveConfig
from ditto_jax.plan.chips import CHIPS, GIB
from ditto_jax.plan.memory import Memory, mesh_over, model_of
from ditto_jax.update.state import OptimizerConfig, TrainState, make_optimizer
from model import llama
from model.generate import empty_state
from model.hf_layout import param_shapes
from model.lora import LoraConfig, init_adapters
from model.presets import QWEN3_8B
from model.quantization import quantize_params
from tests.planned_runs import MODEL, config_of


def memory_of(config: RunConfig, devices: int = 1) -> Memory:
    return Memory(config, MODEL, mesh_over(config.mesh, devices))


def test_eight_billion_parameters_in_8_bits_with_adapters_fit_a_card_of_24_gb_and_not_in_16_bits():
    config, _ = load_config(RunConfig, ["one_gpu_8b.yaml"])
    whole = dataclasses.replace(config, quantization="none")
    small, large = (Memory(c, model_of(c), mesh_over(c.mesh, 1)) for c in (config, whole))
    parameters = sum(math.prod(shape) for shape in param_shapes(QWEN3_8B).values())
    assert small.held()["weights"] == pytest.approx(parameters, rel=0.01)
    assert large.held()["weights"] == pytest.approx(2 * parameters, rel=1e-6)
    assert small.peak < CHIPS["rtx4090"].memory < large.peak


def shapes_of(config: RunConfig) -> tuple[TrainState, Any]:
    """The state and the base of a run, as shapes."""
    optimizer = make_optimizer(config.optimizer, 10)
    base = jax.eval_shape(lambda: quantize_params(llama.init(jax.random.key(0), MODEL), config.quantization))
    trained = base
    if config.lora.rank:
        trained = jax.eval_shape(lambda: init_adapters(jax.random.key(0), MODEL, config.lora))
    return jax.eval_shape(lambda p: TrainState(p, optimizer.init(p), jnp.int32(0)), trained), base


def size_of(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": OptimizerConfig(mu_dtype="bfloat16")},
        {"lora": LoraConfig(rank=8)},
        {"lora": LoraConfig(rank=8), "quantization": "int8_all"},
    ],
    ids=["all parameters", "short moments", "adapters", "adapters on 8 bits"],
)
def test_what_is_held_is_counted_to_the_byte(changes):
    config = config_of(**changes)
    state, base = shapes_of(config)
    held = memory_of(config).held()
    assert held["weights"] == size_of(base)
    assert held["optimizer"] == size_of(state.opt_state)
    assert held.get("adapters", 0) == (size_of(state.params) if config.lora.rank else 0)


def test_devices_share_what_is_held():
    alone, shared = memory_of(config_of()).held(), memory_of(config_of(mesh=MeshConfig(1, 2, 4)), 8).held()
    for name in ("weights", "optimizer"):
        assert shared[name] == pytest.approx(alone[name] / 8, rel=0.01)
    with pytest.raises(ConfigError, match=r"mesh=.*: does not fit 3 devices; set mesh.data to -1"):
        mesh_over(MeshConfig(1, 2, 4), 3)


def sampling_of(**changes: Any) -> Any:
    shapes = dataclasses.replace(config_of().sampler, **changes)
    return memory_of(config_of(sampler=shapes)).sampling()


def test_the_cache_is_that_of_the_sampler_to_the_byte_and_lone_prompts_have_a_prefix_for_every_row():
    drafts = jax.eval_shape(lambda: empty_state(config=MODEL, slots=2, rows=16, prefix_width=256, width=96))
    state = jax.eval_shape(lambda: empty_state(config=MODEL, slots=16, rows=16, prefix_width=256, width=96))
    found = sampling_of(rows_per_prefix=(1, 8))  # a ring holds a tail of 32 and a reply of 64
    assert found["cache"] == size_of(state.cache) and found["prefix keys"] == size_of((state.prefix, drafts.prefix))
    assert sampling_of()["prefix keys"] < found["prefix keys"] / 3


def test_keys_that_a_call_leaves_to_the_next_are_counted_and_of_rows_where_episodes_have_turns():
    alone = jax.eval_shape(lambda: empty_state(config=MODEL, slots=2, rows=16, prefix_width=256, width=96))
    continued = jax.eval_shape(lambda: empty_state(config=MODEL, slots=2, rows=16, prefix_width=256, width=128))
    one_turn = memory_of(config_of()).sampling()
    assert "keys of the turn before" not in one_turn
    turns = memory_of(config_of(tasks=(TaskConfig("sotopia"),))).sampling()
    assert one_turn["cache"] == size_of(alone.cache) and one_turn["prefix keys"] == 2 * size_of(alone.prefix)
    assert turns["cache"] == turns["keys of the turn before"] == size_of(continued.cache)
    assert turns["prefix keys"] == one_turn["prefix keys"]


def test_keys_in_8_bits_take_a_quarter_of_float32_and_their_scales():
    whole, codes = sampling_of(), sampling_of(kv_dtype="int8")
    assert codes["prefix keys"] / whole["prefix keys"] == pytest.approx(
        (MODEL.head_dim + 4) / (4 * MODEL.head_dim), rel=0.01
    )


def test_a_model_folder_says_its_own_sizes(policy_folder):
    config = config_of(model_name_or_path=str(policy_folder), dtype="bfloat16")
    found = model_of(config)
    assert (found.hidden_size, found.compute_dtype) == (32, "bfloat16")
    assert Memory(config, found, mesh_over(config.mesh, 1)).peak < GIB


def test_a_teacher_that_is_an_average_is_held_and_so_is_the_initial_policy_where_it_teaches():
    averaged = memory_of(config_of(objective=ObjectiveConfig(name="sdpo", teacher="ema"))).held()
    assert averaged["average of a teacher"] == averaged["weights"]  # both float32
    near = config_of(objective=ObjectiveConfig(name="sdpo", teacher="frozen"))
    assert memory_of(near).held()["initial policy"] == memory_of(near).held()["weights"]
    adapters = dataclasses.replace(near, lora=LoraConfig(rank=8))
    assert "initial policy" not in memory_of(adapters).held()  # the base is there already


def test_a_kernel_reads_a_mask_in_the_place_of_scores():
    short = config_of(dtype="bfloat16", param_dtype="bfloat16")
    mesh = mesh_over(short.mesh, 1)
    reference, kernel = (Memory(short, MODEL, mesh, name).update() for name in ("", "splash"))
    scores = 8 * 128 * (128 + 256)  # rows, queries, keys of the longest call
    assert reference["activations"] - kernel["activations"] == 3 * scores * (4 * MODEL.num_heads - 1)
    named = dataclasses.replace(short, attention="reference")
    assert Memory(named, MODEL, mesh, "splash").update() == reference
