"""Run directories → one self-contained HTML file: what was learned, how sure that is, and what it looked like.

… → sharded update → checkpoint, evaluation, **report**

In: finished or unfinished runs, any part of which may be missing. Out: a page without scripts, fonts or pictures from
elsewhere, the same bytes for the same runs. All text of policies, judges and users is shown as text. Measures nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ditto_jax import charts, report_findings
from ditto_jax.charts import Chart, Line, Points
from ditto_jax.comparison import Pair, measured, pair_evaluations, sentence, show_interval, show_measured, show_value
from ditto_jax.config_io import flatten, read_yaml
from ditto_jax.errors import MissingInputError, RunDirectoryError
from ditto_jax.evaluate import read_evaluations
from ditto_jax.readings import curves, number, reward_gap, time_curves
from ditto_jax.rollout_reading import RULE, RolloutReading, read_rollouts
from ditto_jax.run_dir import RunDirectory, write_atomically
from ditto_jax.svg import SERIES
from ditto_jax.visible_text import visible

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_TEXT = 20_000  # characters of one prompt or reply; the rest is in rollouts/
_EVALUATIONS_IN_CURVES = 3


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
    pairs: Sequence[Pair]
    rollouts: RolloutReading

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
    readings = _with_distinct_names([read_run(Path(path)) for path in runs])
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


def read_run(path: Path) -> RunReading:
    """Returns everything in a run directory that the report shows. Raises MissingInputError if it is no folder."""
    if not path.is_dir():
        raise MissingInputError(f"report: {path} is no run directory; name a folder that `ditto-jax train` has written")
    run = RunDirectory(path)
    config = read_yaml(path / "config.yaml") if (path / "config.yaml").exists() else {}
    evaluations = read_evaluations(run)
    return RunReading(
        run=run,
        name=str(config.get("run_name") or path.resolve().name),
        config=config,
        status=_json(path / "STATUS.json"),
        environment=_json(path / "env.json"),
        command=_text(path / "cli.txt").strip(),
        config_text=_text(path / "config.yaml"),
        rows=run.read_metrics(),
        evaluations=evaluations,
        pairs=pair_evaluations(evaluations, report_findings.configured_labels(config)),
        rollouts=read_rollouts(run),
    )


def _with_distinct_names(readings: Sequence[RunReading]) -> list[RunReading]:
    """Runs that share a name are called by their folders, which differ."""
    counts = collections.Counter(reading.name for reading in readings)
    return [dataclasses.replace(r, name=str(r.run.path)) if counts[r.name] > 1 else r for r in readings]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _json(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def render(readings: Sequence[RunReading]) -> str:
    """Returns the page. Everything inserted is escaped, and hidden characters in it are made visible."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    sections = [_section(reading, f"run-{index}") for index, reading in enumerate(readings, start=1)]
    several = len(readings) > 1
    title = f"{len(readings)} runs compared" if several else readings[0].name
    overlays = _overlays(readings) if several else []
    return environment.get_template("report.html.j2").render(
        title=title, several=several, sections=sections, overlays=overlays, rule=RULE
    )


def _shown(value: Any) -> Any:
    """Markup is ours and passes; any other text is shown with nothing hidden."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def _section(reading: RunReading, name: str) -> dict[str, Any]:
    """What the template shows of one run. name: unique prefix for ids."""
    rows, pairs = reading.rows, reading.pairs
    return {
        "id": name,
        "reading": reading,
        "headlines": report_findings.headlines(pairs, rows),
        "sentences": [(pair, sentence(pair)) for pair in pairs],
        "missing": report_findings.missing(rows, pairs, reading.rollouts, reading.config),
        "evaluation_charts": _drawn(charts.evaluation_chart(f"{name}-eval-{i}", p) for i, p in enumerate(pairs)),
        "learning_charts": _drawn([_learning_chart(reading, name), *_gap_charts(reading, name)]),
        "cost_charts": _drawn(_cost_charts(reading, name)),
        "breakdowns": [_breakdown(pair) for pair in pairs],
        "controls": [_control(control) for control in report_findings.controls(pairs)],
        "outcomes": report_findings.outcome_lines(rows, reading.rollouts, reading.config),
        "outcome_source": report_findings.outcome_source(rows, reading.rollouts),
        "examples": [_example(example) for example in reading.rollouts.examples],
        "changes": reading.rollouts.changes,
        "environment": flatten(reading.environment),
        "total_time": _duration(sum(number(row, "time/step_s") or 0.0 for row in rows)),
    }


def _drawn(drawings: Any) -> list[Chart]:
    return [dataclasses.replace(c, svg=Markup(c.svg)) for c in drawings if c is not None]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _learning_chart(reading: RunReading, name: str) -> Chart | None:
    rewards = {"draft": "reward", "taught": "feedback/with_feedback_reward", "refined": "feedback/revised_reward"}
    drawn = curves(reading.rows, rewards)
    lines = [
        Line("draft reward (no feedback)", drawn, "draft", "series-0"),
        Line("with feedback (refined where the draft needed it)", drawn, "taught", "series-1", "dashed"),
        Line("refined rollouts alone", drawn, "refined", "muted", "dotted"),
    ]
    note = (
        "Rewards of sampled training rollouts. Only drafts below the gate are refined, so the refined alone are the "
        "hard ones."
    )
    return charts.line_chart(
        f"{name}-learning", "Learning curves", "mean reward", lines, _evaluation_points(reading), note
    )


def _evaluation_points(reading: RunReading) -> list[Points]:
    """Evaluations over the curves, for the first labels that were evaluated more than once."""
    found = []
    for pair in reading.pairs:
        records = [r for r in reading.evaluations if r.get("label") == pair.label]
        known = [(float(r.get("step") or 0), m) for r in records if (m := measured(r)) is not None]
        known.sort(key=lambda item: item[0])
        if len(known) > 1 and len(found) < _EVALUATIONS_IN_CURVES:
            ink = ("ink", "series-2", "series-3")[len(found)]
            steps, values = zip(*known, strict=True)
            found.append(Points(f"evaluation {pair.label} (no feedback)", steps, values, ink))
    return found


def _gap_charts(reading: RunReading, name: str) -> list[Chart | None]:
    readers = {"gap": reward_gap, "uplift": "feedback/uplift", "context": "policy/context_gap_mean"}
    drawn = curves(reading.rows, readers)
    rewards = [
        Line("with feedback − without", drawn, "gap", "series-2"),
        Line("refined − its own draft (uplift)", drawn, "uplift", "muted", "dashed"),
    ]
    context = [Line("context gap", drawn, "context", "series-3")]
    about = (
        "How much likelier refined replies are under the prompt with feedback than under the plain prompt. Only drafts "
        "that were still wrong are refined, so later steps show harder ones."
    )
    gap = charts.line_chart(f"{name}-gap", "Teacher–student gap", "reward difference", rewards)
    if gap is None:
        return []
    return [
        gap,
        charts.line_chart(f"{name}-context", "Context gap", "nats per token", context, note=about, is_reward=False),
    ]


def _cost_charts(reading: RunReading, name: str) -> list[Chart | None]:
    speed = curves(reading.rows, {"tokens": "tokens_per_s"})
    return [
        charts.time_chart(f"{name}-time", time_curves(reading.rows)),
        charts.line_chart(
            f"{name}-speed",
            "Sampling speed",
            "tokens per second",
            [Line("sampled tokens per second", speed, "tokens", "series-5")],
            is_reward=False,
        ),
    ]


def _overlays(readings: Sequence[RunReading]) -> list[Chart]:
    """Learning curves of several runs, one chart per quantity, one curve per run."""
    wanted = (
        ("reward", "Draft reward (no feedback)", "reward"),
        ("taught", "Reward with feedback", "feedback/with_feedback_reward"),
    )
    drawn = []
    for name, title, key in wanted:
        lines = [
            Line(r.name, curves(r.rows, {"value": key}), "value", SERIES[i % len(SERIES)], _line_mark(i))
            for i, r in enumerate(readings)
        ]
        drawn.append(charts.line_chart(f"all-{name}", title, "mean reward", lines))
    return _drawn(drawn)


def _line_mark(index: int) -> str:
    return ("solid", "dashed", "dotted")[index % 3]


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
