"""Judged drafts → all rollouts of a step: reflections where the policy writes the words, then the refined ones.

draft rollout → judge → feedback → **second attempts** → views and pools. Happens what an objective's data asks for: a
teacher or the words themselves need no second attempt. Says which refined rollouts are kept. Makes no rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ditto_jax.judge.base import Judge
from ditto_jax.objective import Objective
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.rollouts.reflections import reflect, reflection_rollouts, with_words
from ditto_jax.rollouts.rollout import Sampling, refined_rollouts, wanted_words
from ditto_jax.types import Rollout


def asked_below(objective: Objective, feedback_below: float) -> float | None:
    """Returns the score below which a judge is asked for words about a draft: that of the run, infinity where drafts
    are sampled under words (each is then trained under what was said about it), None where no judge is asked.
    """
    refinement = objective.refinement
    if not objective.refine or (refinement.words == "policy" and refinement.reflection_sees == "score"):
        return None
    return math.inf if refinement.draft_feedback else feedback_below


async def second_attempts(
    sampling: Sampling,
    judge: Judge,
    prompts: Sequence[Prompt],
    drafts: Sequence[Rollout],
    objective: Objective,
    feedback_below: float,
) -> list[Rollout]:
    """Returns the drafts, with the words about them, then the reflections, then the refined rollouts."""
    if not objective.refined_rollouts:
        return list(drafts)
    reflections = []
    if objective.refinement.words == "policy":
        reflections = await reflect(sampling, prompts, wanted_words(prompts, drafts, feedback_below, sampling.step))
        drafts = with_words(drafts, reflections)
    refined = await refined_rollouts(sampling, judge, prompts, drafts)
    return [*drafts, *reflection_rollouts(reflections, refined), *selected(refined, objective)]


def selected(refined: Sequence[Rollout], objective: Objective) -> list[Rollout]:
    """Returns the refined rollouts, marked whether they are kept for training (`Refinement.keep`).

    "best": of each prompt the first of the highest score (arXiv 2506.03106). Without a score, or cut off where the
    objective drops truncated rows, a rollout is no candidate.
    """
    if objective.refinement.keep == "all":
        return list(refined)
    best: dict[int, tuple[float, int]] = {}  # prompt → the highest score and the number of who has it
    for number, rollout in enumerate(refined):
        score = rollout.verdict.score
        if score is None or (rollout.truncated and objective.truncated == "drop"):
            continue
        if rollout.prompt_index not in best or score > best[rollout.prompt_index][0]:
            best[rollout.prompt_index] = score, number
    kept = {number for _, number in best.values()}
    return [dataclasses.replace(rollout, kept=number in kept) for number, rollout in enumerate(refined)]
