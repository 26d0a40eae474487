"""`ditto-jax replay RUN --step N --prompt M`: a step of a past run again, compared with its record, token by token.

In: the words after the verb. Out: an exit code, tables on the terminal, a file where asked for. What is replayed and
how is `ditto_jax.replay`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tyro

from launch import environment


@dataclasses.dataclass(frozen=True)
class _ReplayFlags:
    """Regenerate one step of a run from its nearest checkpoint and its recorded verdicts; show one prompt token by
    token, or how a draft is refined under other words. The run is only read."""

    run: tyro.conf.Positional[Path]
    """run directory, for example runs/quickstart"""
    step: int
    """step to replay, from 1"""
    prompt: str
    """prompt of the step: its number from 0, or its id"""
    sample: int | None = None
    """draft to show and to refine (default: the first that was refined)"""
    feedback: str | None = None
    """other words about this draft: screened like a judge's, then the refined rollout is sampled and judged again"""
    tokens: int = 60
    """most tokens of a view in the terminal"""
    output: Path | None = None
    """also write everything to this file: .json, or .html for a page"""


def main(args: list[str], command: list[str]) -> int:
    """Prints the replay; GateFailed (exit 4) if the record was not regenerated bit for bit."""
    environment.prepare_allocator()
    from ditto_jax.errors import GateFailed

    flags = tyro.cli(_ReplayFlags, args=args, prog="ditto-jax replay", use_underscores=True)
    _check(flags)
    environment.use_compile_cache()
    from rich.console import Console

    from ditto_jax.replay.replay import ReplayRequest, replay
    from ditto_jax.replay.show import print_replay, write_page
    from ditto_jax.runs.run_dir import write_atomically

    console = Console(highlight=False, markup=False)
    request = ReplayRequest(flags.run, flags.step, flags.prompt, flags.sample, flags.feedback)
    found = replay(request, tell=console.print)
    print_replay(found, console, flags.tokens)
    if flags.output is not None:
        if flags.output.suffix == ".html":
            write_page(found, flags.output)
        else:
            write_atomically(flags.output, json.dumps(found.as_json(), indent=1) + "\n")
        console.print(f"written: {flags.output}")
    if not found.is_exact:
        raise GateFailed(f"the record of step {flags.step} was not regenerated bit for bit; what differs is told above")
    return 0


def _check(flags: _ReplayFlags) -> None:
    from ditto_jax.errors import ConfigError

    if flags.step < 1:
        raise ConfigError(f"step={flags.step}: steps count from 1")
    if flags.tokens < 0:
        raise ConfigError(f"tokens={flags.tokens}: must be 0 or more; 60 works")
    if flags.output is None:
        return
    if flags.output.suffix not in (".json", ".html"):
        raise ConfigError(f"output={flags.output}: name a file that ends in .json or .html")
    if not flags.output.parent.is_dir():
        raise ConfigError(f"output={flags.output}: there is no folder {flags.output.parent}; make it first")
    if flags.output.resolve().is_relative_to(flags.run.expanduser().resolve()):
        raise ConfigError(f"output={flags.output}: a replay leaves the run directory as it is; name another folder")
