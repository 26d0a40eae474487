"""What a run's configuration says about its objective: an entry of the table or one of its own, and what it changes.

YAML or flags → `ObjectiveConfig` → **an `Objective`** → pools, views, passes, loss

A setting that is left at "preset" keeps what the entry says. Each setting reaches the parts that have a use for it; one
that no part has a use for is refused. No name of a method is read here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ditto_jax.errors import ConfigError
from ditto_jax.objective.losses import Kl
from ditto_jax.objective.objective import (
    Anchor,
    Author,
    CountedRows,
    Denominator,
    Kept,
    Objective,
    Seen,
    TeacherWeights,
    Truncated,
)
from ditto_jax.objective.pool import Pool, Scale, Singleton
from ditto_jax.objective.table import OBJECTIVES
from ditto_jax.objective.term import Aggregation, Correction, CrossWeight, Mismatch, Term
from ditto_jax.types import ViewRole

Preset = Literal["preset"]  # as the entry has it
PRESET: Preset = "preset"

_HINTED = (ViewRole.REFINED_FB,)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What a run may set about its objective. Settings have the names of the fields that they override.

    name: an entry of `OBJECTIVES`; with `terms` (and `pools`) it names an objective of the run's own.
    feedback_coef multiplies the coefficient of terms on the hinted policy alone (REFINED_FB), teacher_coef that of
    terms with a teacher. mismatch_low, mismatch_high: limits of `mismatch`. teacher, teacher_rate: whose weights, and
    the rate of a moving average. words, reflection_sees, keep, draft_feedback: see `Refinement`. dual_clip,
    neg_floor, token_floor, clip and is_clip may be null for none, mismatch "none".
    """

    name: str = "ditto"
    pools: tuple[Pool, ...] = ()
    terms: tuple[Term, ...] = ()
    epsilon: float | Preset = PRESET
    epsilon_high: float | Preset = PRESET
    dual_clip: float | Preset | None = PRESET
    gamma: float | Preset = PRESET
    alpha: float | Preset = PRESET
    top_k: int | Preset = PRESET
    tail: bool | Preset = PRESET
    is_clip: float | Preset | None = PRESET
    scale: Scale | Preset = PRESET
    unbiased: bool | Preset = PRESET
    std_floor: float | Preset = PRESET
    reward_tolerance: float | Preset = PRESET
    singleton: Singleton | Preset = PRESET
    clip: float | Preset | None = PRESET
    feedback_coef: float = 1.0
    teacher_coef: float = 1.0
    neg_floor: float | Preset | None = PRESET
    token_floor: float | Preset | None = PRESET
    skip_first: int | Preset = PRESET
    cross_is: CrossWeight | Preset = PRESET
    mismatch: Correction | Literal["none"] | Preset = PRESET
    mismatch_low: float | Preset = PRESET
    mismatch_high: float | Preset = PRESET
    aggregation: Aggregation | Preset = PRESET
    response_length: int | Preset | None = PRESET
    denominator: Denominator | Preset = PRESET
    counted_rows: CountedRows | Preset = PRESET
    truncated: Truncated | Preset = PRESET
    overlong_buffer: int | Preset | None = PRESET
    anchor: Anchor | Preset = PRESET
    per_prompt_equal: bool | Preset = PRESET
    teacher: TeacherWeights | Preset = PRESET
    teacher_rate: float | Preset = PRESET
    words: Author | Preset = PRESET
    reflection_sees: Seen | Preset = PRESET
    keep: Kept | Preset = PRESET
    draft_feedback: str = PRESET


_POOL_USES: Mapping[str, Callable[[Pool], bool]] = {
    "scale": lambda pool: pool.has_statistics,
    "unbiased": lambda pool: pool.has_statistics,
    "std_floor": lambda pool: pool.has_statistics,
    "reward_tolerance": lambda pool: pool.has_statistics,
    "singleton": lambda pool: pool.has_statistics and pool.own_statistics,
    "clip": lambda pool: True,
}
_TERM_USES: Mapping[str, Callable[[Objective, Term], bool]] = {
    "neg_floor": lambda objective, term: term.uses_rewards and _is_cross(objective, term),
    "token_floor": lambda objective, term: _is_cross(objective, term),
    "cross_is": lambda objective, term: _is_cross(objective, term),
    "skip_first": lambda objective, term: True,
}
_MISMATCH = ("mismatch", "mismatch_low", "mismatch_high")
_LOSS = ("epsilon", "epsilon_high", "dual_clip", "gamma", "alpha", "top_k", "tail", "is_clip")
_OBJECTIVE = ("denominator", "counted_rows", "aggregation", "truncated", "anchor", "per_prompt_equal")
_LENGTHS = ("response_length", "overlong_buffer")
_REFINEMENT = ("words", "reflection_sees", "keep", "draft_feedback")


def make_objective(config: ObjectiveConfig) -> Objective:
    """Returns the entry `config.name`, or the objective that `config.terms` spell out, with the settings of `config`.

    Raises ConfigError for an unknown name, an impossible value, or a setting that the objective has no use for.
    """
    base = _own(config) if config.terms or config.pools else _entry(config.name)
    settings = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != PRESET and field.name not in ("name", "pools", "terms")
    }
    coefs = {name: settings.pop(name) for name in ("feedback_coef", "teacher_coef")}
    used: set[str] = set()
    pools = tuple(_pool(pool, settings, used) for pool in base.pools)
    terms = tuple(_term(term, base, settings, used) for term in base.terms)
    changes: dict[str, Any] = {name: settings[name] for name in _OBJECTIVE if name in settings}
    changes |= _lengths(base, terms, settings)
    used |= {*_OBJECTIVE, *_LENGTHS, *_REFINEMENT}
    refinement = {name: settings[name] for name in _REFINEMENT if name in settings}
    if any(isinstance(term.loss, Kl) for term in terms):
        used |= {"teacher", "teacher_rate"}
        changes["teacher"] = _teacher(base, settings)
    _check_used(config, settings, used)
    _check_coefs(config, base)
    return dataclasses.replace(
        base,
        pools=pools,
        terms=tuple(_with_coef(term, coefs) for term in terms),
        refinement=dataclasses.replace(base.refinement, **refinement),
        **changes,
    )


def _entry(name: str) -> Objective:
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(name, OBJECTIVES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"objective.name={name!r}: unknown; {hint}known objectives: {', '.join(OBJECTIVES)}; or give your own terms"
        )
    return OBJECTIVES[name]


def _own(config: ObjectiveConfig) -> Objective:
    """The objective that the run spells out; settings that its parts need to be valid are applied at once."""
    if config.name in OBJECTIVES:
        raise ConfigError(
            f"objective.name={config.name!r}: the table has an entry of that name, so an objective with terms of its "
            f"own needs another; my_{config.name} works"
        )
    settings = {name: getattr(config, name) for name in (*_OBJECTIVE, *_LENGTHS)}
    refinement = {name: getattr(config, name) for name in _REFINEMENT}
    plain = Objective.__dataclass_fields__["refinement"].default
    return Objective(
        config.name,
        config.pools,
        config.terms,
        refinement=dataclasses.replace(plain, **{k: v for k, v in refinement.items() if v != PRESET}),
        **{name: value for name, value in settings.items() if value != PRESET},
    )


def _is_cross(objective: Objective, term: Term) -> bool:
    return any(objective.is_cross(role) for role in term.roles)


def _pool(pool: Pool, settings: Mapping[str, Any], used: set[str]) -> Pool:
    mine = {name: settings[name] for name, uses in _POOL_USES.items() if name in settings and uses(pool)}
    used.update(mine)
    return dataclasses.replace(pool, **mine)


def _term(term: Term, base: Objective, settings: Mapping[str, Any], used: set[str]) -> Term:
    of_loss = {name: settings[name] for name in _LOSS if name in settings and hasattr(term.loss, name)}
    mine = {name: settings[name] for name, uses in _TERM_USES.items() if name in settings and uses(base, term)}
    used.update(of_loss, mine)
    if any(name in settings for name in _MISMATCH) and ViewRole.CRITIQUE not in term.roles:
        mine["mismatch"] = _mismatch(term, settings, used)
    return dataclasses.replace(term, loss=dataclasses.replace(term.loss, **of_loss), **mine)


def _mismatch(term: Term, settings: Mapping[str, Any], used: set[str]) -> Mismatch | None:
    correction = settings.get("mismatch")
    used.add("mismatch")
    if correction == "none" or (correction is None and term.mismatch is None):
        return None
    used.update(("mismatch_low", "mismatch_high"))
    names = {"mismatch": "correction", "mismatch_low": "low", "mismatch_high": "high"}
    changes = {field: settings[name] for name, field in names.items() if name in settings}
    return dataclasses.replace(term.mismatch or Mismatch(), **changes)


def _teacher(base: Objective, settings: Mapping[str, Any]) -> Any:
    names = {"teacher": "weights", "teacher_rate": "rate"}
    changes = {field: settings[name] for name, field in names.items() if name in settings}
    if changes.get("weights", "ema") != "ema":
        changes.setdefault("rate", 0.05)  # the entry's rate was that of a moving average
    return dataclasses.replace(base.teacher, **changes)


def _lengths(base: Objective, terms: tuple[Term, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The lengths as set, or the entry's where the settings still leave a use for them."""
    penalised = settings.get("truncated", base.truncated) == "penalise"
    aggregation = settings.get("aggregation", base.aggregation)
    constant = "seq_const" in {aggregation, *(term.aggregation for term in terms)}
    kept = {
        "response_length": base.response_length if penalised or constant else None,
        "overlong_buffer": base.overlong_buffer if penalised else None,
    }
    return {name: settings.get(name, kept[name]) for name in _LENGTHS}


def _check_used(config: ObjectiveConfig, settings: Mapping[str, Any], used: set[str]) -> None:
    for name, value in settings.items():
        if name not in used:
            raise ConfigError(
                f"objective.{name}={value!r}: objective {config.name!r} has no use for it; leave it out, or choose an "
                "objective that has"
            )


def _check_coefs(config: ObjectiveConfig, base: Objective) -> None:
    parts: tuple[tuple[str, str, Callable[[Term], bool], str], ...] = (
        ("feedback_coef", "feedback", lambda term: term.roles == _HINTED, "ditto"),
        ("teacher_coef", "teacher", lambda term: isinstance(term.loss, Kl), "sdpo"),
    )
    for name, kind, matches, example in parts:
        value = getattr(config, name)
        if value != 1.0 and not any(map(matches, base.terms)):
            raise ConfigError(
                f"objective.{name}={value}: objective {config.name!r} has no {kind} term; "
                f"leave it at 1.0 or set objective.name={example}"
            )
        if not (value > 0.0 and math.isfinite(value)):
            raise ConfigError(
                f"objective.{name}={value}: must be finite and above 0, such as 1.0; to leave the {kind} term out "
                "choose an objective without it, such as ditto_no_fb or grpo"
            )


def _with_coef(term: Term, coefs: Mapping[str, float]) -> Term:
    coef = term.coef
    coef *= coefs["feedback_coef"] if term.roles == _HINTED else 1.0
    coef *= coefs["teacher_coef"] if isinstance(term.loss, Kl) else 1.0
    return dataclasses.replace(term, coef=coef)
