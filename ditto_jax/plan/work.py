"""What the steps and evaluations of a run come to: rollouts and tokens, on average.

configuration, assumptions → **rollouts, tokens** → seconds, calls of judges

Knows no device. Gates end where the configuration says; what is asked about until then is an assumption. Evaluations
count the examples that their sources are limited to; a source without a limit is named as not counted.
"""

from __future__ import annotations

import dataclasses
import math

from ditto_jax.config import EvalConfig, RunConfig, TaskConfig
from ditto_jax.errors import ConfigError
from ditto_jax.objective import make_objective
from ditto_jax.plan.assumptions import Assumptions
from ditto_jax.types import ViewRole

_DRAFTS = (ViewRole.DRAFT, ViewRole.DRAFT_FB)
_REFINED = (ViewRole.REFINED_PLAIN, ViewRole.REFINED_FB)
_UNDER_WORDS = (ViewRole.DRAFT_FB, ViewRole.REFINED_FB)


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Of one task, mean of a step: drafts, those that get words, and second attempts."""

    task: TaskConfig
    drafts: float
    asked: float
    refined: float


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one step, mean over the run. prompt, reply, words: tokens of one. trained: tokens that an update runs, each
    prompt once; trained_replies: of these in replies.
    """

    rollouts: tuple[Rollouts, ...]
    prompts: float
    prompt: float
    reply: float
    words: float
    trained: float
    trained_replies: float

    @property
    def drafts(self) -> float:
        return sum(one.drafts for one in self.rollouts)

    @property
    def refined(self) -> float:
        return sum(one.refined for one in self.rollouts)

    @property
    def prefilled(self) -> float:
        """Tokens of prompts that sampling runs: of each prompt once, and what words add to it."""
        return self.prompts * self.prompt + self.refined * self.words

    @property
    def sampled(self) -> float:
        """Tokens that are drawn."""
        return (self.drafts + self.refined) * self.reply


def work_of(config: RunConfig, assume: Assumptions) -> Work:
    """Returns what a mean step of the run comes to. Raises ConfigError if it trains on nothing."""
    if not config.tasks:
        raise ConfigError("tasks: the run has no task to train on; list at least one under `tasks` in the YAML")
    objective, rollout = make_objective(config.objective), config.rollout
    drafts = rollout.prompts_per_step * rollout.num_generations
    total = sum(task.weight for task in config.tasks)
    rollouts = []
    for task in config.tasks:
        share = task.weight / total
        asked = drafts * share * _asked_share(config, task) * assume.refined_share if objective.refine else 0.0
        rollouts.append(Rollouts(task, drafts * share, asked, asked if objective.refined_rollouts else 0.0))
    prompt, reply = assume.prompt_share * config.train.prefix[-1], assume.reply_share * rollout.max_completion_length
    asked, refined = (sum(getattr(one, name) for one in rollouts) for name in ("asked", "refined"))
    counts = {role: drafts if role is ViewRole.DRAFT else asked for role in objective.views if role in _DRAFTS}
    counts |= {role: refined for role in objective.views if role in _REFINED}
    replies = sum(counts.values()) * reply
    words = sum(count for role, count in counts.items() if role in _UNDER_WORDS) * assume.feedback_tokens
    trained = rollout.prompts_per_step * prompt + replies + words
    return Work(tuple(rollouts), rollout.prompts_per_step, prompt, reply, assume.feedback_tokens, trained, replies)


def _asked_share(config: RunConfig, task: TaskConfig) -> float:
    """The part of the run in which drafts of a task may be asked about."""
    if task.feedback.by == "nobody":
        return 0.0
    below = config.rollout.feedback_below if task.feedback.below is None else task.feedback.below
    if below == -math.inf:
        return 0.0
    steps, last = config.train.max_steps, task.feedback.until_step
    return 1.0 if last is None else min(last, steps) / steps


def evaluations(config: RunConfig) -> int:
    """Returns how often a run evaluates: before it, at its end, and every so many steps between."""
    every, last = config.evaluation.every, config.train.max_steps
    if not config.evaluation.tasks:
        return 0
    return 2 + ((last - 1) // every if every else 0)


def evaluated(config: EvalConfig, task: TaskConfig) -> int:
    """Returns how many rollouts one evaluation of a task plays, without those after words; 0 if its source has no
    limit.
    """
    return (task.source.limit or 0) * config.num_samples


def uncounted(config: RunConfig) -> tuple[str, ...]:
    """Returns the labels of evaluated tasks whose number of examples the configuration does not say."""
    return tuple(task.known_as for task in config.evaluation.tasks if task.source.limit is None)
