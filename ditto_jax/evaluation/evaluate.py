"""Evaluation without feedback: the same episodes and scorers as training, fixed keys, samples kept as they are judged.

checkpoint, **evaluation**, report

In: tasks, a player (the engine, or an endpoint), weights. Out: one JSON record a task and one line a sample. With
`with_feedback` it also measures what one refined attempt under real words and under content-free words makes of the
wrong drafts: the control that shows whether the policy reads. Failed verdicts are left out and counted, never scored.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ditto_jax.config import EvalConfig
from ditto_jax.evaluation.record import as_measured, task_record
from ditto_jax.evaluation.samples import Sample, SampleFile, digest, item_digest, lines_of, sample_of
from ditto_jax.evaluation.statistics import estimate_mean
from ditto_jax.judge.base import Judge
from ditto_jax.judge.desk import JudgeDesk
from ditto_jax.keys import SampleId
from ditto_jax.rollouts.engine import Engine
from ditto_jax.rollouts.forms import is_held
from ditto_jax.rollouts.prompt_lengths import room_of
from ditto_jax.rollouts.prompts import LoadedTask, Prompt
from ditto_jax.rollouts.rollout import Player, Sampling, draft_rollouts, refined_rollouts, words_about
from ditto_jax.runs.run_dir import RunDirectory, write_atomically
from ditto_jax.types import Rollout
from model.llama import Params
from model.sampling import SamplingParams


@dataclasses.dataclass(frozen=True)
class TaskEvaluation:
    """record: the JSON summary of one task; samples: one row for every item and trial, in order."""

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
    loaded: LoadedTask,
    player: Player,
    params: Params,
    config: EvalConfig,
    judges: Judges,
    seed: int,
    step: int,
    file: SampleFile | None = None,
    policy: str = "",
) -> TaskEvaluation:
    """Returns the evaluation of one task on the weights of training step `step`.

    Keys derive from (seed, item, sample) and not from `step`, so that before and after differ in the weights alone.
    file: where samples are kept as they are judged; those that it holds already are not played again. policy: what the
    samples are of, by which kept ones are told apart.
    """
    prompts = loaded.prompts
    judge = judges.judge
    who = judge.judge_of(loaded.task) if isinstance(judge, JudgeDesk) else judge.identity
    room = room_of(player) if isinstance(player, Engine) else None
    settings, held = SamplingParams(temperature=config.temperature), config.constrained and is_held(loaded)
    sampling = Sampling(player, params, settings, seed, 0, room, held)
    items = [item_digest(prompt) for prompt in prompts]
    decided_by = [policy, step, seed, config.temperature, who, loaded.task.version, str(loaded.task.options)]
    decided_by += ["constrained"] if held else []

    def key(slot: tuple[int, int]) -> str:
        return digest([items[slot[0]], prompts[slot[0]].id, slot[1], *decided_by])

    found: dict[tuple[int, int], Sample] = {}
    missing = []
    for slot in [(p, s) for p in range(len(prompts)) for s in range(config.num_samples)]:
        kept = None if file is None else file.kept(loaded, prompts[slot[0]].example, slot[1], key(slot))
        if kept is None:
            missing.append(slot)
        else:
            found[slot] = kept

    def keep(rollout: Rollout) -> None:
        slot = (rollout.prompt_index, rollout.sample_index)
        found[slot] = sample_of(loaded, rollout, items[slot[0]], key(slot))
        if file is not None:
            file.append(found[slot])

    await draft_rollouts(sampling, judge, prompts, config.num_samples, None, slots=missing, judged=keep)
    samples = [found[slot] for slot in sorted(found)]
    record = task_record(loaded, samples, config, who, step)
    if config.with_feedback and judges.content_free is not None:
        drafts = [found[slot].as_draft(slot[0]) for slot in sorted(found)]
        wrong = [r for r in drafts if r.verdict.score is not None and r.verdict.score < 1.0]
        for name, one in (("feedback", judge), ("content_free_feedback", judges.content_free)):
            record["fixed_by_" + name] = await _fixed(sampling, one, prompts, wrong, config)
    return TaskEvaluation(loaded.label, record, [sample.as_row() for sample in samples])


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
    return {**as_measured(estimate), "without_usable_feedback": len(wrong) - len(refined)}


def sample_file(run: RunDirectory, label: str, step: int, keep: bool) -> SampleFile:
    """Returns the file of a task's samples at a step; `keep` what it holds.

    The record of an earlier evaluation goes: while samples are missing there is no result.
    """
    (run.evaluations / label / f"step_{step:06d}.json").unlink(missing_ok=True)
    return SampleFile(run.evaluations / label / f"samples_{step:06d}.jsonl", keep)


def write_evaluation(run: RunDirectory, evaluation: TaskEvaluation, step: int) -> None:
    """Writes eval/<label>/samples_<n>.jsonl, then step_<n>.json, which says that the former is complete."""
    folder = run.evaluations / evaluation.label
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"samples_{step:06d}.jsonl", lines_of(evaluation.samples))
    write_atomically(folder / f"step_{step:06d}.json", json.dumps(evaluation.record, indent=1) + "\n")


def read_evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    """Returns all evaluation records of a run, by label and step."""
    return [json.loads(p.read_text()) for p in sorted(run.evaluations.glob("*/step_*.json"))]
