"""Run directories → one self-contained HTML file: what was learned, how sure that is, and what it looked like.

… → sharded update → checkpoint, evaluation, **report**

In: finished or unfinished runs, any part of which may be missing. Out: a page that carries its scripts and data and
asks for nothing from elsewhere, the same bytes for the same runs. All text of policies, judges and users is shown as
text. Measures nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ditto_jax.config_io import flatten, read_yaml
from ditto_jax.diagnosis import Diagnosis, Evidence, Finding, Place, diagnose, figure
from ditto_jax.errors import MissingInputError, RunDirectoryError
from ditto_jax.evaluation import reading as evaluation_reading
from ditto_jax.evaluation.comparison import Pair, pair_evaluations, sentence, show_interval, show_measured, show_value
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.report import findings as report_findings
from ditto_jax.report import page_assets
from ditto_jax.report.charts import Chart, evaluation_chart
from ditto_jax.report.compared_runs import ComparedRun, last_evaluations, overlay_charts
from ditto_jax.report.metric_charts import cost_charts, feedback_charts, learning_charts
from ditto_jax.report.rollout_browser import embedded_rollouts
from ditto_jax.report.rollout_reading import RULE, RolloutReading, read_rollouts
from ditto_jax.report.rollout_sources import TRAINING
from ditto_jax.runs.readings import number
from ditto_jax.runs.run_dir import RunDirectory, write_atomically
from ditto_jax.text.visible_text import visible

_SCRIPTS = (*page_assets.CHART_LIBRARIES, *page_assets.BROWSER_LIBRARIES, "charts.js", "rollout_view.js", "rollouts.js")
_LONGEST_TEXT = 20_000  # characters of one prompt or reply; the rest is in rollouts/

_Addresses = Callable[[int, Place], str]  # (number of a run, a rollout of it) → where the page opens it


@dataclasses.dataclass(frozen=True)
class RunReading:
    """All that the report knows about one run."""

    run: RunDirectory
    name: str
    config: Mapping[str, Any]
    status: Mapping[str, Any]
    environment: Mapping[str, Any]
    command: str
    config_text: str
    rows: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    evaluation_table: Mapping[str, Any]
    pairs: Sequence[Pair]
    rollouts: RolloutReading
    diagnosis: Diagnosis

    @property
    def objective(self) -> str:
        return str((self.config.get("objective") or {}).get("name") or "unknown")

    @property
    def judge(self) -> str:
        """Who gave the scores: as recorded with them, else as configured."""
        recorded = {str(record["judge"]) for record in self.evaluations if record.get("judge")} | self.rollouts.judges
        if recorded:
            # "rules" says nothing that "rules@hitom-1" does not.
            precise = [j for j in recorded if not any(other.startswith(f"{j}@") for other in recorded)]
            return ", ".join(sorted(precise))
        judge = self.config.get("judge") or {}
        return ":".join(str(judge[key]) for key in ("kind", "model") if judge.get(key)) or "unknown"

    @property
    def state(self) -> str:
        """STATUS.json in words."""
        if not self.status:
            return "unknown (no STATUS.json)"
        text = f"{self.status.get('state', 'unknown')} at step {self.status.get('step', '?')}"
        total = (self.config.get("train") or {}).get("max_steps")
        text += f" of {total}" if total else ""
        if self.status.get("detail"):
            text += f": {self.status['detail']}"
        return text + (f" ({self.status['updated_at']})" if self.status.get("updated_at") else "")


def write_report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Returns the path of the HTML report on `runs`, which it writes.

    output: default `<run>/report/index.html`, for several runs `<first run>/report/comparison.html`. Raises
    MissingInputError if there is no run or one is no folder, RunDirectoryError if the page cannot be written.
    """
    if not runs:
        raise MissingInputError("report: name at least one run directory, for example runs/quickstart")
    readings = read_runs(runs)
    default = RunDirectory(Path(runs[0])).report
    path = output or (default if len(runs) == 1 else default.with_name("comparison.html"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(
            f"report: cannot make {path.parent}: {error.strerror}; choose another output"
        ) from error
    write_atomically(path, render(readings))
    return path


def read_runs(runs: Sequence[Path]) -> list[RunReading]:
    """Returns the readings of `runs` under names that differ. Raises MissingInputError if one is no folder."""
    return _with_distinct_names([read_run(Path(path)) for path in runs])


def read_run(path: Path) -> RunReading:
    """Returns everything in a run directory that the report shows. Raises MissingInputError if it is no folder."""
    if not path.is_dir():
        raise MissingInputError(f"report: {path} is no run directory; name a folder that `ditto-jax train` has written")
    run = RunDirectory(path)
    config = read_yaml(path / "config.yaml") if (path / "config.yaml").exists() else {}
    evaluations = read_evaluations(run)
    status, rows, rollouts = run.read_status(), run.read_metrics(), read_rollouts(run)
    pairs = pair_evaluations(evaluations, report_findings.configured_labels(config))
    return RunReading(
        run=run,
        name=str(config.get("run_name") or path.resolve().name),
        config=config,
        status=status,
        environment=_json(path / "env.json"),
        command=_text(path / "cli.txt").strip(),
        config_text=_text(path / "config.yaml"),
        rows=rows,
        evaluations=evaluations,
        evaluation_table=evaluation_reading.read_evaluation_table(run),
        pairs=pairs,
        rollouts=rollouts,
        diagnosis=diagnose(Evidence(run, config, status, rows, pairs, rollouts.facts)),
    )


def _with_distinct_names(readings: Sequence[RunReading]) -> list[RunReading]:
    """Runs that share a name are called by their folders, which differ."""
    counts = collections.Counter(reading.name for reading in readings)
    return [dataclasses.replace(r, name=str(r.run.path)) if counts[r.name] > 1 else r for r in readings]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _json(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def render(readings: Sequence[RunReading], served: bool = False) -> str:
    """Returns the page. Everything inserted is escaped, and hidden characters in it are made visible.

    served: the page asks its server for the rollouts (`report_server.py`); else it holds up to
    `rollout_browser.MOST_EMBEDDED` of them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(page_assets.TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    rollouts, addresses = _rollout_data(readings, served)
    sections = [
        _section(reading, f"run-{n + 1}", functools.partial(addresses, n)) for n, reading in enumerate(readings)
    ]
    several = len(readings) > 1
    compared = [ComparedRun(r.name, r.config, r.rows, r.pairs) for r in readings]
    overlays = overlay_charts(compared) if several else []
    drawn = [*overlays, *(chart for section in sections for chart in section["charts"])]
    scripts = page_assets.scripts(_SCRIPTS)
    return environment.get_template("report.html.j2").render(
        title=f"{len(readings)} runs compared" if several else readings[0].name,
        several=several,
        sections=sections,
        overlays=overlays,
        compared=last_evaluations(compared) if several else ([], []),
        rule=RULE,
        table_style=page_assets.table_style(),
        scripts=[script.text for script in scripts],
        policy=page_assets.content_policy(scripts, served),
        specs=page_assets.json_block({chart.name: chart.spec for chart in drawn}),
        rollouts=rollouts,
    )


def _rollout_data(readings: Sequence[RunReading], served: bool) -> tuple[dict[str, Any], _Addresses]:
    """(what the page carries for its rollout browser, of a served page only the names of the runs; addresses in it)."""
    names = [reading.name for reading in readings]
    if served:
        source = 0 if readings[0].rollouts.steps_written else None  # the first that a whole index meets
        data = {"note": "", "index": page_assets.json_block({"served": True, "runs": names}), "blocks": {}}
        return data, lambda run, place: _address(run, source, place)
    found = embedded_rollouts([reading.run for reading in readings])
    data = {
        "note": found.note,
        "index": page_assets.json_block({"served": False, "runs": names, **found.index.as_dict()}),
        "blocks": {f"block-{'-'.join(map(str, at))}": page_assets.packed_block(b) for at, b in found.blocks.items()},
    }
    source = found.index.source(TRAINING)
    return data, lambda run, place: _address(run, source if (run, source, place.step) in found.blocks else None, place)


def _address(run: int, source: int | None, place: Place) -> str:
    """Where the browser opens an item, empty if it does not have it."""
    return "" if source is None else f"#item={run}.{source}.{place.step}.{place.prompt_index}.{place.sample}"


def _shown(value: Any) -> Any:
    """Markup is ours and passes; any other text is shown with nothing hidden."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def run_charts(reading: RunReading, name: str) -> dict[str, list[Chart]]:
    """Returns the charts of one run by the part of the page in which they stand. name: starts the name of each."""
    evaluated = [evaluation_chart(f"{name}-eval-{index}", pair) for index, pair in enumerate(reading.pairs)]
    return {
        "evaluation_charts": [chart for chart in evaluated if chart is not None],
        "learning_charts": learning_charts(name, reading.rows, reading.pairs, reading.evaluations),
        "feedback_charts": feedback_charts(name, reading.rows),
        "cost_charts": cost_charts(name, reading.rows),
    }


def _section(reading: RunReading, name: str, address: Callable[[Place], str]) -> dict[str, Any]:
    """What the template shows of one run. name: unique prefix for ids. address: of an item in the rollout browser."""
    rows, pairs, charts = reading.rows, reading.pairs, run_charts(reading, name)
    return {
        "id": name,
        "reading": reading,
        "headlines": report_findings.headlines(pairs, rows),
        "sentences": [(pair, sentence(pair)) for pair in pairs],
        "findings": [_finding(finding, address) for finding in reading.diagnosis.findings],
        "missing": report_findings.missing(rows, pairs, reading.rollouts, reading.config),
        **charts,
        "charts": [chart for group in charts.values() for chart in group],
        "evaluation": _evaluation_tables(reading),
        "breakdowns": [_breakdown(pair) for pair in pairs],
        "controls": [_control(control) for control in report_findings.controls(pairs)],
        "outcomes": report_findings.outcome_lines(rows, reading.rollouts, reading.config),
        "outcome_source": report_findings.outcome_source(rows, reading.rollouts),
        "examples": [_example(example) for example in reading.rollouts.examples],
        "changes": reading.rollouts.changes,
        "environment": flatten(reading.environment),
        "total_time": _duration(sum(number(row, "time/step_s") or 0.0 for row in rows)),
    }


def _finding(finding: Finding, address: Callable[[Place], str]) -> dict[str, Any]:
    """A finding of the diagnosis with its figures as text and its examples with their addresses."""
    return {
        "finding": finding,
        "figures": [(what, figure(value)) for what, value in finding.evidence.items()],
        "examples": [(str(place), address(place)) for place in finding.examples],
    }


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _evaluation_tables(reading: RunReading) -> dict[str, Any]:
    records, table = reading.evaluations, reading.evaluation_table
    return {
        "columns": evaluation_reading.COLUMNS,
        "rows": evaluation_reading.evaluation_rows(records),
        "metrics": evaluation_reading.metric_rows(records),
        "faults": evaluation_reading.fault_rows(records),
        "not_measured": evaluation_reading.not_measured(table),
        "average": evaluation_reading.suite_average(table),
    }


def _breakdown(pair: Pair) -> dict[str, Any]:
    """All breakdowns of one evaluation as rows of text."""
    rows = []
    for breakdown in pair.breakdowns():
        for group in pair.groups(breakdown):
            cells = [
                "not measured" if m is None else show_measured(m, pair.in_unit) for m in (group.before, group.after)
            ]
            rows.append((breakdown, group.name, *cells))
    return {"label": pair.label, "rows": rows}


def _control(control: Any) -> dict[str, Any]:
    both = (control.feedback, control.content_free)
    unit = all(m is None or m.in_unit for m in both)
    cells = ["not measured" if m is None else (show_value(m.value, unit), show_interval(m, unit), m.n) for m in both]
    return {"control": control, "cells": cells}


def _example(example: Any) -> dict[str, Any]:
    """An example with its long texts cut, and with what was cut."""
    draft, refined = example.draft, example.refined
    return {
        "example": example,
        "draft": draft,
        "refined": refined,
        "prompt_length": sum(len(str(m.get("content", ""))) for m in draft.get("prompt") or []),
        "messages": [(str(m.get("role", "")), *_cut(str(m.get("content", "")))) for m in draft.get("prompt") or []],
        "draft_reply": _cut(str(draft.get("reply", ""))),
        "refined_reply": _cut(str(refined.get("reply", ""))),
        "words": _cut(example.words),
        "file": f"rollouts/step_{example.step:06d}.jsonl.gz",
    }


def _cut(text: str) -> tuple[str, int]:
    """(shown text, characters left out)."""
    return text[:_LONGEST_TEXT], max(0, len(text) - _LONGEST_TEXT)
