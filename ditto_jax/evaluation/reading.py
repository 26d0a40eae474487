"""Evaluation records and evaluation.json of a run → the tables of the report: what was measured, on what, by whom.

In: whatever an evaluation wrote, of this version or an earlier one; every part may be missing. Out: rows of text with
intervals. Values are those of the files; nothing is estimated here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ditto_jax.evaluation.comparison import Measured, measured, show_interval, show_value
from ditto_jax.runs.run_dir import RunDirectory

Record = Mapping[str, Any]

COLUMNS = ("evaluation", "step", "score", "interval", "items × trials", "outcomes", "rows", "scored by", "partner")


def read_evaluation_table(run: RunDirectory) -> dict[str, Any]:
    """Returns evaluation.json as a mapping with the list `tasks`; empty if the run has none.

    A file that holds the list alone, as earlier versions wrote, is read as one with nothing beside it.
    """
    path = run.path / "evaluation.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    body = dict(found) if isinstance(found, Mapping) else {"tasks": found}
    tasks = body.get("tasks")
    return {**body, "tasks": [task for task in tasks if isinstance(task, Mapping)] if isinstance(tasks, list) else []}


def evaluation_rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Returns one row of texts per record, one text for each of COLUMNS."""
    return [_row(record) for record in sorted(records, key=lambda r: (str(r.get("label")), r.get("step") or 0))]


def _row(record: Record) -> tuple[str, ...]:
    m = measured(record)
    constrained = ", constrained" if record.get("constrained") else ""
    outcomes = [(k.removeprefix("score_").removesuffix("_count"), v) for k, v in (record.get("outcomes") or {}).items()]
    return (
        str(record.get("label", "")),
        str(record.get("step", "–")),
        "no score" if m is None else show_value(m.value, m.in_unit) + constrained,
        _interval(m),
        f"{0 if m is None else m.n} × {record.get('trials', 1)}",
        ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in outcomes if count) or "–",
        _account(record),
        ", ".join(map(str, record.get("scored_by") or [record.get("judge") or "unknown"])),
        ", ".join(sorted({str(who) for who in (record.get("partners") or {}).values()})) or "–",
    )


def _interval(m: Measured | None) -> str:
    if m is None or m.low is None:
        return "–"
    share = "" if m.confidence is None else f" ({100 * m.confidence:.3g}\u00a0%)"
    return show_interval(m, m.in_unit) + share


def _account(record: Record) -> str:
    """Which rows were used, and what was left out: nothing that was not scored is hidden."""
    source, rows = record.get("source") or {}, record.get("rows") or {}
    kind = " ".join(filter(None, [source.get("kind"), "stand-in" if source.get("stand_in") else ""]))
    parts = [kind] if kind else []
    if rows:
        parts.append(f"{rows.get('used', '?')} used" + (f" of {rows['found']}" if rows.get("found") else ""))
        parts += [f"{rows['refused']} refused"] if rows.get("refused") else []
        parts += [f"{count} left out: {why}" for why, count in (rows.get("left_out") or {}).items() if count]
    return "; ".join(parts) or "–"


def metric_rows(records: Sequence[Record]) -> list[tuple[str, str, str, str, str, str]]:
    """Returns (evaluation, step, metric, value, interval, n) for every dimension and metric of every record."""
    rows = []
    for record in records:
        for name, entry in sorted((record.get("metrics") or {}).items()):
            m = measured(entry) if isinstance(entry, Mapping) else None
            if m is not None:
                where = str(record.get("label", "")), str(record.get("step", "–"))
                rows.append((*where, name.replace("_", " "), f"{m.value:.4g}", _plain_interval(m), str(m.n)))
    return rows


def _plain_interval(m: Measured) -> str:
    return "–" if m.low is None or m.high is None else f"{m.low:.4g} to {m.high:.4g}"


def fault_rows(records: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    """Returns (evaluation, step, fault of the simulator, how often) for the faults that were counted and occurred."""
    rows = []
    for record in records:
        faults = record.get("faults") or {}
        for name, count in faults.items():
            if name != "episodes" and count:
                where = str(record.get("label", "")), str(record.get("step", "–"))
                rows.append((*where, name.replace("_", " "), f"{count:,} of {faults.get('episodes', '?')} episodes"))
    return rows


def not_measured(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (task, why) for the tasks that an evaluation left out."""
    return [(str(t.get("task", "")), str(t["not_measured"])) for t in table.get("tasks", []) if t.get("not_measured")]


def suite_average(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the suite's average beside published figures as texts; None if the table has none.

    value and interval; over: the tasks; missing; columns and rows: measured and published scores by task; caveats.
    """
    average = table.get("soul_average")
    if not isinstance(average, Mapping) or (m := measured(average)) is None:
        return None
    published = average.get("published") or {}
    scores = published.get("scores") or {}
    rows = [
        (task, f"{value:.3f}", *(_score(scores[name].get(task)) for name in scores))
        for task, value in (average.get("measured") or {}).items()
    ]
    means = published.get("average_over_these_tasks") or {}
    rows.append(("average over these", f"{m.value:.3f}", *(_score(means.get(name)) for name in scores)))
    return {
        "value": f"{m.value:.3f}",
        "interval": _plain_interval(m),
        "over": ", ".join(average.get("tasks") or []),
        "missing": [*(average.get("missing") or []), *(f"{t} (stand-in)" for t in average.get("stand_ins") or [])],
        "columns": ["task", "measured", *scores],
        "rows": rows,
        "source": str(published.get("source") or ""),
        "caveats": [str(caveat) for caveat in published.get("caveats") or []],
    }


def _score(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "–"
