"""Rollouts of a step → plain records for rollouts/step_<n>.jsonl.gz: what was asked, said, judged and learned from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ditto_jax.keys import SampleId
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.rollouts.views import View
from ditto_jax.types import Feedback, Rollout, Verdict
from ditto_jax.update.advantages import AdvantageResult


def rollout_rows(
    step: int,
    prompts: Sequence[Prompt],
    rollouts: Sequence[Rollout],
    views: Sequence[View],
    result: AdvantageResult,
    second: Mapping[SampleId, Verdict] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Returns one record per rollout: prompt, reply, verdict, feedback, and the weight of each of its views.

    second: verdicts of a shadow judge, for the rollouts that have one.
    """
    opinions = {(key.prompt_id, key.role, key.sample_index): verdict for key, verdict in second.items()}
    advantages: dict[int, dict[str, float]] = {}
    for view, weight, valid in zip(views, result.weights, result.row_valid, strict=True):
        if valid:
            advantages.setdefault(view.rollout, {})[view.role.name.lower()] = float(weight)
    return [
        {
            **rollout_row(step, prompts, rollout, advantages.get(i, {})),
            "shadow": _shadow(opinions.get((prompts[rollout.prompt_index].id, rollout.role, rollout.sample_index))),
        }
        for i, rollout in enumerate(rollouts)
    ]


def rollout_row(
    step: int, prompts: Sequence[Prompt], rollout: Rollout, advantage: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Any]:
    """Returns the record of one rollout, without a shadow judge. advantage: the weight of each of its views by role."""
    verdict = rollout.verdict
    return {
        "step": step,
        "prompt_id": prompts[rollout.prompt_index].id,
        "prompt_index": rollout.prompt_index,
        "sample": rollout.sample_index,
        "task": rollout.example.task,
        "role": rollout.role.value,
        "prompt": [dataclasses.asdict(message) for message in rollout.conversation.messages[:-1]],
        "reply": rollout.conversation.reply,
        "turns": [dataclasses.asdict(turn) for turn in rollout.conversation.turns],
        "facts": dict(rollout.conversation.facts),
        "partners": dict(rollout.partners),
        "gold": rollout.example.gold,
        "outcome": verdict.outcome.value,
        "score": verdict.score,
        "dimensions": dict(verdict.dimensions),
        "critique": verdict.critique,
        "detail": verdict.detail,
        "judge": verdict.judge,
        "feedback": _feedback(rollout.feedback),
        "used_feedback": rollout.used_feedback.text if rollout.used_feedback else None,
        "advantage": dict(advantage),
        "truncated": rollout.truncated,
        "kept": rollout.kept,
        "tokens": {name: t.ids.tolist() for name, t in rollout.transcripts.items()},
        "logprobs": {name: [float(x) for x in t.logprobs] for name, t in rollout.transcripts.items()},
    }


def _shadow(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {"outcome": verdict.outcome.value, "score": verdict.score, "detail": verdict.detail, "judge": verdict.judge}


def _feedback(feedback: Feedback | None) -> dict[str, Any] | None:
    if feedback is None:
        return None
    return {
        "text": feedback.text,
        "outcome": feedback.outcome.value,
        "leak": feedback.leak,
        "detail": feedback.detail,
        "judge": feedback.judge,
    }
