"""A small model and run settings for tests of plans, and the presets with the commands that their comments give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ditto_jax.config import MeshConfig, RolloutConfig, RunConfig, TrainConfig
from ditto_jax.config_io import load_config
from ditto_jax.plan.memory import model_of
from ditto_jax.plan.plan import Plan, make_plan
from ditto_jax.plan.topology import find_topology
from ditto_jax.sampling.slot_shapes import SamplerShapes
from model.config import ModelConfig

PRESETS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))
PLANNED = {path.stem: path for path in PRESETS if "# ditto-jax plan" in path.read_text()}
SOUL_ROWS = {"v5p-8": 32, "v5p-32": 128, "v5p-64": 256, "v5p-128": 512}  # sampler rows of the documents' table
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


def config_of(**changes: Any) -> RunConfig:
    """Settings of a run of MODEL on one device."""
    values: dict[str, Any] = {
        "rollout": RolloutConfig(prompts_per_step=4, num_generations=8, max_completion_length=64),
        "sampler": SamplerShapes(prefix=(256,), tail=(32,), max_new_tokens=64, max_rows=16, rows_per_prefix=(8,)),
        "mesh": MeshConfig(1, 1, 1),
        "train": TrainConfig(micro_batch=2, lanes=4, prefix=(256,), suffix=(128,), remat="full", logprob_chunk=256),
    }
    return RunConfig(**{**values, **changes})


def command_of(preset: Path) -> list[str]:
    """The words of the plan command that a preset's comment gives."""
    (line,) = re.findall(r"^# ditto-jax (plan .*)$", preset.read_text(), flags=re.MULTILINE)
    words = line.split()
    assert words[words.index("--config") + 1] == preset.name
    return words


def plan_of(preset: Path) -> Plan:
    """The plan that this command prints."""
    words = command_of(preset)
    config, _ = load_config(RunConfig, [str(preset)])
    return make_plan(config, model_of(config), find_topology(words[words.index("--topology") + 1]))
