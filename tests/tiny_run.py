"""A run of three small steps: a policy of a few thousand parameters, its configuration, and what runs are compared
by.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from ditto_jax.config import EvalConfig, RolloutConfig, RunConfig, SourceConfig, TaskConfig, TrainConfig
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.loop import train
from ditto_jax.objective import ObjectiveConfig
from ditto_jax.runs.metrics import is_timing
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.sft import LengthBuckets, StageConfig
from ditto_jax.sft_run import ModelSizes, SFTConfig, run_sft
from ditto_jax.text.tokenizer_training import TokenizerConfig
from ditto_jax.update.state import OptimizerConfig

# Stories of three sentences and two containers: half of all well-formed answers are right.
OPTIONS: Mapping[str, Any] = {
    "vocabulary": "small",
    "prompt_style": "compact",
    "agents_min": 2,
    "agents_max": 2,
    "containers_min": 2,
    "containers_max": 2,
    "rooms": 1,
    "chapters": [1],
    "communication": 0.0,
    "noise": 0.0,
    "orders": [0, 1],
}
STEPS = 3
COMMAND = ["ditto-jax", "train", "--config", "tiny.yaml"]


def story_task(limit: int = 64, split: Literal["train", "test"] = "train", **changes: Any) -> TaskConfig:
    """Returns the task with `limit` generated examples; further keywords are fields of TaskConfig."""
    source = SourceConfig(split=split, limit=limit, seed=1)
    return TaskConfig(**{"name": "hitom", "source": source, "options": dict(OPTIONS), **changes})


def file_task(path: str, optional: bool = False, **changes: Any) -> TaskConfig:
    """Returns the task on the public file or folder at `path`."""
    source = SourceConfig(kind="files", path=path, split="test", optional=optional)
    return TaskConfig(**{"name": "hitom", "source": source, "options": {"prompt_style": "compact"}, **changes})


def sft_config(output_dir: Path, steps: int = 60, **changes: Any) -> SFTConfig:
    """Returns a supervised run of two stages; the second has a tenth of the steps."""
    stage = StageConfig(
        name="skill",
        steps=steps,
        tasks=(story_task(1),),
        optimizer=OptimizerConfig(learning_rate=5e-3, beta2=0.98),  # constant: stages share one compiled program
        stories_per_step=8,
        questions_per_story=2,
        feedback_fraction=0.3,
    )
    habit = dataclasses.replace(
        stage, name="habit", steps=max(1, steps // 10), careful_unaided=0.0, content_free_fraction=0.5
    )
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "model": ModelSizes(
            hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16
        ),
        "tokenizer": TokenizerConfig(vocab_size=420, examples=40),
        "stages": (stage, habit),
        "shapes": LengthBuckets(prefix=(96,), suffix=(128,), lanes=2),
    }
    return SFTConfig(**{**values, **changes})


def train_policy(folder: Path) -> Path:
    """Returns `folder`, with a policy that mostly answers in the right form."""
    with contextlib.redirect_stdout(io.StringIO()):
        return run_sft(sft_config(folder), ["ditto-jax", "sft"])


def train_config(steps: int) -> TrainConfig:
    """Returns the update, in one micro-batch as long as the rows of a prompt fill no more than four lanes."""
    return TrainConfig(max_steps=steps, micro_batch=8, prefix=(96,), suffix=(128,), lanes=4)


def run_config(policy: Path, output_dir: Path, **changes: Any) -> RunConfig:
    """Returns a run of STEPS steps with two prompts of four drafts; keywords are fields of RunConfig."""
    values: dict[str, Any] = {
        "model_name_or_path": str(policy),
        "output_dir": str(output_dir),
        "run_name": "tiny",
        "seed": 7,
        "tasks": (story_task(),),
        "rollout": RolloutConfig(prompts_per_step=2, num_generations=4, max_completion_length=32),
        "sampler": SamplerShapes(prefix=(96,), tail=(1, 48), max_new_tokens=32, max_rows=32, chunk=32),
        "objective": ObjectiveConfig(name="ditto"),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "train": train_config(STEPS),
        "evaluation": EvalConfig(tasks=(story_task(8, "test"),), bootstrap=50),
        "save_steps": 1,
    }
    return RunConfig(**{**values, **changes})


def train_quietly(config: RunConfig) -> RunDirectory:
    """Trains without a word on the terminal; returns the run directory."""
    with contextlib.redirect_stdout(io.StringIO()):
        return RunDirectory(train(config, COMMAND))


def status(run: RunDirectory) -> dict[str, Any]:
    """Returns STATUS.json."""
    return json.loads((run.path / "STATUS.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns relative path → content of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def learned(run: RunDirectory) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl without what depends on the machine."""
    return [{name: value for name, value in row.items() if not is_timing(name)} for row in run.read_metrics()]


def contents(run: RunDirectory) -> dict[int, list[dict[str, Any]]]:
    """Returns step → the rollouts recorded for it."""
    return {step: run.read_rollouts(step) for step in run.rollout_steps()}


def saved_arrays(run: RunDirectory) -> list[np.ndarray]:
    """Returns every array of the newest checkpoint, whatever devices it was written from."""
    newest = max(int(folder.name) for folder in run.checkpoints.iterdir() if folder.name.isdigit())
    state = run.checkpoints.resolve() / str(newest) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(state).item_metadata.tree  # type: ignore[union-attr]
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return jax.tree.leaves(reader.restore(state, restore_args=whole))


def assert_same_run(run: RunDirectory, other: RunDirectory) -> None:
    """Asserts that two runs learned the same: metrics, rollouts, evaluations and training state, bit for bit."""
    assert learned(run) == learned(other)
    assert contents(run) == contents(other)
    assert read_evaluations(run) == read_evaluations(other)
    for mine, theirs in zip(saved_arrays(run), saved_arrays(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)
