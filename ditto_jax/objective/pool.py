"""A pool: which rows are normalised together, and how their rewards become weights.

Data alone; `advantages.py` reads it. One formula covers the family, A = (r - centre) / (max(std, std_floor) + eps),
and the choices of its parts are what the published methods differ in.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ditto_jax.errors import ConfigError
from ditto_jax.objective.checks import Roles, at_least, check, check_choice, check_roles, role_names
from ditto_jax.types import ViewRole

Key = Literal["prompt", "batch", "parent"]
Centre = Literal["mean", "loo", "parent", "none"]
Scale = Literal["std", "batch_std", "none"]
Transform = Literal["identity", "positive_part", "success"]
Singleton = Literal["zero", "raw"]
CreditOf = Literal["reward", "gain"]


@dataclasses.dataclass(frozen=True)
class Pool:
    """Rows whose rewards are normalised together: A = (r - centre) / (max(std, std_floor) + eps).

    A pool is dead, its weights exactly 0, with fewer than `min_size` rollouts or when its rewards differ by no more
    than `reward_tolerance`. Where nothing is compared within the pool (A = r, or A = r - r_parent) neither test
    applies.

    roles: rows that receive these weights. stat_roles: rows whose rewards form centre and scale; None: the same rows.
        With other rows in the statistics one of them is enough, and no test of their range applies without a scale.
    key: rows of one "prompt", of the whole "batch", or of one "parent" draft (itself and the attempts that answer to
        it).
    centre: "mean", "loo" (mean of the others), "parent" (reward of the row's draft) or "none".
    scale: "std" of the pool, "batch_std" of all its rows in statistics of the batch, or "none".
    credit: share of what the attempts after feedback brought that is added to the reward of their draft: of the
        "reward" r1 (the return of arXiv 2602.02482, discount 0.1), or of the "gain" max(r1 - r0, 0) (HeRL, 0.05).
    transform, after that and before anything else: "positive_part" is max(r, 0), "success" is 1 at
        `success_threshold` and above, 0 below.
    singleton: the weight in a pool of one; "raw" (the released code of arXiv 2605.20506) is r / (1 + eps).
    clip: weights are limited to [-clip, clip]. None: no limit.
    """

    roles: Roles
    centre: Centre = "mean"
    scale: Scale = "std"
    unbiased: bool = True  # divide squared deviations by n - 1
    eps: float = 1e-6
    std_floor: float = 0.0
    reward_tolerance: float = 1e-4
    min_size: int = 2
    stat_roles: Roles | None = None
    key: Key = "prompt"
    transform: Transform = "identity"
    success_threshold: float = 1.0
    singleton: Singleton = "zero"
    clip: float | None = None
    credit: float = 0.0
    credit_of: CreditOf = "reward"

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
        rule = f"must be at least {smallest}: a pool of one has nothing to compare" if smallest == 2 else "must be >= 1"
        check(self.min_size >= smallest, "min_size", self.min_size, rule, smallest)
        floor_is_used = self.scale != "none" or self.std_floor == 0.0
        check(floor_is_used, "std_floor", self.std_floor, f"has no effect with scale={self.scale!r}", 0.0)
        clip_is_valid = self.clip is None or (self.clip > 0.0 and math.isfinite(self.clip))
        check(clip_is_valid, "clip", self.clip, "must be finite and above 0, or null for no limit", 5.0)
        check(math.isfinite(self.success_threshold), "success_threshold", self.success_threshold, "must be finite", 1.0)
        check_choice("credit_of", self.credit_of, CreditOf)
        check(at_least(self.credit, 0.0), "credit", self.credit, "must be finite and >= 0", 0.1)
        self._check_statistics()

    def _check_statistics(self) -> None:
        """Raises ConfigError where statistics and the rows that they are for do not fit."""
        if self.stat_roles is not None:
            check_roles(f"stat_roles of pool {role_names(self.roles)}", self.stat_roles)
        if self.needed < self.min_size and self.min_size > 2:
            raise ConfigError(
                f"objective.min_size={self.min_size}: has no effect in pool {role_names(self.roles)}, whose weights "
                "are not compared among themselves; 2 works"
            )
        compares = self.has_statistics and self.own_statistics
        raw_is_used = self.singleton == "zero" or compares
        check(raw_is_used, "singleton", self.singleton, "has no effect where rows are not compared", "zero")
        if self.centre == "parent" and ViewRole.DRAFT in self.roles:
            raise ConfigError(
                f"objective.centre='parent': pool {role_names(self.roles)} has drafts, which answer to no other; give "
                "them a pool of their own, or set centre='mean'"
            )
        draft_credit = self.credit == 0.0 or ViewRole.DRAFT in self.roles
        check(draft_credit, "credit", self.credit, "goes to drafts, which are not in this pool", 0.0)
        if self.has_statistics and self.key == "parent" and len(_origins(self.counted_roles)) < self.needed:
            raise ConfigError(
                f"objective.key='parent': pool {role_names(self.roles)} would hold one rollout a draft, and a pool of "
                "one has nothing to compare; key='prompt', or centre='parent' with scale='none', works"
            )

    @property
    def counted_roles(self) -> tuple[ViewRole, ...]:
        """The roles whose rewards form centre and scale."""
        return self.stat_roles or self.roles

    @property
    def has_statistics(self) -> bool:
        """True iff a weight depends on the other rewards of the pool."""
        return self.centre in ("mean", "loo") or self.scale != "none"

    @property
    def own_statistics(self) -> bool:
        """True iff the rows that receive weights are those that form the statistics."""
        return set(self.counted_roles) == set(self.roles)

    @property
    def needed(self) -> int:
        """Rollouts that the statistics of an instance take."""
        return self.min_size if self.has_statistics and self.own_statistics else 1

    @property
    def needs_range(self) -> bool:
        """True iff an instance whose rewards are all equal has nothing to say."""
        return self.scale != "none" or (self.has_statistics and self.own_statistics)


def _origins(roles: tuple[ViewRole, ...]) -> set[str]:
    """The kinds of rollout behind the rows of `roles`."""
    attempts = (ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB)
    kinds = {"attempt" if role in attempts else "draft" for role in roles if role is not ViewRole.REFLECTION}
    return kinds | ({"reflection"} if ViewRole.REFLECTION in roles else set())
