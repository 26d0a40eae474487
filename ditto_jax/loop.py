"""Training: the one sentence of this project, a step at a time.

prompt → draft rollout → judge → feedback → refined rollout → views and pools → sharded update → checkpoint,
evaluation, report

`Trainer` holds the state of a run; `step` reads top to bottom like the sentence. The same command continues a run
that was preempted or killed: everything after the last checkpoint is cut and repeated, equal.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ditto_jax.config import RunConfig
from ditto_jax.errors import BudgetSpentError, DittoError, JudgeUnavailableError, Preempted
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.evaluation.run import evaluate_tasks
from ditto_jax.judge.health import require_healthy
from ditto_jax.keys import derive
from ditto_jax.objective import Objective, make_objective
from ditto_jax.report.page import write_report
from ditto_jax.rollouts.contexts import Contexts
from ditto_jax.rollouts.pipeline import Pipeline, overlap_of
from ditto_jax.rollouts.prompt_lengths import room_of
from ditto_jax.rollouts.prompts import PromptStream
from ditto_jax.rollouts.records import rollout_rows
from ditto_jax.rollouts.rollout import Sampling, judges_verdicts, judges_words
from ditto_jax.rollouts.views import View, views_of
from ditto_jax.runs.checkpoint import Checkpoints
from ditto_jax.runs.metrics import Stopwatch, rollout_metrics, sampled_tokens
from ditto_jax.runs.profile import profiled
from ditto_jax.runs.progress import TrainProgress
from ditto_jax.runs.run_dir import RunDirectory, check_run, open_run
from ditto_jax.runs.run_owner import require_free, sole_owner
from ditto_jax.setup import Parts, assemble, require_training_room, training_stream
from ditto_jax.tracking import Trackers, require_trackers, tracked
from ditto_jax.types import Rollout, ViewRole
from ditto_jax.update.advantages import AdvantageResult, RowTable, assign
from ditto_jax.update.batch import TokenCounts, TrainBatch, by_prompt, pack, token_counts
from ditto_jax.update.loss import finish_metrics
from ditto_jax.update.packing import BatchShapes, batch_shapes
from ditto_jax.update.passes import columns_of, needs_average, needs_initial
from ditto_jax.update.scoring import PassWeights, Scoring
from ditto_jax.update.state import TrainState, advance_average, make_optimizer, make_state
from ditto_jax.update.train_step import UpdateConfig, finish_gap, make_update
from ditto_jax.weights import Weights, require_trainable
from model.config import ModelConfig
from model.partition import row_sharding
from model.sampling import SamplingParams


class Trainer:
    """A run in progress: parts, state, and the position in the prompt stream."""

    def __init__(self, config: RunConfig, parts: Parts, stream: PromptStream, objective: Objective | None = None):
        """objective: in place of the one that the configuration names."""
        self.config = config
        self.parts = parts
        self.objective = objective or make_objective(config.objective)
        self.stream = stream
        self.position = 0
        self.done_steps = 0
        self.ledger: dict[str, float] = {}  # counts and costs of judges and partners, summed over the steps of the run
        train = config.train
        self.optimizer = make_optimizer(config.optimizer, train.max_steps * train.updates_per_step)
        self.weights = Weights(config, parts.policy, parts.mesh)
        averaged = needs_average(self.objective)
        self.state = make_state(self.weights.initial(), self.optimizer, parts.mesh, averaged=averaged)
        self._initial = self.weights.untrained(self.state.params) if needs_initial(self.objective) else None
        update = UpdateConfig(
            model=parts.policy.config,
            objective=self.objective,
            temperature=config.rollout.temperature,
            remat=train.remat,
            logprob_chunk=train.logprob_chunk,
            lora=self.weights.lora,
            gradient_dtype=train.gradient_dtype,
        )
        self._update = make_update(update, self.optimizer, parts.mesh, self.state, self.weights.base)
        self.shapes = _batch_shapes(config, parts, self.objective)
        columns = columns_of(self.objective, update.model.vocab_size, train.updates_per_step)
        self.scoring = Scoring(update, columns, self.shapes, parts.mesh)
        self._settings = SamplingParams(temperature=config.rollout.temperature)
        overlap = overlap_of(config, self.objective, stream.tasks)
        self.pipeline = Pipeline(config, self.objective, overlap, parts.engine, parts.judge)

    def warm_up(self) -> int:
        """Compiles everything that sampling for training can meet; returns how many shapes its calls can have."""
        train, sampler = self.config.train, self.parts.engine.sampler
        longest = train.prefix[-1] + train.suffix[-1] - 1  # what an update has room for, and a token of reply
        many_turns = any(loaded.task.many_turns for loaded in self.stream.tasks)
        members, weights = self.config.rollout.num_generations, self.sampling_params()
        if self.pipeline.overlap != "off":
            words = self.config.rollout.max_feedback_length
            return sampler.warm_up_open(weights, self._settings, members, longest, words)
        return sampler.warm_up(weights, self._settings, members, longest, many_turns)

    async def step(self, watch: Stopwatch) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Runs one step; returns its metrics and the records of its rollouts."""
        config, number = self.config, self.done_steps + 1
        prompts = self.stream.at(self.position, config.rollout.prompts_per_step)
        room = room_of(self.parts.engine, config.train)
        sampling = Sampling(self.parts.engine, self.sampling_params(), self._settings, config.seed, number, room)
        counted = self.parts.counters()
        rollouts, waited = await self.pipeline.rollouts(sampling, prompts, watch)
        self.parts.engine.sampler.release()
        self.parts.require_budget()
        _require_healthy_judge(rollouts, config.judge.max_error_rate, number)
        with watch.phase("pack"):
            contexts = Contexts(prompts, self.parts.policy.chat_format, room)
            views = views_of(rollouts, self.objective.views, contexts)
            advantages = assign(_row_table(views), self.objective)
            updates = self._updates(views, number)
        with watch.phase("score"):
            hinted = views_of(rollouts, (ViewRole.DRAFT_FB,), contexts) if self.scoring.columns.teacher else []
            views, scored = self.scoring.fill(views, hinted, updates, advantages.row_valid, self._pass_weights())
        with watch.phase("pack"):
            batches = [self._packed(views, members, advantages) for members in updates]
            packed = sum((token_counts(batch) for batch in batches), TokenCounts(0, 0, 0, 0))
        update_metrics = self._apply(batches, watch)
        second = await self.parts.second_opinions()
        self.position += len(prompts)
        self.done_steps = number
        # Differences: what evaluations ask of the judge must not make a resumed run differ from a straight one.
        for name, value in self.parts.counters().items():
            self.ledger[name] = self.ledger.get(name, 0) + value - counted.get(name, 0)
        metrics = {
            "step": number,
            "completions/sampled_tokens": sampled_tokens(rollouts),
            **rollout_metrics(rollouts, [prompt.label for prompt in prompts]),
            **advantages.metrics,
            **scored,
            **update_metrics,
            **waited,
            "train/real_token_fraction": packed.real_fraction,
            **second.metrics,
            **self.ledger,
        }
        return metrics, rollout_rows(number, prompts, rollouts, views, advantages, second.verdicts)

    def _updates(self, views: Sequence[View], number: int) -> list[list[list[int]]]:
        """Returns for each optimiser update the views of its prompts; those of a prompt stay together
        (feedback-methods 8.5, rule 4).
        """
        groups = by_prompt(views)
        prompts = list(range(self.config.rollout.prompts_per_step))
        random.Random(derive(self.config.seed, "updates", number)).shuffle(prompts)
        parts = np.array_split(np.asarray(prompts), self.config.train.updates_per_step)
        return [[groups[p] for p in sorted(part.tolist()) if p in groups] for part in parts]

    def _packed(self, views: Sequence[View], members: list[list[int]], advantages: AdvantageResult) -> TrainBatch:
        weights, valid, live = advantages.weights, advantages.row_valid, advantages.row_live
        return pack(views, members, weights, valid, self.shapes, self.scoring.columns, live, advantages.row_weight)

    def _pass_weights(self) -> PassWeights:
        average = None if self.state.average is None else self.weights.whole(self.state.average)
        return PassWeights(self.weights.whole(self.state.params), self._initial, average)

    def _apply(self, batches: Sequence[TrainBatch], watch: Stopwatch) -> dict[str, float]:
        metrics: dict[str, float] = {}
        with watch.phase("update"):
            for batch in jax.device_put(batches, row_sharding(self.parts.mesh, leading=1)):
                self.state, sums, gap, norm = self._update(self.state, batch)
                sums, gap, norm = jax.device_get((sums, gap, norm))
                # Of several updates the last is reported: its ratios have moved furthest from the anchor.
                metrics = {**finish_metrics(sums), **finish_gap(gap), "grad_norm": float(norm)}
            if self.state.average is not None:
                average = advance_average(self.state.average, self.state.params, self.objective.teacher.rate)
                self.state = self.state._replace(average=average)
        return metrics

    def sampling_params(self) -> Any:
        """Returns the parameter value that sampling and evaluation read, for the present state."""
        return self.weights.for_sampling(self.state.params)

    def meta(self) -> dict[str, Any]:
        """Host state that a checkpoint carries beside the arrays."""
        recent = [] if self.parts.shadow is None else list(self.parts.shadow.recent)
        return {"step": self.done_steps, "position": self.position, "ledger": self.ledger, "shadow": recent}

    def restore(self, state: TrainState, meta: dict[str, Any]) -> None:
        self.state, self.done_steps, self.position = state, int(meta["step"]), int(meta["position"])
        self.ledger = dict(meta["ledger"])
        if self.parts.shadow is not None:
            self.parts.shadow.recent.extend(meta.get("shadow", []))


def _batch_shapes(config: RunConfig, parts: Parts, objective: Objective) -> BatchShapes:
    train = config.train
    split = parts.mesh.shape["data"] * parts.mesh.shape["fsdp"]
    return batch_shapes(
        prompts=-(-config.rollout.prompts_per_step // train.updates_per_step),
        rows=config.rollout.num_generations * len(objective.views),
        groups=-(-train.micro_batch // split) * split,
        lanes=train.lanes,
        prefix=train.prefix,
        suffix=train.suffix,
        keys_per_token=_keys_per_token(parts.policy.config),
    )


def _keys_per_token(model: ModelConfig) -> float:
    """Returns how many keys a query meets at the cost of a token's products with a layer's matrices.

    Scores are masked, exponentiated and summed too, which is counted as three times their two products.
    """
    heads = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim
    return model.hidden_size * (heads + 3 * model.intermediate_size) / (4 * 2 * model.num_heads * model.head_dim)


def _row_table(views: Sequence[View]) -> RowTable:
    return RowTable(
        role=np.array([int(v.role) for v in views], np.int32),
        prompt=np.array([v.prompt for v in views], np.int32),
        rollout=np.array([v.rollout for v in views], np.int32),
        reward=np.array([0.0 if v.reward is None else v.reward for v in views], np.float32),
        reward_valid=np.array([v.reward is not None for v in views], bool),
        row_valid=np.ones(len(views), bool),
        truncated=np.array([v.truncated for v in views], bool),
        parent=np.array([v.parent for v in views], np.int32),
        length=np.array([len(v.response) for v in views], np.int32),
    )


def _require_healthy_judge(rollouts: Sequence[Rollout], limit: float, step: int) -> None:
    require_healthy(judges_verdicts(rollouts), limit, step)
    require_healthy(judges_words(rollouts), limit, step, least=4)


@contextlib.contextmanager
def _sigterm_as_flag():
    """Yields a function that tells whether SIGTERM has arrived; the state is saved at the next step boundary."""
    received = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    except ValueError:  # not the main thread, as in a notebook: the host program decides about signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _status_on_failure(run: RunDirectory, trainer: Trainer):
    """Around the steps of a run: whatever ends them is told in STATUS.json and raised on."""
    try:
        yield
    except BaseException as error:
        state = "preempted" if isinstance(error, Preempted) else "failed"
        code = error.exit_code if isinstance(error, DittoError) else None
        with contextlib.suppress(DittoError):
            run.set_status(state, trainer.done_steps, code, str(error) or type(error).__name__)
        raise


@contextlib.contextmanager
def _saved_on_stop(trainer: Trainer, saved: Checkpoints):
    """Around a step: one that ends for want of a judge or of money leaves what earlier steps learned on disk."""
    try:
        yield
    except (BudgetSpentError, JudgeUnavailableError):
        if trainer.done_steps > (saved.latest_step() or 0):
            saved.save(trainer.done_steps, trainer.state, trainer.meta())
        raise


def train(config: RunConfig, command: list[str], objective: Objective | None = None) -> Path:
    """Trains a run to its end, or continues it; returns the run directory. objective: in place of the one that the
    configuration names, for methods of your own; a run is continued with the same.

    Raises DittoError subclasses with their exit codes; whatever was saved before stays intact. Nothing is written
    before everything that the run needs is there.
    """
    folder = Path(config.output_dir) / config.run_name
    check_run(folder, config, resume=config.resume, overwrite=config.overwrite)
    require_free(folder)
    require_trainable(config)
    require_trackers(config.report_to)
    stream, absent = training_stream(config)
    parts = assemble(config, stream.tasks)
    stream = require_training_room(config, parts, stream)
    trainer = Trainer(config, parts, stream, objective)
    with (
        TrainProgress() as progress,
        _sigterm_as_flag() as preempted,
        asyncio.Runner() as runner,
        contextlib.ExitStack() as held,
    ):
        for label, why in (*absent.items(), *parts.skipped.items()):
            progress.note(f"{label} skipped: {why}")
        try:
            runner.run(parts.check())
            held.enter_context(sole_owner(folder))
            run, earlier = open_run(folder, config, command, resume=config.resume, overwrite=config.overwrite)
            with (
                _status_on_failure(run, trainer),
                closing(Checkpoints(run.checkpoints, config.save_total_limit)) as saved,
            ):
                if earlier and saved.latest_step() is not None:
                    trainer.restore(*saved.restore(trainer.state))
                    progress.note(f"continuing {folder} after step {trainer.done_steps}")
                run.cut_after(trainer.done_steps)
                run.set_status("running", trainer.done_steps)
                names = config.report_to if jax.process_index() == 0 else ()
                with tracked(names, run, trainer.done_steps + 1, progress.note) as trackers:
                    _run_steps(trainer, run, saved, progress, trackers, preempted, runner)
        finally:
            runner.run(parts.aclose())
        run.set_status("finished", trainer.done_steps, 0)
        report = write_report([run.path])
        progress.summary(read_evaluations(run))
        progress.note(f"report: {report}")
    return run.path


def _run_steps(
    trainer: Trainer,
    run: RunDirectory,
    saved: Checkpoints,
    progress: TrainProgress,
    trackers: Trackers,
    preempted,
    runner: asyncio.Runner,
) -> None:
    config, last = trainer.config, trainer.config.train.max_steps
    if config.sampler.warm_up:
        progress.note(f"compiled for all {trainer.warm_up()} shapes of sampler calls")
    _evaluate_if_due(trainer, run, progress, trackers, runner)
    while trainer.done_steps < last:
        watch = Stopwatch()
        traced = profiled(run.path / "profile", trainer.done_steps + 1, config.profile_steps)
        with traced, _saved_on_stop(trainer, saved):
            metrics, rows = runner.run(trainer.step(watch))
        number = trainer.done_steps
        with watch.phase("write"):
            if config.log_completions:
                run.write_rollouts(number, rows)
        split = watch.split()
        tokens = metrics["completions/sampled_tokens"]
        sampling_s = sum(split.get(f"time/{phase}_s", 0.0) for phase in ("draft", "refine", "rollout"))
        metrics |= {**split, "tokens_per_s": tokens / sampling_s if sampling_s else 0.0}
        run.append_metrics(metrics)
        trackers.step(metrics)
        progress.step(metrics, number, last)
        stop = preempted() and number < last  # asked once: the signal may arrive between saving and raising
        if number % config.save_steps == 0 or number == last or stop:
            saved.save(number, trainer.state, trainer.meta())
        if stop:
            raise Preempted(f"SIGTERM: saved after step {number} of {last}; the same command continues")
        _evaluate_if_due(trainer, run, progress, trackers, runner)


def _evaluate_if_due(
    trainer: Trainer, run: RunDirectory, progress: TrainProgress, trackers: Trackers, runner: asyncio.Runner
) -> None:
    """Evaluates the present weights on every task that has no record of this step yet: a run may be killed at any
    time.
    """
    config, parts, step = trainer.config, trainer.parts, trainer.done_steps
    every = config.evaluation.every
    if step in (0, config.train.max_steps) or (every and step % every == 0):
        done = {record["label"] for record in read_evaluations(run) if record["step"] == step}
        tasks = [task for task in parts.evaluation if task.label not in done]
        runner.run(evaluate_tasks(tasks, parts, trainer.sampling_params(), config, run, step, progress))
        trackers.evaluated(step, [record for record in read_evaluations(run) if record["step"] == step])


__all__ = ["Trainer", "train"]
