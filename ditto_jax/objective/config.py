"""What a run's configuration says about its objective: which entry of the table, and what it changes of it."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any

from ditto_jax.errors import ConfigError
from ditto_jax.objective.objective import Objective, Truncated
from ditto_jax.objective.pool import Scale
from ditto_jax.objective.table import OBJECTIVES
from ditto_jax.objective.term import Aggregation, Term
from ditto_jax.types import ViewRole

_HINTED = (ViewRole.REFINED_FB,)


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
    return _overridden(term, config, loss=_overridden(term.loss, config), coef=coef)


def _overridden(part: Any, config: ObjectiveConfig, **changes: Any) -> Any:
    """Returns `part` with `changes`, and with every other field that `config` has too taken from `config`."""
    settable = {field.name for field in dataclasses.fields(config)}
    same_named = {f.name: getattr(config, f.name) for f in dataclasses.fields(part) if f.name in settable}
    return dataclasses.replace(part, **{**same_named, **changes})
