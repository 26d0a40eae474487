"""What an ablation compares: one common setting, arms that differ from it in what they name, seeds and warm starts.

In: values from YAML and flags. Out: checked, immutable records. Which runs follow from them is `plan.py`; the settings
of a run are those of `ditto-jax train` and are checked there.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ditto_jax.errors import ConfigError
from ditto_jax.strict import is_folder_name

# What an arm may not set: it would no longer be compared like the others, or is given by arm and seed.
_NOT_OF_AN_ARM = (
    *("seed", "model_name_or_path", "output_dir", "run_name", "evaluation", "resume", "overwrite", "profile_steps"),
)


@dataclasses.dataclass(frozen=True)
class ArmConfig:
    """One method: its name, and the settings of `ditto-jax train` in which it differs from the common setting."""

    name: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not is_folder_name(self.name):
            raise ConfigError(f"arms.name={self.name!r}: give a plain folder name, for example grpo")
        for key in self.settings:
            if key in _NOT_OF_AN_ARM:
                raise ConfigError(
                    f"arms.{self.name}.settings.{key}: is the same for all arms, or given by the seed; set it under "
                    "`setting`, or leave it out"
                )


@dataclasses.dataclass(frozen=True)
class WarmStarts:
    """The policies that runs begin with: `count` of them, made by `ditto-jax sft` from `config` where absent.

    Number i is trained from scratch with seed i in `folder`/seed-i; `settings` are laid over the file `config`.
    """

    folder: str = "policies/warm_starts"
    config: str = "tiny_sft.yaml"
    count: int = 20
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.count < 1:
            raise ConfigError(f"warm_starts.count={self.count}: must be at least 1; 20 works with seeds=20")


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """What is compared: the mean score of all evaluation items, or of those of a breakdown.

    breakdown: name of a label of items, such as "order"; empty takes all items. without: its values that do not count.
    """

    breakdown: str = ""
    without: tuple[str, ...] = ()

    def __post_init__(self):
        if self.without and not self.breakdown:
            raise ConfigError(f"score.without={list(self.without)}: set score.breakdown too, for example order")


@dataclasses.dataclass(frozen=True)
class CollapseConfig:
    """When a run is said to have collapsed.

    entropy_fraction: its entropy ends below this fraction of its highest. score_drop: its last evaluation is further
    than this below its best.
    """

    entropy_fraction: float = 0.1
    score_drop: float = 0.15


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """Methods times seeds. Every run has a directory of its own, made as by `ditto-jax train`.

    base: YAML or packaged preset that all runs start from; setting: laid over it for all arms. seeds: seed s starts
    from warm start s modulo their number. updates: the number of optimiser updates at which arms are compared; samples:
    numbers of generated samples at which they are compared too. references: arms that all others are compared with
    within a seed. workers: processes that share the work.
    """

    name: str = "ablation"
    output_dir: str = "ablations"
    base: str = "quickstart.yaml"
    setting: dict[str, Any] = dataclasses.field(default_factory=dict)
    arms: tuple[ArmConfig, ...] = ()
    seeds: int = 20
    warm_starts: WarmStarts = dataclasses.field(default_factory=WarmStarts)
    updates: int = 20
    samples: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    score: ScoreConfig = dataclasses.field(default_factory=ScoreConfig)
    collapse: CollapseConfig = dataclasses.field(default_factory=CollapseConfig)
    workers: int = 1

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"arms: names {names} must be distinct and at least one; each has its own directories")
        unknown = [name for name in self.references if name not in names]
        if unknown:
            raise ConfigError(f"references: {unknown[0]!r} is no arm; the arms are {', '.join(names)}")
        if not is_folder_name(self.name):
            raise ConfigError(f"name={self.name!r}: give a plain folder name, for example my_ablation")
        for field in ("seeds", "updates", "workers"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)}: must be at least 1")
        if self.seeds % self.warm_starts.count:
            raise ConfigError(
                f"seeds={self.seeds} with warm_starts.count={self.warm_starts.count}: each warm start must serve "
                f"equally many seeds; set seeds to {-(-self.seeds // self.warm_starts.count) * self.warm_starts.count}"
            )
