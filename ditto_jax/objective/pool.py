"""A pool: which rows are normalised together, and how their rewards become weights.

Data alone; `advantages.py` reads it. One formula covers the family, A = (r - centre) / (max(std, std_floor) + eps),
and the choices of its parts are what the published methods differ in.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ditto_jax.objective.checks import at_least, check, check_choice, check_roles, role_names
from ditto_jax.types import ViewRole

Key = Literal["prompt", "batch", "parent"]
Centre = Literal["mean", "loo", "parent", "none"]
Scale = Literal["std", "batch_std", "none"]
Transform = Literal["identity", "positive_part", "success"]
Singleton = Literal["zero", "raw"]


@dataclasses.dataclass(frozen=True)
class Pool:
    """Rows whose rewards are normalised together: A = (r - centre) / (max(std, std_floor) + eps).

    A pool is dead, its weights exactly 0, with fewer than `min_size` rollouts or when its rewards differ by no more
    than `reward_tolerance`. Without centre and scale there are no statistics, A = r, and neither test applies.

    roles: rows that receive these weights. stat_roles: rows whose rewards form centre and scale; None: the same rows.
        With other rows in the statistics one of them is enough, and no test of their range applies without a scale.
    key: rows of one "prompt", of the whole "batch", or refined from one "parent" draft.
    centre: "mean", "loo" (mean of the others), "parent" (reward of the row's draft) or "none".
    scale: "std" of the pool, "batch_std" of all rows in statistics of the batch, or "none".
    transform, before anything else: "positive_part" is max(r, 0), "success" is 1 at `success_threshold` and above, 0
        below.
    singleton: the weight in a pool of one; "raw" (the released code of arXiv 2605.20506) is r / (1 + eps).
    clip: weights are limited to [-clip, clip]. None: no limit.
    """

    roles: tuple[ViewRole, ...]
    centre: Centre = "mean"
    scale: Scale = "std"
    unbiased: bool = True  # divide squared deviations by n - 1
    eps: float = 1e-6
    std_floor: float = 0.0
    reward_tolerance: float = 1e-4
    min_size: int = 2
    stat_roles: tuple[ViewRole, ...] | None = None
    key: Key = "prompt"
    transform: Transform = "identity"
    success_threshold: float = 1.0
    singleton: Singleton = "zero"
    clip: float | None = None

    def __post_init__(self):
        check_roles(f"pool {role_names(self.roles)}", self.roles)
        check_choice("centre", self.centre, Centre)
        check_choice("scale", self.scale, Scale)
        check_choice("key", self.key, Key)
        check_choice("transform", self.transform, Transform)
        check_choice("singleton", self.singleton, Singleton)
        check(at_least(self.eps, 0.0), "eps", self.eps, "must be finite and >= 0", 1e-6)
        check(at_least(self.std_floor, 0.0), "std_floor", self.std_floor, "must be finite and >= 0", 0.0)
        tolerance = self.reward_tolerance
        check(at_least(tolerance, 0.0), "reward_tolerance", tolerance, "must be finite and >= 0", 1e-4)
        smallest = 2 if self.has_statistics else 1
        check(self.min_size >= smallest, "min_size", self.min_size, f"must be at least {smallest}", smallest)
        floor_is_used = self.scale != "none" or self.std_floor == 0.0
        check(floor_is_used, "std_floor", self.std_floor, f"has no effect with scale={self.scale!r}", 0.0)

    @property
    def counted_roles(self) -> tuple[ViewRole, ...]:
        """The roles whose rewards form centre and scale."""
        return self.stat_roles or self.roles

    @property
    def has_statistics(self) -> bool:
        """True iff a weight depends on the other rewards of the pool."""
        return self.centre != "none" or self.scale != "none"
