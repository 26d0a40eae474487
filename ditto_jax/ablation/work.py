"""Planned runs → finished run directories: warm starts first, one run after another in one process.

What compiled for one run serves the next. Several processes, also of several machines on one disk, may work at the same
ablation: each claims a run by a lock that its end releases, however it ends. Finished runs are left alone, interrupted
ones continue from their last checkpoint. Reads no result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from ditto_jax.ablation.plan import Plan, PlannedRun
from ditto_jax.errors import Preempted
from ditto_jax.loop import train
from ditto_jax.runs.run_dir import RunDirectory, check_run
from ditto_jax.sft_run import SFTConfig, run_sft

_POLL_S = 5.0


@dataclasses.dataclass(frozen=True)
class Job:
    """A piece of work: done says whether it is there already, ready whether what it needs is."""

    name: str
    log: Path
    done: Callable[[], bool]
    ready: Callable[[], bool]
    work: Callable[[], Path]


def is_finished(run: PlannedRun) -> bool:
    """Whether a run has been trained, evaluated and reported to its end."""
    return RunDirectory(run.folder).read_status().get("state") == "finished"


def check_runs(plan: Plan) -> None:
    """Returns nothing; raises RunDirectoryError if the directory of a run holds one with other settings."""
    for run in plan.runs:
        check_run(run.folder, run.config, resume=run.config.resume, overwrite=run.config.overwrite)


def work(plan: Plan, command: list[str], say: Callable[[str], None]) -> list[str]:
    """Trains all that is missing and not claimed by another process; returns one line for every job that failed.

    say: gets a line whenever a job ends. A failed run is left to the next call, the others go on. Raises Preempted
    after SIGTERM, with the run saved.
    """
    jobs = _jobs(plan, command)
    failed: dict[str, str] = {}
    while True:
        worked = waits = False
        for job in jobs:
            if job.name in failed or job.done():
                continue
            if not job.ready():
                waits = True
                continue
            with _claimed(job.log.with_suffix(".lock")) as mine:
                if not mine or job.done():
                    continue
                worked = True
                _do(job, failed, say)
        if not worked and not waits:
            return list(failed.values())
        if not worked:
            if failed and not _claimed_elsewhere(jobs):
                return list(failed.values())
            time.sleep(_POLL_S)


def _jobs(plan: Plan, command: list[str]) -> list[Job]:
    """A warm start stands before the first run that begins with it."""
    logs = plan.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    jobs, known = [], set()
    for run in plan.runs:
        start = plan.warm_starts[run.warm_start]
        if run.warm_start not in known:
            known.add(run.warm_start)
            jobs.append(_warm_start_job(start, logs, command))
        jobs.append(_run_job(run, start, logs, command))
    return jobs


def _warm_start_job(start: SFTConfig, logs: Path, command: list[str]) -> Job:
    name = f"warm start {start.seed}"
    log = logs / f"warm_start-{start.seed}.log"
    return Job(name, log, lambda: _has_policy(start), lambda: True, lambda: _make_policy(start, command))


def _run_job(run: PlannedRun, start: SFTConfig, logs: Path, command: list[str]) -> Job:
    return Job(
        f"{run.arm}, seed {run.seed}",
        logs / f"{run.folder.name}.log",
        lambda: is_finished(run),
        lambda: _has_policy(start),
        lambda: train(run.config, command),
    )


def _has_policy(start: SFTConfig) -> bool:
    return (Path(start.output_dir) / "config.json").is_file()


def _make_policy(start: SFTConfig, command: list[str]) -> Path:
    """Makes a warm start beside its place and moves it there whole: a killed one leaves nothing that looks finished."""
    folder = Path(start.output_dir)
    beside = folder.parent / "unfinished" / folder.name
    made = run_sft(dataclasses.replace(start, output_dir=str(beside)), command)
    os.replace(made, folder)
    return folder


def _do(job: Job, failed: dict[str, str], say: Callable[[str], None]) -> None:
    started = time.monotonic()
    try:
        with open(job.log, "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            try:
                job.work()
            except Exception:
                traceback.print_exc(file=log)
                raise
    except Preempted:
        raise
    except Exception as error:
        failed[job.name] = f"{job.name}: {type(error).__name__}: {error} (see {job.log})"
        say(f"{job.name} failed: {error}")
    else:
        say(f"{job.name} done in {time.monotonic() - started:.0f} s")
    gc.collect()  # a finished trainer holds device memory in reference cycles


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Yields whether this process has the lock; the system takes it away from a process that ends."""
    with open(path, "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _claimed_elsewhere(jobs: list[Job]) -> bool:
    """Whether another process works at any of the jobs, so that what is missing may still come."""
    for job in jobs:
        if not job.done():
            with _claimed(job.log.with_suffix(".lock")) as mine:
                if not mine:
                    return True
    return False
