"""A run that does not fit is told the first change with which it does, and a warning stands before its training."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ditto_jax.config import MeshConfig, RunConfig, TrainConfig
from ditto_jax.plan.changes import first_change, first_topology
from ditto_jax.plan.memory import Memory, mesh_over
from ditto_jax.plan.room import memory_warning
from ditto_jax.plan.topology import find_topology
from model.lora import LoraConfig
from model.presets import QWEN3_8B
from tests.planned_runs import MODEL, config_of


def peak_of(config: RunConfig, devices: int = 1) -> float:
    return Memory(config, MODEL, mesh_over(config.mesh, devices)).peak


def trained(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {"micro_batch": 16, "lanes": 4, "prefix": (256,), "suffix": (512,), "logprob_chunk": 256}
    return config_of(train=TrainConfig(**{**values, **changes}))


def test_the_first_change_is_the_mildest_that_is_enough():
    config = trained(remat="full")
    eight = trained(remat="full", micro_batch=8)
    assert peak_of(eight) < peak_of(config)
    found = first_change(config, MODEL, 1, peak_of(eight))
    assert found is not None and found.settings == ("--train.micro_batch 8",)
    assert found.peak == peak_of(eight)


def test_where_smaller_micro_batches_are_not_enough_activations_are_computed_again():
    config = trained(micro_batch=1, remat="none")
    enough = peak_of(trained(micro_batch=1, remat="full"))
    assert enough < peak_of(config)
    found = first_change(config, MODEL, 1, enough)
    assert found is not None and found.settings == ("--train.remat full",)


def test_changes_are_put_together_where_none_alone_is_enough():
    config = trained(remat="none", micro_batch=2)
    enough = peak_of(trained(remat="full", micro_batch=1))
    found = first_change(config, MODEL, 1, enough)
    assert found is not None and found.settings == ("--train.micro_batch 1", "--train.remat full")
    assert first_change(config, MODEL, 1, 2**20) is None


def test_all_parameters_of_a_large_model_become_adapters_and_then_8_bits():
    model = dataclasses.replace(QWEN3_8B, param_dtype="float32", compute_dtype="bfloat16")
    small = TrainConfig(micro_batch=1, lanes=1, prefix=(256,), suffix=(256,), remat="full", logprob_chunk=256)
    config = config_of(dtype="bfloat16", train=small)
    found = first_change(config, model, 1, 24 * 2**30)
    assert found is not None and found.settings == ("--lora.rank 32 --dtype bfloat16 --param_dtype bfloat16",)
    adapters = dataclasses.replace(config, lora=LoraConfig(), param_dtype="bfloat16")
    found = first_change(adapters, dataclasses.replace(model, param_dtype="bfloat16"), 1, 14 * 2**30)
    assert found is not None and found.settings == ("--quantization int8_all",)


def test_the_next_topology_is_the_smallest_of_its_kind_that_the_mesh_and_the_run_fit():
    model = dataclasses.replace(QWEN3_8B, param_dtype="float32", compute_dtype="bfloat16")
    config = config_of(dtype="bfloat16", mesh=MeshConfig(1, -1, 1))
    alone, eight = find_topology("v5e-1"), find_topology("v5e-8")
    assert first_topology(config, model, alone) == find_topology("v5e-16")
    assert Memory(config, model, mesh_over(config.mesh, 8), "splash").peak > eight.chip.memory
    assert first_topology(dataclasses.replace(config, mesh=MeshConfig(1, 1, 1)), model, alone) is None


@dataclasses.dataclass
class Device:
    """Says how much memory it has, or nothing."""

    limit: float | None

    def memory_stats(self) -> dict[str, float] | None:
        return None if self.limit is None else {"bytes_limit": self.limit}


def test_a_run_is_warned_of_too_little_memory_by_the_account_of_plans(policy_folder):
    config = dataclasses.replace(trained(remat="full"), model_name_or_path=str(policy_folder))
    from ditto_jax.plan.memory import model_of

    peak = Memory(config, model_of(config), mesh_over(config.mesh, 1)).peak
    assert memory_warning(config, Device(None), 1, "") == ""  # a CPU
    assert memory_warning(config, Device(peak), 1, "") == ""
    warned = memory_warning(config, Device(peak - 1), 1, "")
    assert warned.startswith(f"predicted to need {peak / 2**30:.1f} of ")
    assert warned.endswith("; enough would be --train.micro_batch 8")
    assert memory_warning(config, Device(1.0), 1, "").endswith("take more devices (ditto-jax plan)")


@pytest.mark.parametrize("devices", [1, 8])
def test_a_change_keeps_to_the_mesh_that_the_devices_have(devices):
    config = dataclasses.replace(trained(remat="full"), mesh=MeshConfig(-1, 1, 1))
    found = first_change(config, MODEL, devices, peak_of(config, devices) - 1)
    assert found is not None and found.peak < peak_of(config, devices)
