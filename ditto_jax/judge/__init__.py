"""Judges: score rollouts and write verbal feedback about them (rollout → verdict, feedback). Never imports jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ditto_jax.judge.base import Judge
from ditto_jax.judge.config import FEEDBACK_ROLE, EndpointConfig, JudgeConfig, RoleConfig

if TYPE_CHECKING:
    from ditto_jax.judge.hub import Hub

__all__ = ["Judge", "JudgeConfig", "feedback_judge", "make_judge"]


def make_judge(config: JudgeConfig, hub: Hub | None = None) -> Judge:
    """Returns the judge that `config` describes, not yet checked or connected. hub: what the judges of a run share.

    Raises ConfigError or MissingInputError if the environment lacks what the settings name.
    """
    # Imported here so that the rules judge needs no HTTP stack, and so that tasks may import `judge.fence` freely.
    if config.kind == "openai":
        from ditto_jax.judge.openai import OpenAIJudge

        return OpenAIJudge(config, hub=hub)
    from ditto_jax.judge.rules import RulesJudge

    return RulesJudge(config)


def feedback_judge(config: JudgeConfig, endpoints: Sequence[RoleConfig]) -> JudgeConfig:
    """Returns the settings of who writes words: those of the judge, at the endpoint of the role "feedback" if any."""
    for endpoint in endpoints:
        if FEEDBACK_ROLE in endpoint.roles:
            values = {field.name: getattr(endpoint, field.name) for field in dataclasses.fields(EndpointConfig)}
            return dataclasses.replace(config, **values)
    return config
