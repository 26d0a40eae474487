"""Predicted memory and time: presets state what the function says, and it agrees with what is held and compiled."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from ditto_jax.config import MeshConfig, RolloutConfig, RunConfig, TaskConfig, TrainConfig
from ditto_jax.config_io import load_config
from ditto_jax.errors import ConfigError
from ditto_jax.memory_plan import CHIPS, Plan, make_plan, model_of
from ditto_jax.objective import make_objective
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.update.batch import pack
from ditto_jax.update.packing import batch_shapes
from ditto_jax.update.state import OptimizerConfig, TrainState, make_optimizer
from ditto_jax.update.train_step import UpdateConfig, make_update
from launch.cli import main
from model import llama
from model.config import ModelConfig
from model.generate import empty_state
from model.hf_layout import param_shapes
from model.lora import LoraConfig, init_adapters
from model.presets import QWEN3_8B
from model.quantization import quantize_params
from tests.tiny_batch import mesh_of

PRESETS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))
PLANNED = [path for path in PRESETS if "# ditto-jax plan" in path.read_text()]
MODEL = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    tie_embeddings=True,
)


def command_of(preset: Path) -> list[str]:
    """The words of the plan command that a preset's comment gives."""
    (line,) = re.findall(r"^# ditto-jax (plan .*)$", preset.read_text(), flags=re.MULTILINE)
    words = line.split()
    assert words[words.index("--config") + 1] == preset.name
    return words


def plan_of(preset: Path) -> Plan:
    words = command_of(preset)
    config, _ = load_config(RunConfig, [str(preset)])
    chip, devices = (words[words.index(name) + 1] for name in ("--chip", "--devices"))
    return make_plan(config, model_of(config), CHIPS[chip], int(devices))


def test_the_presets_of_sizes_have_a_plan():
    names = {path.stem for path in PLANNED}
    assert names == {"one_gpu_0.6b", "one_gpu_1.7b", "one_gpu_8b", "tpu_v5e_8", "tpu_pod_8b", "soul_8b"}


@pytest.mark.parametrize("preset", PLANNED, ids=lambda path: path.stem)
def test_a_preset_states_what_the_command_in_its_comment_prints(preset, capsys):
    assert main(command_of(preset)) == 0
    printed = capsys.readouterr().out.splitlines()
    stated = [line.removeprefix("# ") for line in preset.read_text().splitlines() if line.startswith("# ")]
    assert len(printed) == 3 and printed == stated[-3:]


@pytest.mark.parametrize("preset", PLANNED, ids=lambda path: path.stem)
def test_the_table_of_the_documents_has_the_figures_of_the_plan(preset):
    plan, table = plan_of(preset), (preset.parent.parent / "docs" / "models.md").read_text()
    (row,) = [line for line in table.splitlines() if line.startswith(f"| `{preset.stem}` |")]
    assert row.endswith(f"| {plan.peak / 2**30:.1f} GiB | {plan.hours:.1f} |")


@pytest.mark.parametrize("preset", PLANNED, ids=lambda path: path.stem)
def test_a_preset_fits_its_chip_with_a_tenth_to_spare(preset):
    plan = plan_of(preset)
    assert plan.peak <= 0.9 * plan.chip.memory
    assert 0 < plan.hours < 24


def test_eight_billion_parameters_in_8_bits_with_adapters_fit_a_card_of_24_gb_and_not_in_16_bits():
    (preset,) = (path for path in PLANNED if path.stem == "one_gpu_8b")
    config, _ = load_config(RunConfig, [str(preset)])
    whole = dataclasses.replace(config, quantization="none")
    small, large = (make_plan(c, model_of(c), CHIPS["rtx4090"], 1) for c in (config, whole))
    parameters = sum(math.prod(shape) for shape in param_shapes(QWEN3_8B).values())
    assert small.held["weights"] == pytest.approx(parameters, rel=0.01)
    assert large.held["weights"] == pytest.approx(2 * parameters, rel=1e-6)
    assert small.peak < CHIPS["rtx4090"].memory < large.peak


def config_of(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "rollout": RolloutConfig(prompts_per_step=4, num_generations=8, max_completion_length=64),
        "sampler": SamplerShapes(prefix=(256,), tail=(32,), max_new_tokens=64, max_rows=16, rows_per_prefix=(8,)),
        "mesh": MeshConfig(1, 1, 1),
        "train": TrainConfig(micro_batch=2, lanes=4, prefix=(256,), suffix=(128,), remat="full", logprob_chunk=256),
    }
    return RunConfig(**{**values, **changes})


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
    held = make_plan(config, MODEL, CHIPS["h100"], 1).held
    assert held["weights"] == size_of(base)
    assert held["optimizer"] == size_of(state.opt_state)
    assert held.get("adapters", 0) == (size_of(state.params) if config.lora.rank else 0)


def test_devices_share_what_is_held():
    alone = make_plan(config_of(), MODEL, CHIPS["h100"], 1)
    shared = make_plan(config_of(mesh=MeshConfig(1, 2, 4)), MODEL, CHIPS["h100"], 8)
    for name in ("weights", "optimizer"):
        assert shared.held[name] == pytest.approx(alone.held[name] / 8, rel=0.01)
    with pytest.raises(ConfigError, match=r"mesh=.*: does not fit 3 devices"):
        make_plan(config_of(mesh=MeshConfig(1, 2, 4)), MODEL, CHIPS["h100"], 3)


def sampling_of(**changes: Any) -> Any:
    shapes = dataclasses.replace(config_of().sampler, **changes)
    return make_plan(config_of(sampler=shapes), MODEL, CHIPS["h100"], 1).sampling


def test_the_cache_is_that_of_the_sampler_to_the_byte_and_lone_prompts_have_a_prefix_for_every_row():
    drafts = jax.eval_shape(lambda: empty_state(config=MODEL, slots=2, rows=16, prefix_width=256, width=96))
    state = jax.eval_shape(lambda: empty_state(config=MODEL, slots=16, rows=16, prefix_width=256, width=96))
    found = sampling_of(rows_per_prefix=(1, 8))  # a ring holds a tail of 32 and a reply of 64
    assert found["cache"] == size_of(state.cache) and found["prefix keys"] == size_of((state.prefix, drafts.prefix))
    assert sampling_of()["prefix keys"] < found["prefix keys"] / 3


def test_keys_that_a_call_leaves_to_the_next_are_counted_and_of_rows_where_episodes_have_turns():
    alone = jax.eval_shape(lambda: empty_state(config=MODEL, slots=2, rows=16, prefix_width=256, width=96))
    continued = jax.eval_shape(lambda: empty_state(config=MODEL, slots=2, rows=16, prefix_width=256, width=128))
    one_turn = make_plan(config_of(), MODEL, CHIPS["h100"], 1).sampling
    assert "keys of the turn before" not in one_turn
    turns = make_plan(config_of(tasks=(TaskConfig("sotopia"),)), MODEL, CHIPS["h100"], 1).sampling
    assert one_turn["cache"] == size_of(alone.cache) and one_turn["prefix keys"] == 2 * size_of(alone.prefix)
    assert turns["cache"] == turns["keys of the turn before"] == size_of(continued.cache)
    assert turns["prefix keys"] == one_turn["prefix keys"]


def test_keys_in_8_bits_take_a_quarter_of_float32_and_their_scales():
    whole, codes = sampling_of(), sampling_of(kv_dtype="int8")
    assert codes["prefix keys"] / whole["prefix keys"] == pytest.approx(
        (MODEL.head_dim + 4) / (4 * MODEL.head_dim), rel=0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": LoraConfig(rank=8)},
        {},
        {"lora": LoraConfig(rank=8), "train": dataclasses.replace(config_of().train, remat="none")},
        {"lora": LoraConfig(rank=8), "train": dataclasses.replace(config_of().train, prefix=(32,), suffix=(512,))},
    ],
    ids=["adapters", "all parameters", "without remat", "long replies"],
)
def test_the_compiled_update_needs_about_what_is_predicted(changes):
    config = config_of(**changes)
    state, base = shapes_of(config)
    lora = config.lora if config.lora.rank else None
    objective, train = make_objective(config.objective), config.train
    update = UpdateConfig(MODEL, objective, remat=train.remat, logprob_chunk=train.logprob_chunk, lora=lora)
    shapes = batch_shapes(4, 24, train.micro_batch, train.lanes, train.prefix, train.suffix)
    batch = pack([], [], jnp.zeros(0), jnp.zeros(0, bool), shapes)  # pyright: ignore[reportArgumentType]
    batch = jax.eval_shape(lambda: batch)
    optimizer = make_optimizer(config.optimizer, 10)
    compiled = make_update(update, optimizer, mesh_of((1, 1, 1)), state, base if lora else None).lower(state, batch)
    needed = compiled.compile().memory_analysis().temp_size_in_bytes
    predicted = sum(make_plan(config, MODEL, CHIPS["h100"], 1).update.values())
    assert 0.8 * needed <= predicted <= 1.7 * needed


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--chip", "abacus"], "chip=abacus: choose one of t4"),
        (["--devices", "0"], "devices=0: must be at least 1"),
        (["--devices", "3"], "does not fit 3 devices"),
        (["--model_name_or_path", "no-such-model"], "model_name_or_path=no-such-model: no such folder"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(words, text, capsys):
    assert main(["plan", "--config", "one_gpu_8b.yaml", *words]) != 0
    assert text in capsys.readouterr().err


def test_a_model_folder_says_its_own_sizes(policy_folder):
    config = config_of(model_name_or_path=str(policy_folder), dtype="bfloat16")
    found = model_of(config)
    assert (found.hidden_size, found.compute_dtype) == (32, "bfloat16")
    assert make_plan(config, found, CHIPS["t4"], 1).peak < 2**30
