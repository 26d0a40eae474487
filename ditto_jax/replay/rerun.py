"""A past run → a trainer that stands before one of its steps, in memory: same code, same keys, nothing written.

checkpoint → **trainer** → the step again

The trainer is the run's own (`loop.Trainer`), over settings in which only what asks or writes is replaced: the judge by
the record, partners behind endpoints by a copy of their kept replies, the run directory by an empty folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ditto_jax.config import EvalConfig, RunConfig
from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.judge.cache import FILE_NAME
from ditto_jax.judge.config import FEEDBACK_ROLE, JudgeConfig, PartnerConfig, ShadowConfig
from ditto_jax.judge.desk import JudgeDesk
from ditto_jax.objective import Objective, make_objective
from ditto_jax.replay.judge import RecordedJudge
from ditto_jax.replay.past import Past, Row
from ditto_jax.rollouts.pipeline import overlap_of
from ditto_jax.runs.checkpoint import Checkpoints
from ditto_jax.setup import assemble, require_training_room, training_stream
from ditto_jax.trainer import Trainer

PartnerT = TypeVar("PartnerT", bound=PartnerConfig)


def open_trainer(past: Past, scratch: Path, objective: Objective | None = None) -> Trainer:
    """Returns the trainer of a past run, before its first step. scratch: an empty folder that it may fill. objective:
    in place of the one that the settings name, for a run that was trained so.

    Raises a DittoError for data, a model or kept replies that are not there any more.
    """
    config = _in_memory(past, scratch)
    stream, _ = training_stream(config)
    # Which judge was asked decides whether prompts were streamed, and here none is asked.
    overlap = overlap_of(past.config, objective or make_objective(past.config.objective), stream.tasks)
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, overlap=overlap))
    parts = assemble(config, stream.tasks)
    parts = dataclasses.replace(parts, judge=JudgeDesk(RecordedJudge(past.rows), {}, {}))
    return Trainer(config, parts, require_training_room(config, parts, stream), objective)


def _in_memory(past: Past, scratch: Path) -> RunConfig:
    """Words are taken as recorded, so nothing is shuffled again; a record that says nothing is no judge that fails."""
    config, copies = past.config, _Copies(past, scratch)
    endpoints = [
        dataclasses.replace(copies.partner(endpoint), roles=roles)
        for endpoint in config.endpoints
        if (roles := tuple(role for role in endpoint.roles if role != FEEDBACK_ROLE))
    ]
    return dataclasses.replace(
        config,
        output_dir=str(scratch),
        tasks=tuple(dataclasses.replace(task, judge={}) for task in config.tasks),
        judge=JudgeConfig(max_error_rate=1.0),
        shadow=ShadowConfig(),
        partner=copies.partner(config.partner),
        endpoints=tuple(endpoints),
        evaluation=EvalConfig(),
        sampler=dataclasses.replace(config.sampler, warm_up=False),
        profile_steps=(),
        overwrite=False,
        resume="auto",
    )


class _Copies:
    """Caches of kept replies, copied: SQLite writes beside a file that is only read."""

    def __init__(self, past: Past, scratch: Path):
        self._past = past
        self._scratch = scratch
        self._made: dict[Path, Path] = {}

    def partner(self, config: PartnerT) -> PartnerT:
        """Returns settings under which a partner says what it said then, and asks nobody."""
        if config.kind != "openai":
            return config
        path = self._past.run.path / FILE_NAME
        if config.cache_path is not None:
            path = Path(os.path.expandvars(os.path.expanduser(config.cache_path)))
        if config.cache == "off" or not path.is_file():
            raise MissingInputError(
                f"{config.where}.model={config.model}: what it said was not kept (cache={config.cache}, {path}), so "
                "that episodes with it cannot be played again; runs with cache=read-write or scripted partners can"
            )
        return dataclasses.replace(config, cache="replay", cache_path=str(self._copy(path)))

    def _copy(self, path: Path) -> Path:
        if path not in self._made:
            self._made[path] = target = self._scratch / f"replies-{len(self._made)}.sqlite"
            shutil.copyfile(path, target)
            with contextlib.suppress(FileNotFoundError):  # what SQLite has not moved into the file yet
                shutil.copyfile(f"{path}-wal", f"{target}-wal")
        return self._made[path]


def restore(trainer: Trainer, past: Past, checkpoint: int) -> None:
    """Puts the trainer behind the step of a checkpoint; 0 leaves it where it is. Raises RunDirectoryError."""
    if checkpoint:
        with contextlib.closing(Checkpoints(past.run.checkpoints, keep=None)) as saved:
            trainer.restore(*saved.restore(trainer.state, checkpoint))


def require_same_prompts(trainer: Trainer, step: int, rows: Sequence[Row]) -> None:
    """Returns nothing; raises DataError if the tasks do not give the step the prompts of its recorded `rows`."""
    count = trainer.config.rollout.prompts_per_step
    now = [prompt.id for prompt in trainer.stream.at((step - 1) * count, count)]
    then = {int(row["prompt_index"]): str(row["prompt_id"]) for row in rows}
    for index, known in sorted(then.items()):
        if index >= len(now) or now[index] != known:
            found = now[index] if index < len(now) else "nothing"
            raise DataError(
                f"prompt {index} of step {step} was {known} and would be {found} now: the data of the run have "
                "changed; restore the files or the version of the task that it was trained on"
            )
