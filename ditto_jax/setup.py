"""Config → the live parts of a run: mesh, policy, tasks, judges, engine. Everything that can be missing is found here.

Called by training and evaluation alike, so that both see the same prompts, shapes and judges. Starts nothing.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from jax.sharding import Mesh

from ditto_jax.config import MeshConfig, RunConfig, TaskConfig
from ditto_jax.engine import Engine
from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.evaluate import Judges
from ditto_jax.judge import make_judge
from ditto_jax.judge.base import Judge
from ditto_jax.policy import Policy, load_policy
from ditto_jax.prompt_lengths import require_room, room_of
from ditto_jax.prompts import LoadedTask, PromptStream, load_task
from model.partition import make_mesh

logger = logging.getLogger(__name__)

_WHERE_DATA = "fetch it and set source.path (or the variable in it, such as SOUL_DATA_DIR) to where it lies"


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run works with. `skipped` lists evaluation tasks whose optional data is absent."""

    mesh: Mesh
    policy: Policy
    engine: Engine
    judge: Judge
    judges: Judges
    evaluation: tuple[LoadedTask, ...]
    skipped: tuple[str, ...]


def mesh_of(config: MeshConfig) -> Mesh:
    """Returns the configured mesh over all devices; raises ConfigError if the sizes do not fit them."""
    try:
        return make_mesh(config.data, config.fsdp, config.tensor)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def load_tasks(configs: Sequence[TaskConfig]) -> tuple[tuple[LoadedTask, ...], tuple[str, ...]]:
    """Returns (loaded tasks, labels of optional tasks whose data is absent)."""
    loaded, skipped = [], []
    for config in configs:
        task = load_task(config)
        if task is None:
            skipped.append(config.label or config.name)
        else:
            loaded.append(task)
    return tuple(loaded), tuple(skipped)


def training_stream(config: RunConfig) -> tuple[PromptStream, tuple[str, ...]]:
    """Returns (the prompts to train on, labels of optional tasks whose data is absent)."""
    if not config.tasks:
        raise ConfigError("tasks: the run has no task to train on; list at least one under `tasks` in the YAML")
    loaded, skipped = load_tasks(config.tasks)
    if not loaded:
        raise MissingInputError(f"tasks: the data of {', '.join(skipped)} is absent; {_WHERE_DATA}")
    return PromptStream(loaded, config.seed), skipped


def assemble(config: RunConfig) -> Parts:
    """Returns the parts of a run. Raises a DittoError that says what is missing or cannot work."""
    mesh = mesh_of(config.mesh)
    evaluation, skipped = load_tasks(config.evaluation.tasks)
    if config.evaluation.tasks and not evaluation:
        raise MissingInputError(f"evaluation.tasks: the data of {', '.join(skipped)} is absent; {_WHERE_DATA}")
    policy = load_policy(
        config.model_name_or_path,
        mesh,
        param_dtype=config.param_dtype,
        compute_dtype=config.dtype,
        quantization=config.quantization,
    )
    judge = make_judge(config.judge)
    content_free = None
    if config.evaluation.with_feedback:
        content_free = make_judge(dataclasses.replace(config.judge, feedback_content="content_free"))
    if config.sampler.max_new_tokens < config.rollout.max_completion_length:
        logger.warning(
            "sampler.max_new_tokens=%d is below rollout.max_completion_length=%d: single replies end at the former",
            config.sampler.max_new_tokens,
            config.rollout.max_completion_length,
        )
    engine = Engine(
        policy.sampler(config.sampler, mesh),
        policy.chat_format,
        policy.tokenizer.decode,
        config.rollout.max_completion_length,
        config.rollout.stop_strings,
    )
    for task in evaluation:
        require_room(task.prompts, policy.chat_format, room_of(engine), "evaluation.tasks")
    return Parts(mesh, policy, engine, judge, Judges(judge, content_free), evaluation, skipped)


def require_training_room(config: RunConfig, parts: Parts, stream: PromptStream) -> None:
    """Returns nothing; raises ConfigError if a prompt that the run will train on does not fit."""
    prompts = stream.once_each(config.train.max_steps * config.rollout.prompts_per_step)
    require_room(prompts, parts.policy.chat_format, room_of(parts.engine, config.train), "tasks")
