"""Tables and figures for a paper: numbers and intervals of the records, names escaped, charts with their legend."""

from __future__ import annotations

import json
import sys

import pytest

from ditto_jax.errors import MissingInputError
from ditto_jax.report.export import breakdown_table, evaluation_table, export_report, standalone
from ditto_jax.report.page import read_runs, run_charts
from ditto_jax.report.palette import LIGHT
from tests.report_runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", 8, name="50% of_a & $b^{", rollouts=False)


def test_table_holds_values_with_intervals_and_escaped_names(run):
    table = evaluation_table(read_runs([run]))
    line = next(line for line in table.splitlines() if "hitom-heldout" in line)
    assert line.startswith(
        r"50\% of\_a \& \$b\textasciicircum{}\{ & hitom-heldout & $25.5$ {\scriptsize $[20.0, 31.0]$} & $67.1$"
    )
    assert line.endswith(r"& 240 \\")
    assert table.count("\\begin{tabular}") == table.count("\\end{tabular}") == 1


def test_breakdowns_have_a_line_per_group(run):
    table = breakdown_table(read_runs([run]))
    assert sum(line.count("& order 3 &") for line in table.splitlines()) == 3
    assert all(line.count(" & ") == 4 for line in table.splitlines() if "scriptsize" in line)


def test_standalone_chart_has_colours_and_a_legend_of_names(run):
    chart = run_charts(read_runs([run])[0], "run")["learning_charts"][0]
    spec = json.dumps(standalone(chart))
    assert "ink:" not in spec and LIGHT["series-0"] in spec and "draft reward (no feedback)" in spec
    assert chart.spec["width"] == "container"


def test_every_chart_becomes_an_svg_file(run, tmp_path):
    pytest.importorskip("vl_convert", reason="the extra figures is not installed")
    folder = export_report([run], tmp_path / "paper")
    names = {path.name for path in folder.iterdir()}
    assert {"evaluations.tex", "breakdowns.tex", "run-1-rewards.svg", "run-1-time.svg", "run-1-eval-0.svg"} <= names
    drawn = (folder / "run-1-rewards.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<svg") and "draft reward (no feedback)" in drawn and LIGHT["series-0"] in drawn


def test_missing_extra_is_an_error_with_the_line_that_installs_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingInputError, match=r"ditto-jax\[figures\]"):
        export_report([run], tmp_path / "paper")
