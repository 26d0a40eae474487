"""Judges: score rollouts and write verbal feedback about them (rollout → verdict, feedback). Never imports jax."""

from __future__ import annotations

from ditto_jax.judge.base import Judge
from ditto_jax.judge.config import JudgeConfig

__all__ = ["Judge", "JudgeConfig", "make_judge"]


def make_judge(config: JudgeConfig) -> Judge:
    """Returns the judge that `config` describes, not yet checked or connected.

    Raises ConfigError or MissingInputError if the environment lacks what the settings name.
    """
    # Imported here so that the rules judge needs no HTTP stack, and so that tasks may import `judge.fence` freely.
    if config.kind == "openai":
        from ditto_jax.judge.openai import OpenAIJudge

        return OpenAIJudge(config)
    from ditto_jax.judge.rules import RulesJudge

    return RulesJudge(config)
