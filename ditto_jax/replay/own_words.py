"""Somebody's own words in the place of the judge's: the refined rollout of one draft again, under these.

draft rollout → **own words** → refined rollout → judge

The words pass the filters that a judge's words pass. The rollout has the weights and the random numbers of the one that
the run drew for this draft, and is scored by the run's own judge, which for an endpoint is one call. Nothing is learned
from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError
from ditto_jax.judge.desk import JudgeDesk
from ditto_jax.judge.fence import printable
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.words import screened_feedback
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.rollouts.rollout import Sampling, refined_rollouts, with_room
from ditto_jax.setup import judge_desk
from ditto_jax.trainer import Trainer
from ditto_jax.types import Feedback, Rollout

YOU = "you"  # in the place of a judge's name


def screened(text: str, prompt: Prompt, sampling: Sampling) -> Feedback:
    """Returns the words as feedback that may enter the prompt. Raises ConfigError for words that no judge could have
    had used: without a visible character, that give the answer away, or too long.
    """
    text = printable(text).strip()
    if not text:
        raise ConfigError("feedback: no visible character; say what was wrong with the draft")
    words = screened_feedback(prompt.task, prompt.example, text, judge=YOU)
    if words.leak:
        raise ConfigError(
            f"feedback={text!r}: the words give the answer away (rule {words.leak} of the leak filter), and a judge's "
            "would not have been used either; say what to look at and not what to answer"
        )
    return _with_room(sampling, prompt, words)


def _with_room(sampling: Sampling, prompt: Prompt, words: Feedback) -> Feedback:
    fitting = with_room(sampling, prompt, words)
    if not fitting.usable:
        raise ConfigError(f"feedback: too long, as a judge's words would be: {fitting.detail}")
    return fitting


async def refine_under(
    trainer: Trainer, config: RunConfig, prompts: Sequence[Prompt], draft: Rollout, words: Feedback
) -> Rollout:
    """Returns the refined rollout of a draft under screened words, judged. config: of the run. prompts: of its step.

    Raises ConfigError or MissingInputError if the run's judge cannot be made here. A call that fails is an outcome.
    """
    desk = _desk(config, trainer)
    try:
        async with trainer.pipeline.sharing(trainer.sampling(), prompts) as sampling:
            fitting = _with_room(sampling, prompts[draft.prompt_index], words)
            told = dataclasses.replace(draft, feedback=fitting)
            (refined,) = await refined_rollouts(sampling, desk, prompts, [told])
    finally:
        trainer.parts.engine.sampler.release()
        await desk.aclose()
    return refined


def _desk(config: RunConfig, trainer: Trainer) -> JudgeDesk:
    """The judges of the run, without its caches and records of spending: a question about other words is a new one."""
    members = tuple(dataclasses.replace(member, cache="off") for member in config.judge.members)
    config = dataclasses.replace(config, endpoints=(), judge=dataclasses.replace(config.judge, members=members))
    own = {task.known_as: task.judge for task in config.tasks}
    tasks = [
        dataclasses.replace(task, config=dataclasses.replace(task.config, judge=own[task.label]))
        for task in trainer.stream.tasks
        if task.config is not None
    ]
    hub = Hub()
    hub.speaker = trainer.parts.engine
    return judge_desk(config, tasks, hub, cache="off")
