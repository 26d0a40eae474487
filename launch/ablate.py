"""`ditto-jax ablate`: methods times seeds, shared among processes, then compared.

In: the words after the verb. Out: an exit code, and a folder with results. Each worker is the same command in a process
and on processor cores of its own; what they share is the disk.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated

import tyro

from launch import environment
from launch.flags import parse

_REPORT = Annotated[
    tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="train nothing; compare the runs that are finished")
]
_WORKER = Annotated[
    int, tyro.conf.arg(help="train as number N of the workers and compare nothing; -1: the whole command")
]


def main(args: list[str], command: list[str]) -> int:
    """Trains what is missing, prints and writes the comparison; 1 if a run failed."""
    environment.prepare_allocator()
    all_cores = _cores()
    from ditto_jax.ablation.config import AblationConfig

    about = "Compare methods over seeds. The same command continues; finished runs are left as they are."
    parsed = parse(AblationConfig, args, "ablate", about, [("report_only", _REPORT, False), ("worker", _WORKER, -1)])
    config, number = parsed.config, parsed.options["worker"]
    if config.workers > 1 and not parsed.options["report_only"]:
        _keep_to_own_cores(max(0, number), config.workers, all_cores)
    environment.use_compile_cache()

    from rich.console import Console

    from ditto_jax.ablation.plan import make_plan
    from ditto_jax.ablation.work import check_runs, work
    from ditto_jax.ablation.write import write_results

    plan = make_plan(config)
    check_runs(plan)
    failed: list[str] = []
    if not parsed.options["report_only"]:
        others = range(1, config.workers) if number < 0 else ()
        commands = [[sys.executable, "-m", "ditto_jax", "ablate", *args, "--worker", str(n)] for n in others]
        with _workers(commands, all_cores) as codes:
            failed = work(plan, command, lambda line: print(line, flush=True))
        failed += [f"worker {n + 1} ended with {code}" for n, code in enumerate(codes) if code]
    if number < 0:
        print(f"results: {write_results(plan, Console(highlight=False))}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _cores() -> list[int]:
    """The processor cores that this process may use; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _keep_to_own_cores(number: int, workers: int, cores: list[int]) -> None:
    """Gives this process its share of the cores before jax counts them: two programs on the same cores get in each
    other's way.
    """
    if cores:
        os.sched_setaffinity(0, cores[number % len(cores) :: workers])


@contextlib.contextmanager
def _workers(commands: list[list[str]], cores: list[int]) -> Iterator[list[int]]:
    """Runs commands beside the enclosed block and yields the list that will hold their exit codes.

    They start with all `cores` and take their own share. Where the block ends with an exception they get SIGTERM, upon
    which each saves its run at the next step.
    """
    codes: list[int] = []
    own = _cores()
    if commands and cores:  # a process inherits the cores of the thread that starts it
        os.sched_setaffinity(0, cores)
    processes = [subprocess.Popen(words) for words in commands]
    if commands and cores:
        os.sched_setaffinity(0, own)
    try:
        yield codes
    except BaseException:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        raise
    finally:
        codes.extend(process.wait() for process in processes)
