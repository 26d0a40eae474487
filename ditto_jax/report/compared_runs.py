"""Several runs → the charts and the table that lay them over each other; runs that differ in their seed form one band.

In: what the report has read of each run. Out: `Chart` records and rows of text. A band reaches from the lowest to the
highest of its seeds at each step, its line is their mean. Whether a difference is noise `ditto-jax compare` tells.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ditto_jax.evaluation.comparison import Pair, measured, show_measured
from ditto_jax.report.charts import Chart, Line, line_chart
from ditto_jax.report.palette import SERIES
from ditto_jax.runs.readings import Curves, Row, curves, number, reward_gap

_MARKS = ("solid", "dashed", "dotted")
_MOST_NAMED = 3
# Settings in which repetitions of one experiment may differ.
_OWN = frozenset({"seed", "run_name", "output_dir", "resume", "overwrite", "log_completions", "profile_steps"})

_WANTED: tuple[tuple[str, str, str, Callable[[Row], float | None], bool], ...] = (
    ("reward", "Draft reward (no feedback)", "mean reward", lambda row: number(row, "reward"), True),
    ("taught", "Reward with feedback", "mean reward", lambda row: number(row, "feedback/with_feedback_reward"), True),
    ("gap", "Teacher–student gap", "reward difference", reward_gap, True),
    ("context", "Context gap", "nats per token", lambda row: number(row, "policy/context_gap_mean"), False),
    ("gate", "Drafts that feedback was asked for (gate)", "share", lambda row: number(row, "feedback/gate_rate"), True),
    ("speed", "Sampling speed", "tokens per second", lambda row: number(row, "tokens_per_s"), False),
)


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """What is compared of one run."""

    name: str
    config: Mapping[str, Any]
    rows: Sequence[Row]
    pairs: Sequence[Pair]


@dataclasses.dataclass(frozen=True)
class SeedGroup:
    """Runs with equal settings but for their seed."""

    runs: Sequence[ComparedRun]

    @property
    def name(self) -> str:
        names = [run.name for run in self.runs]
        return ", ".join(names) if len(names) <= _MOST_NAMED else f"{names[0]} and {len(names) - 1} more seeds"


def seed_groups(runs: Sequence[ComparedRun]) -> list[SeedGroup]:
    """Returns the runs by settings, in the order of their first run. A run without settings stands alone."""
    groups: dict[str, list[ComparedRun]] = {}
    for index, run in enumerate(runs):
        settings = {key: value for key, value in run.config.items() if key not in _OWN}
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str) if settings else str(index), []).append(run)
    return [SeedGroup(members) for members in groups.values()]


def overlay_charts(runs: Sequence[ComparedRun]) -> list[Chart]:
    """Returns one chart per quantity with one curve per group of runs."""
    groups = seed_groups(runs)
    drawn = []
    for name, title, y_label, read, is_share in _WANTED:
        lines = [_group_line(group, read, index) for index, group in enumerate(groups)]
        chart = line_chart(f"all-{name}", title, y_label, lines, note=_note(groups), is_share=is_share)
        drawn += [chart] if chart else []
    return drawn


def _note(groups: Sequence[SeedGroup]) -> str:
    several = [group for group in groups if len(group.runs) > 1]
    if not several:
        return ""
    named = "; ".join(", ".join(run.name for run in group.runs) for group in several)
    return f"Runs that differ only in their seed form a band, lowest to highest, around their mean: {named}."


def _group_line(group: SeedGroup, read: Callable[[Row], float | None], index: int) -> Line:
    drawn = _spread(group, read)
    look = SERIES[index % len(SERIES)], _MARKS[index % len(_MARKS)]
    return Line(group.name, drawn, "mean", *look, *(("low", "high") if len(group.runs) > 1 else ()))


def _spread(group: SeedGroup, read: Callable[[Row], float | None]) -> Curves:
    """Mean, lowest and highest over the runs that have a value at a step."""
    by_step: dict[float, list[float]] = {}
    for run in group.runs:
        own = {
            step: value
            for row in run.rows
            if (step := number(row, "step")) is not None and (value := read(row)) is not None
        }
        for step, value in own.items():
            by_step.setdefault(step, []).append(value)
    table = [
        {"step": step, "mean": sum(values) / len(values), "low": min(values), "high": max(values)}
        for step, values in sorted(by_step.items())
    ]
    return curves(table, {name: name for name in ("mean", "low", "high")})


def last_evaluations(runs: Sequence[ComparedRun]) -> tuple[list[str], list[list[str]]]:
    """Returns (evaluation labels, one row per run: its name and its last value under each label, with interval)."""
    labels = list(dict.fromkeys(pair.label for run in runs for pair in run.pairs))
    return labels, [[run.name, *(_last(run, label) for label in labels)] for run in runs]


def _last(run: ComparedRun, label: str) -> str:
    pair = next((pair for pair in run.pairs if pair.label == label), None)
    last = None if pair is None else measured(pair.after) or measured(pair.before)
    return "not measured" if pair is None or last is None else show_measured(last, pair.in_unit)
