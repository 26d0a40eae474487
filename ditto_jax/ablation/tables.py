"""Results → a table for the terminal and a Markdown page: figures with their intervals, differences, warnings.

In: the values of `summary.py`. Out: text. Nothing is computed here but the width of an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_ABSENT = "–"


def headers_and_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the main table: one row an arm, in the order of the configuration.

    refined: refined rollouts an update, which are among its samples. gap: teacher-student gap over the first and over
    the last tenth of the run. collapsed: how many runs did.
    """
    collapsed = {(entry["arm"], entry["seed"]) for entry in results["collapsed"]}
    headers = ["arm", "seeds", "start", *results["places"], "samples/update", "refined", "gap", "collapsed"]
    rows = []
    for name, arm in results["arms"].items():
        rows.append(
            [
                name,
                str(len(arm["seeds"])),
                show(arm["start"]),
                *(show(arm["at"][place]) for place in results["places"]),
                show(arm["samples_per_update"], digits=0, interval=False),
                show(arm["refined_per_update"], digits=0, interval=False),
                _gap(arm["gap"]),
                str(sum(one == name for one, _ in collapsed)),
            ]
        )
    return headers, rows


def show(estimate: Mapping[str, Any] | None, digits: int = 3, interval: bool = True, sign: str = "") -> str:
    """Returns "mean ± half width of the 95 % interval", or a dash where nothing was measured for every seed."""
    if estimate is None:
        return _ABSENT
    text = f"{estimate['mean']:{sign}.{digits}f}"
    if not interval or estimate["low"] is None:
        return text
    return f"{text} ± {(estimate['high'] - estimate['low']) / 2:.{digits}f}"


def _gap(gap: Mapping[str, Any]) -> str:
    if gap["first"] is None or gap["last"] is None:
        return _ABSENT
    return f"{gap['first']['mean']:+.3f} to {gap['last']['mean']:+.3f}"


def difference_rows(results: Mapping[str, Any], reference: str) -> list[list[str]]:
    """Returns arm and, for each place, the difference to the reference; one whose interval leaves out 0 has a star."""
    table = results["differences"][reference]
    return [[name, *(_starred(row[place]) for place in results["places"])] for name, row in table.items()]


def _starred(estimate: Mapping[str, Any] | None) -> str:
    text = show(estimate, sign="+")
    if estimate is None or estimate["low"] is None:
        return text
    return f"{text} *" if estimate["low"] > 0 or estimate["high"] < 0 else text


def warnings(results: Mapping[str, Any]) -> list[str]:
    """Returns one sentence for each collapse, and one about runs that are not there."""
    lines = [f"{entry['arm']}, seed {entry['seed']}: {entry['why']}" for entry in results["collapsed"]]
    if results["missing"]:
        shown = "; ".join(results["missing"][:6])
        more = f"; and {len(results['missing']) - 6} more" if len(results["missing"]) > 6 else ""
        lines.append(f"not finished, and in no figure: {shown}{more}")
    return lines


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Prints the main table, the differences and the warnings."""
    headers, rows = headers_and_rows(results)
    _print_table(console, _title(results), headers, rows)
    for reference in results["differences"]:
        title = f"Differences to {reference} within a seed (*: the interval leaves out 0)"
        _print_table(console, title, ["arm", *results["places"]], difference_rows(results, reference))
    for line in warnings(results):
        console.print(Text(f"warning: {line}", style="yellow"), soft_wrap=True)


def _title(results: Mapping[str, Any]) -> str:
    runs = results["runs"]
    return (
        f"{results['name']} ({results['config_hash']}): {runs['finished']} of {runs['planned']} runs, "
        f"{results['seeds']} seeds from {results['warm_starts']} warm starts, mean ± 95 % interval"
    )


def _print_table(console: Console, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=SIMPLE_HEAD)
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def markdown(results: Mapping[str, Any], picture: str) -> str:
    """Returns the same as a page, with the picture of that file name."""
    headers, rows = headers_and_rows(results)
    parts = [f"# {results['name']}", f"{_title(results)}.", _grid(headers, rows)]
    for reference in results["differences"]:
        parts.append(f"Differences to `{reference}` within a seed; a star: the 95 % interval leaves out 0.")
        parts.append(_grid(["arm", *results["places"]], difference_rows(results, reference)))
    parts.append(f"![Learning curves, final scores and teacher-student gap of every arm]({picture})")
    found = warnings(results)
    parts.append("\n".join(f"- {line}" for line in found) if found else "No run collapsed, and none is missing.")
    return "\n\n".join(parts) + "\n"


def _grid(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
