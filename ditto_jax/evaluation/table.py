"""Evaluations → one file for all tasks: where rows came from, what became of them, the score and who gave it.

In: the evaluations of one run, and the tasks that could not be measured with the reason. Out: evaluation.json (schema
in docs/evaluation.md), and a row per task for people: in the terminal, and as evaluation.md. Measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ditto_jax.config import EvalConfig
from ditto_jax.evaluation.evaluate import TaskEvaluation
from ditto_jax.evaluation.simulator_faults import FAULTS
from ditto_jax.evaluation.soul_average import average_lines, soul_average
from ditto_jax.runs.run_dir import RunDirectory, write_atomically

SCHEMA_VERSION = 1
TABLE = "evaluation"  # name of the table's files, without .json and .md
COLUMNS = ("task", "source", "rows", "outcomes", "score", "scored by", "partner")

_TOO_LONG = "prompt too long"  # as `prompt_lengths.with_room` counts them


def table_rows(records: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns one JSON-able mapping per task; of a task that was not measured, only `task` and `not_measured`."""
    return [*map(_row, records), *({"task": label, "not_measured": why} for label, why in skipped.items())]


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    left_out = dict(record["rows"]["left_out"])
    return {
        "task": record["label"],
        "task_version": f"{record['task']}-{record['task_version']}",
        "source": record["source"],
        "found": record["rows"]["found"],
        "used": record["rows"]["used"],
        "refused": record["rows"]["refused"],
        "refused_first": record["rows"]["refused_first"],
        "too_long": left_out.pop(_TOO_LONG, 0),
        "left_out": left_out,
        "outcomes": {_outcome(name): count for name, count in record["outcomes"].items() if count},
        "score": record["value"],
        "interval": record["interval"],
        "clustered_interval": record["clustered_interval"],
        "n": record["n"],
        "metric": record["metric"],
        "trials": record["trials"],
        "constrained": record.get("constrained", False),
        "breakdown": record["breakdown"],
        "metrics": record["metrics"],
        "faults": record["faults"],
        "truncated_fraction": record["truncated_fraction"],
        "judges": record["judges"],
        "scored_by": record["scored_by"],
        "partners": record["partners"],
        "samples": f"eval/{record['label']}/samples_{record['step']:06d}.jsonl",
    }


def _outcome(name: str) -> str:
    return name.removeprefix("score_").removesuffix("_count")


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the texts of a row, one for each of COLUMNS."""
    if "not_measured" in row:
        return (row["task"], "not measured", row["not_measured"], "", "", "", "")
    partners = sorted(set(row["partners"].values()))
    return (
        row["task"],
        _source(row["source"]),
        _account(row),
        ", ".join(f"{name} {count}" for name, count in row["outcomes"].items()) or "none",
        _score(row),
        ", ".join(row["scored_by"]) or "nobody",
        ", ".join(partners) or "none",
    )


def _source(source: Mapping[str, Any] | None) -> str:
    if source is None:
        return "given"
    if source["kind"] == "generated":
        return f"generated{' stand-in' if source['stand_in'] else ''}, {source['split']}"
    return f"{'public files' if source['kind'] == 'files' else 'released rows'}, {source['split']}"


def _account(row: Mapping[str, Any]) -> str:
    parts = [f"{row['used']} used" + (f" of {row['found']}" if row["found"] else "")]
    if row["too_long"]:
        parts.append(f"{row['too_long']} too long")
    if row["refused"]:
        parts.append(f"{row['refused']} refused, the first: {row['refused_first'][0]}")
    return "; ".join([*parts, *(f"{count} left out: {why}" for why, count in row["left_out"].items())])


def _score(row: Mapping[str, Any]) -> str:
    if row["score"] is None:
        return "none"
    interval = row["clustered_interval"] or row["interval"]  # questions on one story are not independent
    around = "" if interval is None else f" [{interval['low']:.3f}, {interval['high']:.3f}]"
    trials = f"x{row['trials']}" if row["trials"] > 1 else ""
    held = ", constrained" if row["constrained"] else ""
    return f"{row['score']:.3f}{around}, n={row['n']}{trials}{held}"


def fault_text(row: Mapping[str, Any]) -> str:
    """Returns how many episodes show which faults of a simulator, in words; "" for tasks that have none to show."""
    faults = row.get("faults")
    if not faults:
        return ""
    shown = ", ".join(f"{name.replace('_', ' ')} {faults[name]}" for name in FAULTS if faults[name])
    return f"faults in {faults['episodes']} episodes: {shown or 'none seen'}"


def plain_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the table for a terminal of any width: two lines a task, score and outcomes first."""
    width = max((len(row["task"]) for row in rows), default=0) + 2
    lines = []
    for row in rows:
        if "not_measured" in row:
            lines.append(f"{row['task']:<{width}}not measured: {row['not_measured']}")
            continue
        task, source, account, outcomes, score, judges, partners = cells(row)
        lines.append(f"{task:<{width}}score {score}; outcomes: {outcomes}; {source}: {account}")
        faults = fault_text(row)
        lines.append(f"{'':<{width}}scored by {judges}; partner: {partners}{'; ' if faults else ''}{faults}")
    return lines


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table as Markdown, one line a task."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *map(cells, rows)]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write_table(
    run: RunDirectory,
    evaluations: Sequence[TaskEvaluation],
    skipped: Mapping[str, str],
    about: Mapping[str, Any],
    config: EvalConfig,
) -> list[dict[str, Any]]:
    """Writes evaluation.json and evaluation.md into the run directory; returns the rows.

    about: what was measured (policy, step, seed), as plain values.
    """
    rows = table_rows([evaluation.record for evaluation in evaluations], skipped)
    average = soul_average(evaluations, config)
    settings = {"temperature": config.temperature, "trials": config.num_samples, "confidence": config.confidence}
    settings |= {"constrained": config.constrained}
    body = {"schema_version": SCHEMA_VERSION, **about, **settings, "tasks": rows, "soul_average": average}
    write_atomically(run.path / f"{TABLE}.json", json.dumps(body, indent=1) + "\n")
    write_atomically(run.path / f"{TABLE}.md", as_page(rows, average))
    return rows


def as_page(rows: Sequence[Mapping[str, Any]], average: Mapping[str, Any] | None) -> str:
    """Returns evaluation.md: the table of tasks, faults of a simulator, and the average beside the paper's figures."""
    faults = [f"- {row['task']}: {text}" for row in rows if (text := fault_text(row))]
    parts = [as_markdown(rows), "\n".join(faults), "\n".join(average_lines(dict(average))) if average else ""]
    return "\n".join(f"{part.rstrip()}\n" for part in parts if part)
