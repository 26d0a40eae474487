"""Judges: score rollouts and write verbal feedback about them (rollout → verdict, feedback). Never imports jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ditto_jax.judge.base import Judge
from ditto_jax.judge.config import FEEDBACK_ROLE, EndpointConfig, JudgeConfig, MemberConfig, RoleConfig

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
    if config.kind == "python":
        from ditto_jax.judge.function import FunctionJudge

        return FunctionJudge(config)
    if config.kind == "ensemble":
        from ditto_jax.judge.ensemble import EnsembleJudge

        return EnsembleJudge([make_judge(_at(config, member), hub) for member in config.members])
    if config.kind == "policy":
        from ditto_jax.judge.hub import Hub
        from ditto_jax.judge.policy import PolicyJudge

        return PolicyJudge(config, hub or Hub())
    from ditto_jax.judge.rules import RulesJudge

    return RulesJudge(config)


def feedback_judge(config: JudgeConfig, endpoints: Sequence[RoleConfig]) -> JudgeConfig:
    """Returns the settings of who writes words: those of the judge, at the endpoint of the role "feedback" if any."""
    for endpoint in endpoints:
        if FEEDBACK_ROLE in endpoint.roles:
            return _at(config, endpoint)
    return config


def _at(config: JudgeConfig, endpoint: EndpointConfig) -> JudgeConfig:
    """The settings of a judge, asked at another endpoint."""
    values = {field.name: getattr(endpoint, field.name) for field in dataclasses.fields(EndpointConfig)}
    function = endpoint.function if isinstance(endpoint, MemberConfig) else None
    return dataclasses.replace(config, members=(), function=function, **values)
