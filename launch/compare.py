"""`ditto-jax compare RUN RUN ...`: evaluated runs side by side, paired by item.

In: the words after the verb. Out: an exit code, a table on the terminal, and files where asked for. How runs are
compared is `ditto_jax.evaluation.paired_comparison`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class _CompareFlags:
    """Compare evaluated runs with the first one, item by item: difference, interval, wins and losses, noise or not."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """run directories, the baseline first; DIRECTORY@STEP takes what was measured at that step"""
    output: Path | None = None
    """folder for comparison.json and comparison.md (default: nothing is written)"""
    fail_under: float | None = None
    """exit with 4 if any mean difference is below this"""
    confidence: float = 0.95
    """of the intervals; differences are called noise at this level, corrected for how many there are"""


def main(args: list[str], command: list[str]) -> int:
    """Prints the comparison; GateFailed (exit 4) if --fail_under does not hold."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from ditto_jax.errors import ConfigError, GateFailed
    from ditto_jax.evaluation import paired_comparison as paired
    from ditto_jax.runs.run_dir import write_atomically

    flags = tyro.cli(_CompareFlags, args=args, prog="ditto-jax compare", use_underscores=True)
    if len(set(flags.runs)) != len(flags.runs):
        raise ConfigError("compare: a run is named twice; name two different ones, or RUN@STEP")
    if not 0.5 <= flags.confidence < 1.0:
        raise ConfigError(f"confidence={flags.confidence}: must be at least 0.5 and below 1; 0.95 works")
    if flags.fail_under is not None and not math.isfinite(flags.fail_under):
        raise ConfigError(f"fail_under={flags.fail_under}: must be a finite difference, for example 0")
    found = paired.compare({run: paired.read_items(run) for run in flags.runs}, flags.confidence)
    console = Console(highlight=False)
    for other in dict.fromkeys(one.other for one in found):
        title = f"{other} compared with {found[0].baseline}"
        table = Table(*paired.COLUMNS, title=title, title_justify="left", box=SIMPLE_HEAD)
        for one in found:
            if one.other == other:
                table.add_row(*paired.cells(one))
        console.print(table)
    if flags.output is not None:
        flags.output.mkdir(parents=True, exist_ok=True)
        write_atomically(flags.output / "comparison.json", paired.as_json(found))
        write_atomically(flags.output / "comparison.md", paired.as_markdown(found))
        console.print(f"written: {flags.output / 'comparison.md'}")
    low = [one for one in found if flags.fail_under is not None and one.value < flags.fail_under]
    if low:
        gate = f"below --fail_under {flags.fail_under:g}"
        raise GateFailed("; ".join(f"{one.other}, {one.label}: {one.value:+.3f} is {gate}" for one in low))
    return 0
