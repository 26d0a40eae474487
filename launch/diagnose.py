"""`ditto-jax diagnose RUN`: what is wrong with a run, with evidence, where to look, and what to try.

In: the words after the verb. Out: findings on the terminal or as JSON, and an exit code. What is looked for, and
how, is `ditto_jax.diagnosis`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from ditto_jax.diagnosis import Diagnosis, Finding

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclasses.dataclass(frozen=True)
class _DiagnoseFlags:
    """Name what is wrong with a training run, with evidence and something to try."""

    run: tyro.conf.Positional[Path]
    """run directory, for example runs/quickstart; it may still be training"""
    control: Path | None = None
    """a run of the same setting whose words had no content (judge.feedback_content=content_free)"""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """print the findings as JSON"""
    fail_on: Literal["error", "warning"] | None = None
    """exit with 4 if anything as grave as this was found"""


def main(args: list[str], command: list[str]) -> int:
    """Prints the findings; GateFailed (exit 4) if --fail_on does not hold."""
    from rich.console import Console

    from ditto_jax.diagnosis import diagnose_run
    from ditto_jax.errors import GateFailed

    flags = tyro.cli(_DiagnoseFlags, args=args, prog="ditto-jax diagnose", use_underscores=True)
    found = diagnose_run(flags.run, flags.control)
    if flags.json:
        print(found.as_json(), end="")
    else:
        _print(Console(highlight=False), found)
    grave = found.at_least(flags.fail_on) if flags.fail_on else []
    if grave:
        raise GateFailed(f"{flags.run}: --fail_on {flags.fail_on}: {', '.join(dict.fromkeys(f.name for f in grave))}")
    return 0


def _print(console: Console, found: Diagnosis) -> None:
    for finding in found.findings:
        _print_finding(console, finding)
    counts = f"{found.checks} checks over {found.steps} steps and {found.rollouts:,} rollouts"
    names = len({finding.name for finding in found.findings})
    console.print(f"{counts}: {f'{names} kind(s) of findings' if names else 'nothing found'}")


def _print_finding(console: Console, finding: Finding) -> None:
    from rich.table import Table
    from rich.text import Text

    from ditto_jax.diagnosis import figure
    from ditto_jax.text.visible_text import one_line

    head = Text.assemble((f"{finding.severity}  ", _COLOURS[finding.severity]), (finding.name, "bold"))
    if finding.follows_from:
        head.append(f"  (follows from {finding.follows_from})", "dim")
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True, style="dim")
    lines.add_column(overflow="fold")
    lines.add_row("what", Text(one_line(finding.summary)))
    if finding.steps is not None:
        lines.add_row("steps", f"{finding.steps[0]} to {finding.steps[1]}")
    for what, value in finding.evidence.items():
        lines.add_row("evidence", Text(one_line(f"{what}: {figure(value)}")))
    for place in finding.examples:
        lines.add_row("example", str(place))
    for advice in finding.advice:
        lines.add_row("try", Text(f"{advice.setting}: {advice.value} ({advice.why})"))
    console.print(head, lines, "", sep="\n")
