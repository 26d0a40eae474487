"""`ditto-jax eval`: a policy and tasks → measured scores in a run directory of their own, a table, and a gate.

… → checkpoint, **evaluation**, report

In: a model folder, a PEFT folder, a packaged policy, the directory of a training run (then its newest checkpoint), or a
policy behind an endpoint. Out: eval/ records, evaluation.json and .md, and the report. An evaluation that was
interrupted goes on with the samples that it lacks. Trains nothing; how one task is measured is `evaluate.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError, DittoError, GateFailed, RunDirectoryError
from ditto_jax.evaluation.evaluate import TaskEvaluation, evaluate_task, read_evaluations, sample_file, write_evaluation
from ditto_jax.evaluation.samples import digest
from ditto_jax.evaluation.table import TABLE, plain_lines, write_table
from ditto_jax.policy import find_policy
from ditto_jax.processes import require_one_process
from ditto_jax.report.page import write_report
from ditto_jax.rollouts.prompts import LoadedTask
from ditto_jax.runs.progress import TrainProgress
from ditto_jax.runs.run_dir import RunDirectory, check_run, open_run
from ditto_jax.runs.run_owner import require_free, sole_owner
from ditto_jax.setup import EvaluationParts, assemble, assemble_endpoint
from ditto_jax.weights import Weights, on_base_of, on_base_of_adapters, trained_params, training_run


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: the parts that play it, its weights (None behind an endpoint), its step, and what it is.

    about: plain values for the records. identity: by which samples of an interrupted evaluation are told to be of the
    same policy.
    """

    parts: EvaluationParts
    params: Any
    step: int
    about: dict[str, Any]
    identity: str


async def evaluate_tasks(
    tasks: Sequence[LoadedTask],
    parts: EvaluationParts,
    params: Any,
    config: RunConfig,
    run: RunDirectory,
    step: int,
    progress: TrainProgress,
    policy: str | None = None,
) -> list[TaskEvaluation]:
    """Returns one evaluation per task, for the weights `params` of training step `step`; writes each under eval/.

    policy: identity of what is measured; samples of it that an interrupted evaluation has left are kept. None keeps
    none.
    """
    results = []
    for loaded in tasks:
        progress.note(f"evaluating {loaded.label} ({len(loaded.examples)} items) at step {step}")
        file = sample_file(run, loaded.label, step, keep=policy is not None)
        result = await evaluate_task(
            loaded, parts.player, params, config.evaluation, parts.judges, config.seed, step, file, policy or ""
        )
        # Nothing that an evaluation left on the device may touch what is sampled next: a resumed run skips it.
        parts.release()
        parts.require_budget()
        write_evaluation(run, result, step)
        results.append(result)
    return results


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
    subject = _endpoint(config) if config.policy.kind == "openai" else _local(config)
    parts, step = subject.parts, subject.step
    with TrainProgress() as progress, asyncio.Runner() as runner, contextlib.ExitStack() as held:
        for label, why in parts.skipped.items():
            progress.note(f"{label} skipped: {why}")
        try:
            runner.run(parts.check())
            held.enter_context(sole_owner(folder))
            run, _ = open_run(
                folder,
                config,
                command,
                resume=config.resume,
                overwrite=config.overwrite,
                uses_devices=subject.params is not None,
            )
            with _status_on_failure(run, step):
                results = runner.run(
                    evaluate_tasks(
                        parts.evaluation, parts, subject.params, config, run, step, progress, subject.identity
                    )
                )
        finally:
            runner.run(parts.aclose())
        records = [result.record for result in results]
        failures = _below(records, fail_under)
        run.set_status("finished", step, GateFailed.exit_code if failures else 0, "; ".join(failures))
        report = write_report([run.path])
        progress.summary(read_evaluations(run))
        about = {"policy": subject.about, "step": step, "seed": config.seed}
        for line in plain_lines(write_table(run, results, parts.skipped, about, config.evaluation)):
            progress.note(line)
        progress.note(f"table: {run.path / TABLE}.md")
        progress.note(f"report: {report}")
    if failures:
        raise GateFailed("; ".join(failures))
    return run.path


def _local(config: RunConfig) -> Subject:
    """Weights of a model folder, of adapters on their base, or of a training run."""
    require_one_process("eval")
    trained = training_run(config.model_name_or_path)
    resolved = on_base_of_adapters(config) if trained is None else on_base_of(trained, config)
    parts = assemble(resolved)
    weights = Weights(resolved, parts.policy, parts.mesh)
    found, step = weights.initial(), 0
    if trained is not None:
        found, step = trained_params(config.model_name_or_path, weights, trained)
    about = {
        "kind": "local",
        "name": config.model_name_or_path,
        "base": resolved.model_name_or_path,
        "adapters": resolved.adapter_name_or_path or None,
    }
    identity = digest([about, _files_of(resolved), None if trained is None else _files_in(config, step)])
    return Subject(parts, weights.for_sampling(found), step, about, identity)


def _files_of(config: RunConfig) -> list[Any]:
    """Names, sizes and times of the files of base and adapters: other weights in the same place are another policy."""
    folders = [find_policy(config.model_name_or_path)]
    folders += [Path(config.adapter_name_or_path).expanduser()] if config.adapter_name_or_path else []
    return [_stamps(folder.iterdir()) for folder in folders]


def _files_in(config: RunConfig, step: int) -> list[Any]:
    checkpoint = RunDirectory(Path(config.model_name_or_path).expanduser()).checkpoints / str(step)
    return _stamps(checkpoint.rglob("*"))


def _stamps(paths: Iterator[Path]) -> list[Any]:
    files = [(path, path.stat()) for path in sorted(paths) if path.is_file()]
    return [[path.name, found.st_size, found.st_mtime_ns] for path, found in files]


def _endpoint(config: RunConfig) -> Subject:
    """A policy that somebody else runs."""
    parts = assemble_endpoint(config)
    policy = config.policy
    about = {"kind": "openai", "name": policy.model, "url": parts.endpoint.url, "max_tokens": policy.max_tokens}
    return Subject(parts, None, 0, about, digest([about, policy.reasoning_effort, policy.temperature]))


def _check_folder(folder: Path, config: RunConfig) -> None:
    """Raises RunDirectoryError unless the evaluation may write there: a training run keeps its directory for itself."""
    run = RunDirectory(folder)
    if run.metrics.exists():
        raise RunDirectoryError(
            f"{folder} holds a training run; an evaluation needs a directory of its own: set --run_name, for example "
            f"--run_name {config.run_name}-eval"
        )
    check_run(folder, config, resume=config.resume, overwrite=config.overwrite)
    require_free(folder)


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
