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

from ditto_jax.advantages import AdvantageResult, RowTable, assign
from ditto_jax.batch import TokenCounts, TrainBatch, by_prompt, pack, token_counts
from ditto_jax.checkpoint import Checkpoints
from ditto_jax.config import RunConfig
from ditto_jax.errors import BudgetSpentError, DittoError, JudgeUnavailableError, Preempted
from ditto_jax.evaluate import read_evaluations
from ditto_jax.evaluation_run import evaluate_tasks
from ditto_jax.judge.health import require_healthy
from ditto_jax.keys import derive
from ditto_jax.loss import finish_metrics
from ditto_jax.metrics import Stopwatch, rollout_metrics, sampled_tokens
from ditto_jax.objective import make_objective
from ditto_jax.packing import BatchShapes, batch_shapes
from ditto_jax.profile import profiled
from ditto_jax.progress import TrainProgress
from ditto_jax.prompt_lengths import room_of
from ditto_jax.prompts import PromptStream
from ditto_jax.records import rollout_rows
from ditto_jax.report import write_report
from ditto_jax.rollout import Sampling, draft_rollouts, refined_rollouts
from ditto_jax.run_dir import RunDirectory, check_run, open_run
from ditto_jax.setup import Parts, assemble, require_training_room, training_stream
from ditto_jax.state import TrainState, make_optimizer, make_state
from ditto_jax.train_step import UpdateConfig, finish_gap, make_score, make_update
from ditto_jax.types import Rollout
from ditto_jax.views import View, views_of
from ditto_jax.weights import Weights, require_trainable
from model.config import ModelConfig
from model.partition import parameter_shardings, row_sharding
from model.sampling import SamplingParams


class Trainer:
    """A run in progress: parts, state, and the position in the prompt stream."""

    def __init__(self, config: RunConfig, parts: Parts, stream: PromptStream):
        self.config = config
        self.parts = parts
        self.objective = make_objective(config.objective)
        self.stream = stream
        self.position = 0
        self.done_steps = 0
        self.ledger: dict[str, float] = {}  # counts and costs of judges and partners, summed over the steps of the run
        train = config.train
        self.optimizer = make_optimizer(config.optimizer, train.max_steps * train.updates_per_step)
        self.weights = Weights(config, parts.policy, parts.mesh)
        self.state = make_state(self.weights.initial(), self.optimizer, parts.mesh)
        update = UpdateConfig(
            model=parts.policy.config,
            objective=self.objective,
            temperature=config.rollout.temperature,
            anchor_is_current=train.updates_per_step == 1,
            remat=train.remat,
            logprob_chunk=train.logprob_chunk,
            lora=self.weights.lora,
            gradient_dtype=train.gradient_dtype,
        )
        self._update = make_update(update, self.optimizer, parts.mesh, self.state, self.weights.base)
        whole = self.weights.whole(self.state.params)
        self._score = make_score(update, parts.mesh, parameter_shardings(whole, parts.mesh))
        self.shapes = _batch_shapes(config, parts)

    async def step(self, watch: Stopwatch) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Runs one step; returns its metrics and the records of its rollouts."""
        config, judge, number = self.config, self.parts.judge, self.done_steps + 1
        prompts = self.stream.at(self.position, config.rollout.prompts_per_step)
        settings = SamplingParams(temperature=config.rollout.temperature)
        room = room_of(self.parts.engine, config.train)
        sampling = Sampling(self.parts.engine, self.sampling_params(), settings, config.seed, number, room)
        counted = self.parts.counters()
        with watch.phase("draft"):
            gate = config.rollout.feedback_below if self.objective.refine else None
            drafts = await draft_rollouts(sampling, judge, prompts, config.rollout.num_generations, gate)
        with watch.phase("refine"):
            refined = await refined_rollouts(sampling, judge, prompts, drafts)
        self.parts.engine.sampler.release()
        rollouts = [*drafts, *refined]
        self.parts.require_budget()
        _require_healthy_judge(rollouts, config.judge.max_error_rate, number)
        with watch.phase("pack"):
            views = views_of(rollouts, self.objective.views)
            advantages = assign(_row_table(views), self.objective)
            batches = self._batches(views, advantages, number)
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
            "sampled_tokens": sampled_tokens(rollouts),
            **rollout_metrics(rollouts, [prompt.label for prompt in prompts]),
            **advantages.metrics,
            **update_metrics,
            "train/real_token_fraction": packed.real_fraction,
            **second.metrics,
            **self.ledger,
        }
        return metrics, rollout_rows(number, prompts, rollouts, views, advantages, second.verdicts)

    def _batches(self, views: Sequence[View], advantages: AdvantageResult, number: int) -> list[TrainBatch]:
        """Returns one batch per optimiser update; the rows of a prompt stay together (feedback-methods 8.5, rule 4)."""
        groups = by_prompt(views)
        prompts = list(range(self.config.rollout.prompts_per_step))
        random.Random(derive(self.config.seed, "updates", number)).shuffle(prompts)
        batches = []
        for part in np.array_split(np.asarray(prompts), self.config.train.updates_per_step):
            members = [groups[p] for p in sorted(part.tolist()) if p in groups]
            batches.append(pack(views, members, advantages.weights, advantages.row_valid, self.shapes))
        return batches

    def _apply(self, batches: Sequence[TrainBatch], watch: Stopwatch) -> dict[str, float]:
        mesh = self.parts.mesh
        placed = [jax.device_put(batch, row_sharding(mesh, leading=1)) for batch in batches]
        if len(placed) > 1:
            with watch.phase("score"):
                whole = self.weights.whole(self.state.params)
                placed = [b._replace(anchor=self._score(whole, b)) for b in placed]
                jax.block_until_ready(placed)
        metrics: dict[str, float] = {}
        with watch.phase("update"):
            for batch in placed:
                self.state, sums, gap, norm = self._update(self.state, batch)
                sums, gap, norm = jax.device_get((sums, gap, norm))
                # Of several updates the last is reported: its ratios have moved furthest from the anchor.
                metrics = {**finish_metrics(sums), **finish_gap(gap), "grad_norm": float(norm)}
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


def _batch_shapes(config: RunConfig, parts: Parts) -> BatchShapes:
    train = config.train
    split = parts.mesh.shape["data"] * parts.mesh.shape["fsdp"]
    refined_views = len(make_objective(config.objective).views) - 1
    return batch_shapes(
        prompts=-(-config.rollout.prompts_per_step // train.updates_per_step),
        rows=config.rollout.num_generations * (1 + refined_views),
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
    )


def _require_healthy_judge(rollouts: Sequence[Rollout], limit: float, step: int) -> None:
    require_healthy([r.verdict for r in rollouts], limit, step)
    require_healthy([r.feedback for r in rollouts if r.feedback is not None], limit, step, least=4)


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


def train(config: RunConfig, command: list[str]) -> Path:
    """Trains a run to its end, or continues it; returns the run directory.

    Raises DittoError subclasses with their exit codes; whatever was saved before stays intact. Nothing is written
    before everything that the run needs is there.
    """
    folder = Path(config.output_dir) / config.run_name
    check_run(folder, config, resume=config.resume, overwrite=config.overwrite)
    require_trainable(config)
    stream, absent = training_stream(config)
    parts = assemble(config, stream.tasks)
    stream = require_training_room(config, parts, stream)
    trainer = Trainer(config, parts, stream)
    with TrainProgress() as progress, _sigterm_as_flag() as preempted, asyncio.Runner() as runner:
        for label, why in (*absent.items(), *parts.skipped.items()):
            progress.note(f"{label} skipped: {why}")
        try:
            runner.run(parts.check())
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
                _run_steps(trainer, run, saved, progress, preempted, runner)
        finally:
            runner.run(parts.aclose())
        run.set_status("finished", trainer.done_steps, 0)
        report = write_report([run.path])
        progress.summary(read_evaluations(run))
        progress.note(f"report: {report}")
    return run.path


def _run_steps(
    trainer: Trainer, run: RunDirectory, saved: Checkpoints, progress: TrainProgress, preempted, runner: asyncio.Runner
) -> None:
    config, last = trainer.config, trainer.config.train.max_steps
    _evaluate_if_due(trainer, run, progress, runner)
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
        tokens = metrics.pop("sampled_tokens", 0)
        sampling_s = split.get("time/draft_s", 0.0) + split.get("time/refine_s", 0.0)
        metrics |= {**split, "tokens_per_s": tokens / sampling_s if sampling_s else 0.0}
        run.append_metrics(metrics)
        progress.step(metrics, number, last)
        stop = preempted() and number < last  # asked once: the signal may arrive between saving and raising
        if number % config.save_steps == 0 or number == last or stop:
            saved.save(number, trainer.state, trainer.meta())
        if stop:
            raise Preempted(f"SIGTERM: saved after step {number} of {last}; the same command continues")
        _evaluate_if_due(trainer, run, progress, runner)


def _evaluate_if_due(trainer: Trainer, run: RunDirectory, progress: TrainProgress, runner: asyncio.Runner) -> None:
    """Evaluates the present weights on every task that has no record of this step yet: a run may be killed at any
    time.
    """
    config, parts, step = trainer.config, trainer.parts, trainer.done_steps
    every = config.evaluation.every
    if step in (0, config.train.max_steps) or (every and step % every == 0):
        done = {record["label"] for record in read_evaluations(run) if record["step"] == step}
        tasks = [task for task in parts.evaluation if task.label not in done]
        runner.run(evaluate_tasks(tasks, parts, trainer.sampling_params(), config, run, step, progress))


__all__ = ["Trainer", "train"]
