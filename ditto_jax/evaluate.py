"""Evaluation without feedback: the same episodes and scorers as training, fixed keys, and intervals.

In: tasks, an engine, weights. Out: one JSON record a task (schema below) and one line a sample. With `with_feedback`
it also measures what one refined attempt under real words and under content-free words makes of the wrong drafts: the
control that shows whether the policy reads. Failed verdicts are left out and counted, never scored.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ditto_jax.config import EvalConfig
from ditto_jax.engine import Engine
from ditto_jax.judge.base import Judge
from ditto_jax.judge.desk import JudgeDesk
from ditto_jax.keys import SampleId
from ditto_jax.prompt_lengths import room_of
from ditto_jax.prompts import LoadedTask, Prompt
from ditto_jax.rollout import Sampling, draft_rollouts, outcome_counts, refined_rollouts, words_about
from ditto_jax.run_dir import RunDirectory, write_atomically
from ditto_jax.statistics import Estimate, estimate_mean
from ditto_jax.tasks.base import Scored
from ditto_jax.types import Rollout
from model.llama import Params
from model.sampling import SamplingParams

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class TaskEvaluation:
    """record: the JSON summary of one task; samples: one dictionary per sample."""

    label: str
    record: dict[str, Any]
    samples: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Judges:
    """The run's judge, and one like it that gives content-free feedback (None: do not measure feedback)."""

    judge: Judge
    content_free: Judge | None = None

    async def aclose(self) -> None:
        """Closes the connections of both."""
        await self.judge.aclose()
        if self.content_free is not None:
            await self.content_free.aclose()


async def evaluate_task(
    loaded: LoadedTask, engine: Engine, params: Params, config: EvalConfig, judges: Judges, seed: int, step: int
) -> TaskEvaluation:
    """Returns the evaluation of one task on the weights of training step `step`.

    Keys derive from (seed, item, sample) and not from `step`, so that before and after differ in the weights alone.
    """
    prompts = loaded.prompts
    sampling = Sampling(engine, params, SamplingParams(temperature=config.temperature), seed, 0, room_of(engine))
    drafts = await draft_rollouts(sampling, judges.judge, prompts, config.num_samples, None)
    record = _record(loaded, drafts, config, judges.judge, step)
    record["metrics"] = _metrics(loaded, drafts, config)
    if config.with_feedback and judges.content_free is not None:
        wrong = [r for r in drafts if r.verdict.score is not None and r.verdict.score < 1.0]
        for name, judge in (("feedback", judges.judge), ("content_free_feedback", judges.content_free)):
            record["fixed_by_" + name] = await _fixed(sampling, judge, prompts, wrong, config)
    return TaskEvaluation(loaded.label, record, [_sample(loaded, r) for r in drafts])


async def _fixed(
    sampling: Sampling, judge: Judge, prompts: Sequence[Prompt], wrong: Sequence[Rollout], config: EvalConfig
) -> dict[str, Any]:
    """Mean score of one refined attempt on wrong drafts that got usable words, and how many got none."""

    async def ask(draft: Rollout) -> Rollout:
        prompt = prompts[draft.prompt_index]
        key = SampleId(sampling.seed, sampling.step, prompt.id, draft.sample_index, draft.role.value)
        words = await words_about(sampling, judge, prompt, draft.conversation, draft.verdict, key)
        return dataclasses.replace(draft, feedback=words)

    asked = await asyncio.gather(*(ask(draft) for draft in wrong))
    refined = await refined_rollouts(sampling, judge, prompts, asked)
    scores = [[r.verdict.score] for r in refined if r.verdict.score is not None]
    estimate = estimate_mean(scores, config.confidence, config.bootstrap)
    return {
        "value": None if estimate is None else estimate.value,
        "interval": _interval(estimate),
        "n": len(scores),
        "without_usable_feedback": len(wrong) - len(refined),
    }


def _interval(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None or not math.isfinite(estimate.high - estimate.low):
        return None
    return {
        "low": estimate.low,
        "high": estimate.high,
        "confidence": estimate.confidence,
        "method": estimate.method,
    }


def _scores_by_item(rollouts: Sequence[Rollout]) -> list[list[float]]:
    items: dict[int, list[float]] = collections.defaultdict(list)
    for rollout in rollouts:
        if rollout.verdict.score is not None:
            items[rollout.prompt_index].append(rollout.verdict.score)
    return list(items.values())


def _record(
    loaded: LoadedTask, rollouts: Sequence[Rollout], config: EvalConfig, judge: Judge, step: int
) -> dict[str, Any]:
    estimate = estimate_mean(_scores_by_item(rollouts), config.confidence, config.bootstrap)
    groups: dict[str, dict[str, list[Rollout]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for rollout in rollouts:
        for name, value in loaded.task.breakdown(rollout.example).items():
            groups[name][value].append(rollout)
    lengths = [sum(int(t.loss_mask.sum()) for t in r.transcripts.values()) for r in rollouts]
    return {
        "schema_version": SCHEMA_VERSION,
        "label": loaded.label,
        "task": loaded.task.name,
        "task_version": loaded.task.version,
        "metric": "mean_score",
        "value": None if estimate is None else estimate.value,
        "interval": _interval(estimate),
        "n": 0 if estimate is None else estimate.n,
        "trials": config.num_samples,
        "temperature": config.temperature,
        "judge": judge.judge_of(loaded.task) if isinstance(judge, JudgeDesk) else judge.identity,
        "scored_by": sorted({r.verdict.judge for r in rollouts if r.verdict.score is not None}),
        "partners": {role: who for r in rollouts for role, who in r.partners.items()},
        "source": _source(loaded),
        "rows": {**loaded.rows.as_dict(), "used": len(loaded.examples)},
        "outcomes": {k.removeprefix("judge/"): v for k, v in outcome_counts(rollouts).items() if "score" in k},
        "step": step,
        "truncated_fraction": sum(r.truncated for r in rollouts) / max(1, len(rollouts)),
        "mean_completion_tokens": sum(lengths) / max(1, len(lengths)),
        "breakdown": {name: _values(values, config) for name, values in sorted(groups.items())},
    }


def _source(loaded: LoadedTask) -> dict[str, Any] | None:
    """Which source the rows are of, and whether they stand in for real data; None for a task without settings."""
    if loaded.config is None:
        return None
    source = loaded.config.source
    stand_in = source.kind == "generated" and len(loaded.task.sources) > 1
    return {"kind": source.kind, "path": source.path, "split": source.split, "stand_in": stand_in}


def _metrics(loaded: LoadedTask, rollouts: Sequence[Rollout], config: EvalConfig) -> dict[str, Any]:
    """The dimensions of the score with intervals, and what the task measures over all its conversations."""
    scored = [r for r in rollouts if r.verdict.score is not None]
    by_name: dict[str, dict[int, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for rollout in scored:
        for name, value in rollout.verdict.dimensions.items():
            by_name[name][rollout.prompt_index].append(value)
    metrics: dict[str, Any] = {}
    for name, items in sorted(by_name.items()):
        estimate = estimate_mean(list(items.values()), config.confidence, config.bootstrap)
        if estimate is not None:
            metrics[name] = {"value": estimate.value, "interval": _interval(estimate), "n": estimate.n}
    batch = loaded.task.batch_metrics([Scored(r.example, r.conversation, r.verdict) for r in scored])
    return {**metrics, **{name: {"value": value, "n": len(scored)} for name, value in sorted(batch.items())}}


def _values(values: Mapping[str, Sequence[Rollout]], config: EvalConfig) -> dict[str, Any]:
    table = {}
    for value, rollouts in sorted(values.items()):
        estimate = estimate_mean(_scores_by_item(rollouts), config.confidence, config.bootstrap)
        table[value] = {
            "value": None if estimate is None else estimate.value,
            "interval": _interval(estimate),
            "n": 0 if estimate is None else estimate.n,
        }
    return table


def _sample(loaded: LoadedTask, rollout: Rollout) -> dict[str, Any]:
    return {
        "id": rollout.example.id,
        "sample": rollout.sample_index,
        "prompt": [dataclasses.asdict(m) for m in rollout.conversation.messages[:-1]],
        "reply": rollout.conversation.reply,
        "gold": rollout.example.gold,
        "turns": [dataclasses.asdict(turn) for turn in rollout.conversation.turns],
        "facts": dict(rollout.conversation.facts),
        "partners": dict(rollout.partners),
        "outcome": rollout.verdict.outcome.value,
        "dimensions": dict(rollout.verdict.dimensions),
        "detail": rollout.verdict.detail,
        "score": rollout.verdict.score,
        "labels": dict(loaded.task.breakdown(rollout.example)),
    }


def write_evaluation(run: RunDirectory, evaluation: TaskEvaluation, step: int) -> None:
    """Writes eval/<label>/step_<n>.json and samples_<n>.jsonl."""
    folder = run.evaluations / evaluation.label
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in evaluation.samples)
    write_atomically(folder / f"samples_{step:06d}.jsonl", text)
    write_atomically(folder / f"step_{step:06d}.json", json.dumps(evaluation.record, indent=1) + "\n")


def read_evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    """Returns all evaluation records of a run, by label and step."""
    return [json.loads(p.read_text()) for p in sorted(run.evaluations.glob("*/step_*.json"))]
