"""Seconds of phases follow the formulas: what bounds decoding, and what more devices and fewer passes save."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ditto_jax.config import MeshConfig, RolloutConfig, RunConfig, TaskConfig, TrainConfig
from ditto_jax.errors import ConfigError
from ditto_jax.objective import ObjectiveConfig
from ditto_jax.plan.assumptions import Assumptions
from ditto_jax.plan.memory import mesh_over
from ditto_jax.plan.seconds import Clock
from ditto_jax.plan.topology import find_topology
from ditto_jax.plan.work import work_of
from ditto_jax.sampling.slot_shapes import SamplerShapes
from model.lora import LoraConfig
from model.presets import QWEN3_8B

MODEL = dataclasses.replace(QWEN3_8B, param_dtype="bfloat16", compute_dtype="bfloat16")
PARAMETERS = 36 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128) + 4096 * 151936
IDEAL = Assumptions(
    rows_in_use=1.0,
    packed=1.0,
    prefill_efficiency=1.0,
    update_efficiency=1.0,
    decode_efficiency=1.0,
    link_efficiency=1.0,
)


def config_of(**changes: Any) -> RunConfig:
    """GRPO of 32 prompts with 8 drafts, 1,024 tokens of prompt and 512 of reply, when all are as long as they may."""
    values: dict[str, Any] = {
        "dtype": "bfloat16",
        "param_dtype": "bfloat16",
        "objective": ObjectiveConfig(name="grpo"),
        "lora": LoraConfig(),
        "rollout": RolloutConfig(prompts_per_step=32, num_generations=8, max_completion_length=512),
        "sampler": SamplerShapes(prefix=(1024,), max_new_tokens=512, max_rows=256),
        "train": TrainConfig(prefix=(1024,), suffix=(512,), remat="full", micro_batch=8),
        "mesh": MeshConfig(-1, 1, 1),
        "tasks": (TaskConfig("hitom"),),
    }
    return RunConfig(**{**values, **changes})


def phases(config: RunConfig, topology: str = "h200-1", assume: Assumptions = IDEAL) -> dict[str, float]:
    assume = dataclasses.replace(assume, prompt_share=1.0, reply_share=1.0)
    found = find_topology(topology)
    clock = Clock(config, MODEL, mesh_over(config.mesh, found.devices), found, assume)
    return clock.step(work_of(config, assume))


def test_phases_are_the_floors_of_the_formulas():
    chip, found = find_topology("h200-1").chip, phases(config_of())
    body, tokens = PARAMETERS - 4096 * 151936, 32 * 1024
    attention = 4 * 36 * 32 * 128
    assert found["prefill"] == pytest.approx((2 * body * tokens + attention * tokens * 512) / chip.flops)
    keys = 256 * (256 + 1024 / 8) * 2 * 36 * 8 * 128 * 2
    assert found["decode"] == pytest.approx(512 * (2 * PARAMETERS + keys) / chip.bandwidth)
    trained = tokens + 256 * 512
    seen = attention * (tokens * 512 + 256 * 512 * (1024 + 256))
    # 4 N for adapters and 2 N more for what is computed again; attention forward, twice backward, and again.
    assert found["update"] == pytest.approx((6 * PARAMETERS * trained + 4 * seen) / chip.flops)
    assert found["scoring"] == 0.0  # one update a step: the anchors are its own


def test_half_of_the_speed_takes_twice_as_long():
    half = dataclasses.replace(IDEAL, update_efficiency=0.5, decode_efficiency=0.5, rows_in_use=0.5)
    whole, slower = phases(config_of()), phases(config_of(), assume=half)
    assert slower["update"] == pytest.approx(2 * whole["update"])
    assert slower["decode"] == pytest.approx(4 * whole["decode"])


def test_all_parameters_and_several_updates_cost_more_passes():
    adapters, whole = phases(config_of()), phases(config_of(lora=LoraConfig(rank=0)))
    assert 1.2 < whole["update"] / adapters["update"] < 8 / 6
    kept = dataclasses.replace(config_of().train, remat="none")
    assert phases(config_of(train=kept))["update"] < adapters["update"]
    several = phases(config_of(train=dataclasses.replace(config_of().train, updates_per_step=4)))
    assert several["scoring"] == pytest.approx(adapters["update"] / 3, rel=0.05)  # 2 N of 6 N


def test_devices_share_what_is_computed_and_gathered_weights_bound_decoding():
    alone, four = phases(config_of()), phases(config_of(), "h200-4")
    assert four["update"] == pytest.approx(alone["update"] / 4)
    split, gathered = (
        phases(config_of(mesh=mesh), "v5p-8")["decode"] for mesh in (MeshConfig(1, 1, 4), MeshConfig(1, 4, 1))
    )
    # Of weights that lie apart a device receives three quarters at every token, by the interconnect.
    body = 2 * (PARAMETERS - 4096 * 151936)
    assert gathered == pytest.approx(512 * body * 3 / 4 / find_topology("v5p-8").chip.link)
    assert gathered > 4 * split


def test_sums_over_tensor_are_added_and_vanish_on_one_device():
    free = dataclasses.replace(find_topology("v5p-8").chip, link=1e30)
    config = config_of(mesh=MeshConfig(1, 1, 4))
    topology = find_topology("v5p-8")
    work = work_of(config, IDEAL)
    slow, fast = (
        Clock(config, MODEL, mesh_over(config.mesh, 4), dataclasses.replace(topology, chip=chip), IDEAL).step(work)
        for chip in (topology.chip, free)
    )
    tokens = work.trained * 4096 * 2 * 36
    assert slow["update"] - fast["update"] == pytest.approx(6 * tokens * 2 * 3 / 4 / topology.chip.link, rel=1e-6)


@pytest.mark.parametrize(
    ("field", "value"), [("refined_share", 0.0), ("packed", 1.5), ("turns", 0), ("chip_hour_price", -1.0)]
)
def test_assumptions_that_cannot_be_are_refused(field, value):
    with pytest.raises(ConfigError, match=rf"assume\.{field}={value}: "):
        Assumptions(**{field: value})
