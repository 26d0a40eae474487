"""An ablation's settings → the runs that it consists of, each with its complete configuration, before anything starts.

A setting that cannot work, in any arm, is found here. The hash names all that the figures depend on. Trains nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from ditto_jax.ablation.config import AblationConfig, ArmConfig
from ditto_jax.config import RunConfig
from ditto_jax.config_io import find_config, merge, read_yaml, to_plain
from ditto_jax.errors import ConfigError
from ditto_jax.sft_run import SFTConfig
from ditto_jax.strict import build

_NOT_HASHED = ("output_dir", "run_name", "model_name_or_path", "log_completions", "save_steps", "save_total_limit")


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of one arm with one seed, which begins with warm start number `warm_start`."""

    arm: str
    seed: int
    warm_start: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir) / self.config.run_name


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs, seed by seed, so that an interrupted ablation has as many of every arm; and what makes warm starts."""

    config: AblationConfig
    runs: tuple[PlannedRun, ...]
    warm_starts: tuple[SFTConfig, ...]

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir) / self.config.name

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of a hash of every setting of every run and warm start, places apart."""
        settings = [{k: v for k, v in to_plain(run.config).items() if k not in _NOT_HASHED} for run in self.runs]
        settings += [{k: v for k, v in to_plain(start).items() if k != "output_dir"} for start in self.warm_starts]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def make_plan(config: AblationConfig) -> Plan:
    """Returns the runs of an ablation. Raises ConfigError or MissingInputError for what cannot work, naming the arm."""
    base = read_yaml(find_config(config.base))
    starts = tuple(_warm_start(config, number) for number in range(config.warm_starts.count))
    runs = []
    for seed in range(config.seeds):
        start = seed % len(starts)
        for arm in config.arms:
            runs.append(PlannedRun(arm.name, seed, start, _run(config, base, arm, seed, starts[start].output_dir)))
    for run in runs[: len(config.arms)]:
        _check_comparable(config, run)
    return Plan(config, tuple(runs), starts)


def _run(config: AblationConfig, base: dict[str, Any], arm: ArmConfig, seed: int, policy: str) -> RunConfig:
    own = {
        "seed": seed,
        "model_name_or_path": policy,
        "output_dir": str(Path(config.output_dir) / config.name / "runs"),
        "run_name": f"{arm.name}-seed{seed}",
    }
    values = merge(merge(merge(base, config.setting), arm.settings), own)
    try:
        return build(RunConfig, values)
    except ConfigError as error:
        raise ConfigError(f"arms.{arm.name}: {error}") from None


def _warm_start(config: AblationConfig, number: int) -> SFTConfig:
    starts = config.warm_starts
    own = {"seed": number, "output_dir": str(Path(starts.folder) / f"seed-{number}")}
    return build(SFTConfig, merge(merge(read_yaml(find_config(starts.config)), starts.settings), own))


def _check_comparable(config: AblationConfig, run: PlannedRun) -> None:
    """Raises ConfigError unless the run is evaluated at the update where arms are compared."""
    where, train, every = f"arms.{run.arm}", run.config.train, run.config.evaluation.every
    if not run.config.evaluation.tasks:
        raise ConfigError("setting.evaluation.tasks: nothing is measured; list at least one task to compare arms on")
    step, rest = divmod(config.updates, train.updates_per_step)
    if rest:
        raise ConfigError(
            f"{where}: updates={config.updates} is no whole number of steps with "
            f"train.updates_per_step={train.updates_per_step}; set updates to {(step + 1) * train.updates_per_step}"
        )
    if step > train.max_steps:
        raise ConfigError(
            f"{where}: train.max_steps={train.max_steps} ends before updates={config.updates}; set it to {step} or more"
        )
    if step != train.max_steps and (every == 0 or step % every):
        raise ConfigError(
            f"{where}: evaluation.every={every} measures nothing at step {step}, where arms are compared "
            f"(updates={config.updates}); set a divisor of {step}"
        )
