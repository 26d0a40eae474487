"""`ditto-jax doctor`: what this machine has, what is missing, and whether jax computes correctly on it.

Prints facts and canaries as tables. A warning says what to do and does not fail; a canary that fails does (exit 1).
"""

from __future__ import annotations

from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch import environment


def main(args: list[str], command: list[str]) -> int:
    """Prints everything; returns 1 if a canary failed."""
    environment.prepare_allocator()
    from ditto_jax.config import RunConfig
    from launch.distributed import CLUSTER_FLAGS, join
    from launch.flags import parse

    skip = Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="say what is there without computing anything")
    ]
    description = "Say what this machine has for a run with these settings, and check that jax computes correctly."
    parsed = parse(RunConfig, args, "doctor", description, [("skip_canaries", skip, False), *CLUSTER_FLAGS])
    join(parsed.options)
    console = Console(highlight=False)
    environment.use_compile_cache()
    _print_facts(console, parsed.config)
    return 0 if parsed.options["skip_canaries"] else _run_canaries(console)


def _print_facts(console: Console, config) -> None:
    from launch.machine import facts

    table = _table()
    for fact in facts(config):
        table.add_row(fact.topic, Text(fact.value))
        if fact.warning:
            table.add_row("", Text(f"warning: {fact.warning}", "yellow"))
    console.print(table)


def _run_canaries(console: Console) -> int:
    from ditto_jax.canaries import CANARIES

    console.print("\ncanaries:")
    failed = 0
    for canary in CANARIES:
        result = canary()
        table = _table()
        table.add_row(result.name, Text("ok" if result.ok else "FAILED", "green" if result.ok else "bold red"))
        table.add_row("", Text(result.detail, "dim"))
        if not result.ok:
            failed += 1
            table.add_row("", Text(f"what to do: {result.advice}", "yellow"))
        console.print(table)
    console.print(f"\n{len(CANARIES) - failed} of {len(CANARIES)} canaries hold")
    return 1 if failed else 0


def _table() -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(min_width=26, no_wrap=True)
    table.add_column(overflow="fold")
    return table
