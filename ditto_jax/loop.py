"""Training: steps until the last one, and what is kept of them.

a step (`trainer.py`) → **checkpoint, evaluation, report**

The same command continues a run that was preempted or killed: everything after the last checkpoint is cut and
repeated, equal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import tempfile
from contextlib import closing
from pathlib import Path

import jax
from rich.console import Console

from ditto_jax.config import RunConfig
from ditto_jax.errors import BudgetSpentError, DittoError, JudgeUnavailableError, Preempted
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.evaluation.run import evaluate_tasks
from ditto_jax.objective import Objective
from ditto_jax.plan.room import memory_warning
from ditto_jax.report.page import write_report
from ditto_jax.runs.checkpoint import Checkpoints
from ditto_jax.runs.metrics import Stopwatch
from ditto_jax.runs.profile import profiled
from ditto_jax.runs.progress import TrainProgress
from ditto_jax.runs.run_dir import RunDirectory, check_run, open_run
from ditto_jax.runs.run_owner import require_free, sole_owner
from ditto_jax.setup import assemble, require_training_room, training_stream
from ditto_jax.team.post import opened_post
from ditto_jax.team.team import Team
from ditto_jax.tracking import Trackers, require_trackers, tracked
from ditto_jax.trainer import Trainer
from ditto_jax.weights import require_trainable
from model.attention_kernels import kernel_of_device

logger = logging.getLogger(__name__)


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

    Of several processes every one runs this; that which leads writes and shows. Raises DittoError subclasses with their
    exit codes; whatever was saved before stays intact. Nothing is written before everything that the run needs is
    there.
    """
    team, folder = Team(), Path(config.output_dir) / config.run_name
    team.lead(lambda: _require_startable(folder, config))
    require_trainable(config)
    require_trackers(config.report_to)
    with contextlib.ExitStack() as held:
        post = held.enter_context(opened_post(team.number, team.count, config.judging == "leader"))
        stream, absent = team.agree(lambda: training_stream(config))
        lacking = memory_warning(config, jax.local_devices()[0], jax.device_count(), kernel_of_device())
        if lacking and team.leads:
            logger.warning("%s", lacking)
        parts = team.agree(lambda: assemble(config, stream.tasks, post))
        stream = require_training_room(config, parts, stream)
        trainer = Trainer(config, parts, stream, objective, team)
        progress = held.enter_context(TrainProgress(console=None if team.leads else Console(quiet=True)))
        preempted, runner = held.enter_context(_sigterm_as_flag()), held.enter_context(asyncio.Runner())
        for label, why in (*absent.items(), *parts.skipped.items()):
            progress.note(f"{label} skipped: {why}")
        try:
            team.agree(lambda: runner.run(parts.check()))
            run, earlier = _opened(team, folder, config, command, held)
            with (
                _status_on_failure(run, trainer),
                closing(Checkpoints(folder / run.checkpoints.name, config.save_total_limit)) as saved,
            ):
                if earlier and saved.latest_step() is not None:
                    trainer.restore(*saved.restore(trainer.state))
                    progress.note(f"continuing {folder} after step {trainer.done_steps}")
                run.cut_after(trainer.done_steps)
                run.set_status("running", trainer.done_steps)
                names = config.report_to if team.leads else ()
                with tracked(names, run, trainer.done_steps + 1, progress.note) as trackers, team.in_step():
                    _run_steps(trainer, run, saved, progress, trackers, preempted, runner)
        finally:
            runner.run(trainer.aclose())
        run.set_status("finished", trainer.done_steps, 0)
        if team.leads:
            report = write_report([run.path])
            progress.summary(read_evaluations(run))
            progress.note(f"report: {report}")
    return folder


def _require_startable(folder: Path, config: RunConfig) -> None:
    check_run(folder, config, resume=config.resume, overwrite=config.overwrite)
    require_free(folder)


def _opened(
    team: Team, folder: Path, config: RunConfig, command: list[str], held: contextlib.ExitStack
) -> tuple[RunDirectory, bool]:
    """The run directory, and whether it holds an earlier run to continue. Processes that do not lead write into a
    folder of their own, which is gone when the run ends.
    """

    def opened() -> bool:
        held.enter_context(sole_owner(folder))
        return open_run(folder, config, command, resume=config.resume, overwrite=config.overwrite)[1]

    earlier = team.lead(opened)
    if team.leads:
        return RunDirectory(folder), earlier
    scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="ditto-process-"))) / folder.name
    return open_run(scratch, config, command, resume="auto", overwrite=False)[0], earlier


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
        stop = trainer.team.any(preempted()) and number < last  # once: it may arrive between saving and raising
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
        there = [record["label"] for record in read_evaluations(run) if record["step"] == step]
        done = trainer.team.lead(lambda: there)
        tasks = [task for task in parts.evaluation if task.label not in done]
        runner.run(trainer.at_rest())
        runner.run(evaluate_tasks(tasks, parts, trainer.sampling_params(), config, run, step, progress))
        trackers.evaluated(step, [record for record in read_evaluations(run) if record["step"] == step])
