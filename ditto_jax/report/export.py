"""Run directories → what goes into a paper: evaluations as LaTeX tables with their intervals, charts as SVG files.

In: runs. Out: `evaluations.tex`, `breakdowns.tex` and one SVG per chart of the report, in the colours of its light
scheme. Numbers and intervals are those of the records; nothing is estimated here. Drawing needs the extra `figures`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.errors import MissingInputError, RunDirectoryError
from ditto_jax.evaluation.comparison import Measured, Pair
from ditto_jax.report.charts import Chart
from ditto_jax.report.compared_runs import ComparedRun, overlay_charts
from ditto_jax.report.page import RunReading, read_runs, run_charts
from ditto_jax.report.palette import LIGHT, coloured
from ditto_jax.runs.run_dir import write_atomically
from ditto_jax.text.visible_text import one_line

_WIDTH = 440  # pixels of a figure, legend included

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def export_report(runs: Sequence[Path], folder: Path) -> Path:
    """Returns `folder`, into which it writes the tables and figures of a report on `runs`.

    Raises MissingInputError if there is no run, one is no folder or the extra is not installed, RunDirectoryError if
    the folder cannot be made.
    """
    if not runs:
        raise MissingInputError("report: name at least one run directory, for example runs/quickstart")
    readings = read_runs(runs)
    try:
        converter = importlib.import_module("vl_convert")
    except ImportError as error:
        raise MissingInputError("report: --export needs an extra: pip install 'ditto-jax[figures]'") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"report: cannot make {folder}: {error.strerror}; choose another folder") from error
    write_atomically(folder / "evaluations.tex", evaluation_table(readings))
    write_atomically(folder / "breakdowns.tex", breakdown_table(readings))
    for chart in _charts(readings):
        write_atomically(folder / f"{chart.name}.svg", converter.vegalite_to_svg(standalone(chart), vl_version="6.4"))
    return folder


def _charts(readings: Sequence[RunReading]) -> Iterator[Chart]:
    if len(readings) > 1:
        yield from overlay_charts([ComparedRun(r.name, r.config, r.rows, r.pairs) for r in readings])
    for index, reading in enumerate(readings, start=1):
        for charts in run_charts(reading, f"run-{index}").values():
            yield from charts


def standalone(chart: Chart) -> dict[str, Any]:
    """Returns the specification of a chart that stands alone: its own width, title, colours and legend."""
    names = json.dumps({key.series: one_line(key.name) for key in chart.keys})
    legend = {"title": None, "labelExpr": f"{names}[datum.label]", "labelLimit": _WIDTH}
    spec = coloured(_with_legend(chart.spec, legend), LIGHT)
    return {**spec, "width": _WIDTH, "background": LIGHT["paper"], "title": one_line(chart.title)}


def _with_legend(value: Any, legend: dict[str, Any]) -> Any:
    """The specification with a legend for colours, which the page draws outside of it."""
    if isinstance(value, list):
        return [_with_legend(entry, legend) for entry in value]
    if not isinstance(value, dict):
        return value
    changed = {key: entry if key == "data" else _with_legend(entry, legend) for key, entry in value.items()}
    if isinstance(changed.get("color"), dict) and "legend" in changed["color"]:
        changed["color"] = {**changed["color"], "legend": legend}
    return changed


def evaluation_table(readings: Sequence[RunReading]) -> str:
    """Returns a LaTeX table: every evaluation of every run, before and after, with intervals; needs booktabs."""
    rows = [
        (reading.name, pair.label, *(_cell(m, pair) for m in (pair.whole.before, pair.whole.after)), _items(pair))
        for reading in readings
        for pair in reading.pairs
    ]
    return _table(("run", "evaluation", "before", "after", "items"), "llrrr", rows)


def breakdown_table(readings: Sequence[RunReading]) -> str:
    """Returns a LaTeX table: every breakdown of every evaluation, before and after, with intervals; needs booktabs."""
    rows = [
        (reading.name, pair.label, f"{name} {group.name}", _cell(group.before, pair), _cell(group.after, pair))
        for reading in readings
        for pair in reading.pairs
        for name in pair.breakdowns()
        for group in pair.groups(name)
    ]
    return _table(("run", "evaluation", "group", "before", "after"), "lllrr", rows)


class _Latex(str):
    """A text that is LaTeX already."""


def _cell(m: Measured | None, pair: Pair) -> str:
    if m is None:
        return "--"
    factor, digits = (100.0, 1) if pair.in_unit else (1.0, 3)
    value = f"{factor * m.value:.{digits}f}"
    if m.low is None or m.high is None:
        return value
    bounds = f"[{factor * m.low:.{digits}f}, {factor * m.high:.{digits}f}]"
    return _Latex(f"${value}$ {{\\scriptsize ${bounds}$}}")


def _items(pair: Pair) -> str:
    counts = dict.fromkeys(str(m.n) for m in (pair.whole.before, pair.whole.after) if m is not None)
    return " / ".join(counts) or "0"


def _table(columns: Sequence[str], places: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "% Percent where scores lie in [0, 1]; brackets hold the interval of the record. Needs \\usepackage{booktabs}."
    ]
    lines += [f"\\begin{{tabular}}{{{places}}}", "\\toprule", f"{' & '.join(columns)} \\\\", "\\midrule"]
    lines += [f"{' & '.join(map(_escaped, row))} \\\\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _escaped(text: str) -> str:
    if isinstance(text, _Latex):
        return text
    return "".join(_LATEX.get(character, character) for character in one_line(text))
