"""An objective as data: pools that turn rewards into weights, and terms that turn weights into a loss.

rollouts with verdicts → **which rows share a baseline, which rows are trained how** → weights → update

In: `ObjectiveConfig`. Out: an `Objective`, hashable, so that it can be a static argument of a jitted function. A method
is one entry of `OBJECTIVES`; `advantages.py` and `loss.py` read the data and never a name. Nothing is computed here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, Literal, get_args

from ditto_jax.errors import ConfigError
from ditto_jax.types import ViewRole

Centre = Literal["mean", "none"]
Scale = Literal["std", "none"]
Aggregation = Literal["token_mean", "seq_mean", "seq_sum", "seq_const"]
Denominator = Literal["shared", "term"]
Truncated = Literal["drop", "keep"]


def role_names(roles: tuple[ViewRole, ...]) -> str:
    """Returns the roles as one word, such as "draft+refined_plain"; names metrics and messages."""
    return "+".join(role.name.lower() for role in roles)


def _check(holds: bool, field: str, value: Any, rule: str, works: Any) -> None:
    if not holds:
        raise ConfigError(f"objective.{field}={value!r}: {rule}; {works} works")


def _check_choice(field: str, value: str, choices: Any) -> None:
    known = get_args(choices)
    _check(value in known, field, value, f"must be one of {', '.join(known)}", known[0])


def _check_roles(owner: str, roles: tuple[ViewRole, ...]) -> None:
    if not roles or len(set(roles)) != len(roles):
        raise ConfigError(
            f"objective, {owner}: roles={roles!r} must be non-empty and distinct; (ViewRole.DRAFT,) works"
        )


def _at_least(value: float, smallest: float) -> bool:
    return math.isfinite(value) and value >= smallest


@dataclasses.dataclass(frozen=True)
class Pool:
    """Rows of one prompt whose rewards are normalised together: A = (r - centre) / (max(std, std_floor) + eps).

    A pool is dead, its weights exactly 0, with fewer than `min_size` rollouts or when its rewards differ by no more
    than `reward_tolerance`. Without centre and scale there are no statistics, A = r, and neither test applies.
    """

    roles: tuple[ViewRole, ...]
    centre: Centre = "mean"
    scale: Scale = "std"
    unbiased: bool = True  # divide squared deviations by n - 1
    eps: float = 1e-6
    std_floor: float = 0.0
    reward_tolerance: float = 1e-4
    min_size: int = 2

    def __post_init__(self):
        _check_roles(f"pool {role_names(self.roles)}", self.roles)
        _check_choice("centre", self.centre, Centre)
        _check_choice("scale", self.scale, Scale)
        _check(_at_least(self.eps, 0.0), "eps", self.eps, "must be finite and >= 0", 1e-6)
        _check(_at_least(self.std_floor, 0.0), "std_floor", self.std_floor, "must be finite and >= 0", 0.0)
        tolerance = self.reward_tolerance
        _check(_at_least(tolerance, 0.0), "reward_tolerance", tolerance, "must be finite and >= 0", 1e-4)
        smallest = 2 if self.has_statistics else 1
        _check(self.min_size >= smallest, "min_size", self.min_size, f"must be at least {smallest}", smallest)
        floor_is_used = self.scale == "std" or self.std_floor == 0.0
        _check(floor_is_used, "std_floor", self.std_floor, f"has no effect with scale={self.scale!r}", 0.0)

    @property
    def has_statistics(self) -> bool:
        """True iff a weight depends on the other rewards of the pool."""
        return self.centre != "none" or self.scale != "none"


@dataclasses.dataclass(frozen=True)
class PgClip:
    """Clipped policy gradient: max(-rho A, -clip(rho, 1 - epsilon, 1 + epsilon_high) A), rho = exp(lp - lp_anchor).

    `dual_clip` c caps the loss of a token with A < 0 at c |A|; beyond the cap its gradient is zero. None: no cap.
    """

    epsilon: float = 0.2
    epsilon_high: float = 0.28
    dual_clip: float | None = None

    def __post_init__(self):
        _check(self.epsilon >= 0.0, "epsilon", self.epsilon, "must be >= 0", 0.2)
        _check(self.epsilon_high >= 0.0, "epsilon_high", self.epsilon_high, "must be >= 0", 0.28)
        dual_is_valid = self.dual_clip is None or self.dual_clip > 1.0
        _check(dual_is_valid, "dual_clip", self.dual_clip, "must be above 1, or null for no cap", 10.0)


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """Advantage-weighted likelihood, -A lp: no ratio, no trust region."""


Kind = PgClip | Reinforce


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of the loss: `coef` times the token losses of `kind`, over the rows with one of `roles`.

    `neg_floor`: on rows whose training context is not their sampling context, tokens with A < 0 and lp_anchor below it
    get no weight, for nothing else bounds how far such a token is pushed down. None: no floor.
    """

    kind: Kind
    roles: tuple[ViewRole, ...]
    coef: float = 1.0
    neg_floor: float | None = -8.0

    def __post_init__(self):
        _check_roles(f"term on {role_names(self.roles)}", self.roles)
        rule = "must be finite and above 0; to leave a term out choose an objective without it"
        _check(self.coef > 0.0 and math.isfinite(self.coef), "coef", self.coef, rule, 1.0)
        floor_is_valid = self.neg_floor is None or (math.isfinite(self.neg_floor) and self.neg_floor < 0.0)
        _check(floor_is_valid, "neg_floor", self.neg_floor, "is a log-probability below 0, or null for none", -8.0)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Pools and terms. Building one runs `validate`, so an impossible objective does not exist.

    denominator: "shared" divides all terms by one count, so that every trained token weighs the same whichever term it
        is in; "term" gives each its own.
    aggregation: how token losses become one number; "seq_const" also divides by `response_length`.
    truncated: whether rows cut by the token budget leave statistics and loss, or stay in both.
    """

    name: str
    pools: tuple[Pool, ...]
    terms: tuple[Term, ...]
    denominator: Denominator = "shared"
    aggregation: Aggregation = "token_mean"
    response_length: int | None = None
    truncated: Truncated = "drop"

    def __post_init__(self):
        self.validate()

    @property
    def views(self) -> tuple[ViewRole, ...]:
        """The roles whose rows must exist: every role that a term trains or a pool takes statistics from."""
        parts = (*self.terms, *self.pools)
        return tuple(sorted({role for part in parts for role in part.roles}))

    @property
    def refine(self) -> bool:
        """True iff the objective needs refined rollouts, and so feedback."""
        return any(role is not ViewRole.DRAFT for role in self.views)

    def validate(self) -> None:
        """Returns nothing; raises ConfigError for a combination that cannot work."""
        _check(bool(self.terms), "terms", self.terms, "an objective needs at least one term", "a Term")
        _check_choice("denominator", self.denominator, Denominator)
        _check_choice("aggregation", self.aggregation, Aggregation)
        _check_choice("truncated", self.truncated, Truncated)
        owners: dict[ViewRole, Pool] = {}
        for pool in self.pools:
            for role in pool.roles:
                if role in owners:
                    raise ConfigError(
                        f"objective {self.name!r}: role {role.name} is in two pools, "
                        f"{role_names(owners[role].roles)} and {role_names(pool.roles)}; a row has one weight: "
                        "leave the role in one of them"
                    )
                owners[role] = pool
        for term in self.terms:
            for role in term.roles:
                if role not in owners:
                    raise ConfigError(
                        f"objective {self.name!r}: a term trains role {role.name}, but no pool gives it a weight; add "
                        f"{role.name} to a pool, such as Pool(roles=(ViewRole.{role.name},))"
                    )
        self._validate_response_length()

    def _validate_response_length(self) -> None:
        length = self.response_length
        if self.aggregation == "seq_const":
            rule = "aggregation='seq_const' divides by it; must be at least 1, such as the largest response"
            _check(length is not None and length >= 1, "response_length", length, rule, 1024)
        else:
            rule = f"has no effect with aggregation={self.aggregation!r}"
            _check(length is None, "response_length", length, rule, "null")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What a run may set about its objective. Fields have the names of the fields that they override in the preset.

    `name` picks a preset of `OBJECTIVES`; `feedback_coef` multiplies the coefficient of the terms on the hinted policy
    alone (REFINED_FB); `dual_clip` and `neg_floor` may be null. `response_length` is for aggregation "seq_const" only.
    """

    name: str = "ditto"
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    dual_clip: float | None = None
    scale: Scale = "std"
    feedback_coef: float = 1.0
    neg_floor: float | None = -8.0
    aggregation: Aggregation = "token_mean"
    std_floor: float = 0.0
    reward_tolerance: float = 1e-4
    truncated: Truncated = "drop"
    response_length: int | None = None


_JOINT = (ViewRole.DRAFT, ViewRole.REFINED_PLAIN)
_HINTED = (ViewRole.REFINED_FB,)

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        # arXiv 2402.03300, with the clip pair of 2503.14476.
        Objective(
            name="grpo",
            pools=(Pool(roles=(ViewRole.DRAFT,)),),
            terms=(Term(kind=PgClip(), roles=(ViewRole.DRAFT,)),),
        ),
        # arXiv 2605.20506: L_group over drafts and refinements under the plain prompt, plus L_fb under the hinted one.
        Objective(
            name="ditto",
            pools=(Pool(roles=_JOINT), Pool(roles=_HINTED)),
            terms=(Term(kind=PgClip(), roles=_JOINT), Term(kind=PgClip(), roles=_HINTED)),
        ),
        # The paper's ablation without L_fb.
        Objective(
            name="ditto_no_fb",
            pools=(Pool(roles=_JOINT),),
            terms=(Term(kind=PgClip(), roles=_JOINT),),
        ),
    )
}


def make_objective(config: ObjectiveConfig) -> Objective:
    """Returns the preset `config.name` with the settings of `config` in place of its own.

    Raises ConfigError for an unknown name, an impossible value, or a setting that the preset has no use for.
    """
    if config.name not in OBJECTIVES:
        near = difflib.get_close_matches(config.name, OBJECTIVES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"objective.name={config.name!r}: unknown; {hint}known objectives: {', '.join(OBJECTIVES)}")
    preset = OBJECTIVES[config.name]
    if config.feedback_coef != 1.0 and not any(term.roles == _HINTED for term in preset.terms):
        raise ConfigError(
            f"objective.feedback_coef={config.feedback_coef}: objective {config.name!r} has no feedback term; "
            "leave it at 1.0 or set objective.name=ditto"
        )
    if not (config.feedback_coef > 0.0 and math.isfinite(config.feedback_coef)):
        raise ConfigError(
            f"objective.feedback_coef={config.feedback_coef}: must be finite and above 0, such as 1.0; "
            "for no feedback term set objective.name=ditto_no_fb"
        )
    return _overridden(
        preset,
        config,
        pools=tuple(_overridden(pool, config) for pool in preset.pools),
        terms=tuple(_overridden_term(term, config) for term in preset.terms),
    )


def _overridden_term(term: Term, config: ObjectiveConfig) -> Term:
    coef = term.coef * config.feedback_coef if term.roles == _HINTED else term.coef
    return _overridden(term, config, kind=_overridden(term.kind, config), coef=coef)


def _overridden(part: Any, config: ObjectiveConfig, **changes: Any) -> Any:
    """Returns `part` with `changes`, and with every other field that `config` has too taken from `config`."""
    settable = {field.name for field in dataclasses.fields(config)}
    same_named = {f.name: getattr(config, f.name) for f in dataclasses.fields(part) if f.name in settable}
    return dataclasses.replace(part, **{**same_named, **changes})
