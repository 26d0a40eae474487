"""The verbs that take a config: train, eval, sft, export and report.

In: the words after the verb and the whole command (for the run's records). Out: an exit code. jax is imported only
after the allocator is set.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from launch import environment
from launch.distributed import CLUSTER_FLAGS, join
from launch.flags import parse
from launch.task_flags import EVAL_FLAGS, TASK_FLAGS, spelled_out


def train(args: list[str], command: list[str]) -> int:
    """Trains; prints where the run and its report are."""
    environment.prepare_allocator()
    from ditto_jax.config import RunConfig

    words = spelled_out(args, "train")
    about = "Train a policy with verbal feedback. The same command continues a run."
    parsed = parse(RunConfig, words, "train", about, [*TASK_FLAGS, *CLUSTER_FLAGS])
    join(parsed.options)
    environment.use_compile_cache()
    from ditto_jax.loop import train

    _tell_where(train(parsed.config, command))
    return 0


def evaluate(args: list[str], command: list[str]) -> int:
    """Evaluates a policy without feedback; GateFailed (exit 4) if --fail_under does not hold."""
    environment.prepare_allocator()
    from ditto_jax.config import RunConfig

    gate = Annotated[
        float | None, tyro.conf.arg(help="exit with 4 if the mean score of any evaluated label is below this")
    ]
    words = spelled_out(args, "eval")
    about = "Measure a policy on the tasks of `evaluation.tasks`, or of --tasks and --task."
    parsed = parse(RunConfig, words, "eval", about, [("fail_under", gate, None), *EVAL_FLAGS, *CLUSTER_FLAGS])
    if parsed.config.policy.kind == "local":
        join(parsed.options)
        environment.use_compile_cache()
    from ditto_jax.evaluation.run import run_evaluation

    _tell_where(run_evaluation(parsed.config, command, parsed.options["fail_under"]))
    return 0


def sft(args: list[str], command: list[str]) -> int:
    """Trains a policy from scratch on worked replies; prints its folder."""
    environment.prepare_allocator()
    from ditto_jax.sft_run import SFTConfig, run_sft

    about = "Train a small policy from scratch on worked replies of the generators."
    parsed = parse(SFTConfig, args, "sft", about, CLUSTER_FLAGS)
    join(parsed.options)
    environment.use_compile_cache()
    print(f"policy: {run_sft(parsed.config, command)}")
    return 0


def export(args: list[str], command: list[str]) -> int:
    """Writes what a run has trained for other software; prints its folder and what reads it."""
    environment.prepare_allocator()
    from ditto_jax.export import ExportConfig, export_run

    words = ["--run", *args] if args and not args[0].startswith("-") else args
    about = "Write what a run has trained: adapters for PEFT, a whole model, or the Qwen3-VL that it began with."
    folder, reader = export_run(parse(ExportConfig, words, "export", about).config)
    print(f"exported: {folder} (for {reader})")
    return 0


@dataclasses.dataclass(frozen=True)
class _ReportFlags:
    """Write one self-contained HTML page about one or more runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, for example runs/quickstart"""
    output: Path | None = None
    """file to write (default: report/index.html in the first run directory)"""
    serve: bool = False
    """serve the page on 127.0.0.1 instead of writing it: any number of rollouts, read as they are asked for"""
    port: int = 8742
    """port of --serve; 0 takes any free one"""
    export: Path | None = None
    """folder for the tables as LaTeX and the charts as SVG (needs the extra `figures`)"""


def report(args: list[str], command: list[str]) -> int:
    """Writes the report of finished or unfinished runs; prints its path."""
    from ditto_jax.errors import ConfigError
    from ditto_jax.report.page import write_report

    flags = tyro.cli(_ReportFlags, args=args, prog="ditto-jax report", use_underscores=True)
    if not flags.runs:
        raise ConfigError("report: name at least one run directory, for example runs/quickstart")
    if flags.serve:
        from ditto_jax.report.server import serve_report

        serve_report(list(flags.runs), flags.port, tell=lambda text: print(text, flush=True))
        return 0
    if flags.export is not None:
        from ditto_jax.report.export import export_report

        print(f"exported: {export_report(list(flags.runs), flags.export)}")
    print(f"report: {write_report(list(flags.runs), flags.output)}")
    return 0


def _tell_where(run: Path) -> None:
    print(f"run directory: {run}")
    page = run / "report" / "index.html"
    if page.is_file():
        print(f"report: {page}")
