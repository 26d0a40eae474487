"""`ditto-jax eval`: a policy and tasks → measured scores in a run directory of their own, a table, and a gate.

… → checkpoint, **evaluation**, report

In: a model folder, a packaged policy, or the directory of a training run (then its newest checkpoint). Out: eval/
records and the report. Trains nothing; how one task is measured is `evaluate.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError, DittoError, GateFailed, RunDirectoryError
from ditto_jax.evaluate import evaluate_task, read_evaluations, write_evaluation
from ditto_jax.evaluation_table import TABLE, plain_lines, write_table
from ditto_jax.progress import TrainProgress
from ditto_jax.prompts import LoadedTask
from ditto_jax.report import write_report
from ditto_jax.run_dir import RunDirectory, check_run, open_run
from ditto_jax.setup import Parts, assemble
from ditto_jax.weights import Weights, on_base_of, trained_params, training_run


async def evaluate_tasks(
    tasks: Sequence[LoadedTask],
    parts: Parts,
    params: Any,
    config: RunConfig,
    run: RunDirectory,
    step: int,
    progress: TrainProgress,
) -> list[dict[str, Any]]:
    """Returns one record per task, for the weights `params` of training step `step`; writes each under eval/."""
    records = []
    for loaded in tasks:
        progress.note(f"evaluating {loaded.label} ({len(loaded.examples)} items) at step {step}")
        evaluation = config.evaluation
        result = await evaluate_task(loaded, parts.engine, params, evaluation, parts.judges, config.seed, step)
        # Nothing that an evaluation left on the device may touch what is sampled next: a resumed run skips it.
        parts.engine.sampler.release()
        parts.require_budget()
        write_evaluation(run, result, step)
        records.append(result.record)
    return records


def run_evaluation(config: RunConfig, command: list[str], fail_under: float | None = None) -> Path:
    """Evaluates `config.evaluation.tasks`; returns the run directory with records and report.

    fail_under: the least mean score that every evaluated label must reach; else GateFailed, after everything is
    written. Raises DittoError subclasses for whatever is missing or cannot work, before anything is written.
    """
    if not config.evaluation.tasks:
        raise ConfigError(
            "evaluation.tasks: nothing to measure; list at least one task under `evaluation.tasks` in the YAML"
        )
    if fail_under is not None and not math.isfinite(fail_under):
        raise ConfigError(f"fail_under={fail_under}: must be a finite score, for example 0.3")
    folder = Path(config.output_dir) / config.run_name
    _check_folder(folder, config)
    trained = training_run(config.model_name_or_path)
    resolved = config if trained is None else on_base_of(trained, config)
    parts = assemble(resolved)
    weights = Weights(resolved, parts.policy, parts.mesh)
    found, step = weights.initial(), 0
    if trained is not None:
        found, step = trained_params(config.model_name_or_path, weights, trained)
    params = weights.for_sampling(found)
    with TrainProgress() as progress, asyncio.Runner() as runner:
        for label, why in parts.skipped.items():
            progress.note(f"{label} skipped: {why}")
        try:
            runner.run(parts.check())
            run, _ = open_run(folder, config, command, resume=config.resume, overwrite=config.overwrite)
            with _status_on_failure(run, step):
                records = runner.run(evaluate_tasks(parts.evaluation, parts, params, config, run, step, progress))
        finally:
            runner.run(parts.aclose())
        failures = _below(records, fail_under)
        run.set_status("finished", step, GateFailed.exit_code if failures else 0, "; ".join(failures))
        report = write_report([run.path])
        progress.summary(read_evaluations(run))
        rows = write_table(run, records, parts.skipped)
        for line in plain_lines(rows):
            progress.note(line)
        progress.note(f"table: {run.path / TABLE}.md")
        progress.note(f"report: {report}")
    if failures:
        raise GateFailed("; ".join(failures))
    return run.path


def _check_folder(folder: Path, config: RunConfig) -> None:
    """Raises RunDirectoryError unless the evaluation may write there: a training run keeps its directory for itself."""
    run = RunDirectory(folder)
    if run.metrics.exists():
        raise RunDirectoryError(
            f"{folder} holds a training run; an evaluation needs a directory of its own: set --run_name, for example "
            f"--run_name {config.run_name}-eval"
        )
    check_run(folder, config, resume=config.resume, overwrite=config.overwrite)


@contextlib.contextmanager
def _status_on_failure(run: RunDirectory, step: int):
    try:
        run.set_status("running", step)
        yield
    except BaseException as error:
        code = error.exit_code if isinstance(error, DittoError) else None
        with contextlib.suppress(DittoError):
            run.set_status("failed", step, code, str(error) or type(error).__name__)
        raise


def _below(records: Sequence[dict[str, Any]], fail_under: float | None) -> list[str]:
    """Returns one sentence for every label whose mean score is not known to reach `fail_under`."""
    if fail_under is None:
        return []
    sentences = []
    for record in records:
        value = record["value"]
        if value is None:
            sentences.append(f"{record['label']}: no reply got a score, so fail_under={fail_under:g} is not met")
        elif value < fail_under:
            sentences.append(f"{record['label']}: mean score {value:.4g} is below fail_under={fail_under:g}")
    return sentences
