"""Metrics of one run, or of several → the charts that the report shows: which curves, under which names.

In: rows of metrics.jsonl and evaluation pairs. Out: `Chart` records. Roles, tasks, dimensions, phases and outcomes are
those that occur in the rows; a chart without numbers is left out. How a chart looks is `charts.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ditto_jax.evaluation.comparison import Pair, measured
from ditto_jax.report.charts import Chart, Line, Points, line_chart, stacked_chart
from ditto_jax.report.palette import SERIES
from ditto_jax.runs.readings import Row, curves, number, reward_gap, time_curves

_EVALUATIONS_IN_CURVES = 3
_MARKS = ("solid", "dashed", "dotted")
_COMPILATION = "The first step of a process includes compilation."

Record = Mapping[str, Any]


def learning_charts(
    name: str, rows: Sequence[Row], pairs: Sequence[Pair], evaluations: Sequence[Record]
) -> list[Chart]:
    """Returns rewards, teacher-student gap, context gap, rewards by role, by task and by dimension."""
    return _known(
        [
            _rewards(name, rows, pairs, evaluations),
            *_gaps(name, rows),
            _matching(f"{name}-roles", "Reward by role and context", "mean reward", rows, r"pool/reward_(.+)_mean"),
            _matching(f"{name}-tasks", "Draft reward by task", "mean reward", rows, r"rewards/(.+)/mean", least=2),
            *_dimensions(name, rows),
        ]
    )


def feedback_charts(name: str, rows: Sequence[Row]) -> list[Chart]:
    """Returns how often feedback was asked for, what rollouts were like, and how judging went wrong."""
    shares = {
        "drafts that feedback was asked for (gate)": "feedback/gate_rate",
        "rollouts cut off by a token limit": "completions/clipped_ratio",
        "refined replies equal to their draft": "feedback/unchanged_fraction",
        "pools without a difference in reward": "pool/frac_reward_zero_std",
    }
    lengths = {"mean": "completions/mean_length", "longest": "completions/max_length"}
    failed = curves(rows, {what: what for what in _failures(rows)})
    failures = {_in_words(what): values for what, values in failed.columns.items()}
    return _known(
        [
            _lines(f"{name}-shares", "Gate and other shares", "share", rows, shares),
            stacked_chart(
                f"{name}-failures",
                "Judgements that failed or were withheld",
                "per step",
                type(failed)(failed.steps, failures, failed.per_point),
            ),
            _lines(f"{name}-lengths", "Length of rollouts", "sampled tokens", rows, lengths, is_share=False),
            _lines(f"{name}-entropy", "Entropy", "nats per token", rows, {"entropy": "entropy"}, is_share=False),
        ]
    )


def cost_charts(name: str, rows: Sequence[Row]) -> list[Chart]:
    """Returns where the time goes, the sampling speed, and what judges and partners took."""
    speed = {"sampled tokens per second": "tokens_per_s"}
    return _known(
        [
            stacked_chart(f"{name}-time", "Where the time goes", "seconds", time_curves(rows), " s", _COMPILATION),
            _lines(f"{name}-speed", "Sampling speed", "tokens per second", rows, speed, is_share=False),
            *_call_charts(name, rows),
        ]
    )


def _known(charts: Sequence[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _lines(
    name: str, title: str, y_label: str, rows: Sequence[Row], keys: Mapping[str, str], note: str = "", **style: Any
) -> Chart | None:
    """A chart of metrics as they are, in the order of `keys` (name in the legend → metric)."""
    drawn = curves(rows, keys)
    lines = [Line(what, drawn, what, *_look(i)) for i, what in enumerate(keys)]
    return line_chart(name, title, y_label, lines, note=note, **style)


def _look(index: int) -> tuple[str, str]:
    """Ink and mark of the index-th series: marks change too, so that colour alone tells nothing apart."""
    return SERIES[index % len(SERIES)], _MARKS[index % len(_MARKS)]


def _matching(
    name: str, title: str, y_label: str, rows: Sequence[Row], pattern: str, least: int = 1, note: str = ""
) -> Chart | None:
    """A chart of all metrics that match, named by the pattern's group; None for fewer than `least`."""
    found = {m.group(1): key for key in _names(rows) if (m := re.fullmatch(pattern, key))}
    return _lines(name, title, y_label, rows, found, note) if len(found) >= least else None


def _names(rows: Sequence[Row]) -> list[str]:
    return sorted({key for row in rows for key in row})


def _rewards(name: str, rows: Sequence[Row], pairs: Sequence[Pair], evaluations: Sequence[Record]) -> Chart | None:
    readers = {
        "draft": "reward",
        "taught": "feedback/with_feedback_reward",
        "refined": "feedback/revised_reward",
        "reflections": "reflections/reward",
    }
    drawn = curves(rows, readers)
    lines = [
        Line("draft reward (no feedback)", drawn, "draft", "series-0"),
        Line("with feedback (refined where the draft needed it)", drawn, "taught", "series-1", "dashed"),
        Line("refined rollouts alone", drawn, "refined", "muted", "dotted"),
        Line("reflections", drawn, "reflections", "series-3", "dotted"),
    ]
    note = (
        "Rewards of sampled training rollouts. Only drafts below the gate are refined, so the refined alone are the "
        "hard ones."
    )
    points = _evaluation_points(pairs, evaluations)
    return line_chart(f"{name}-rewards", "Learning curves", "mean reward", lines, points, note)


def _evaluation_points(pairs: Sequence[Pair], evaluations: Sequence[Record]) -> list[Points]:
    """Evaluations over the curves, for the first labels that were evaluated more than once."""
    found = []
    for pair in pairs:
        records = [r for r in evaluations if r.get("label") == pair.label]
        known = [(float(r.get("step") or 0), m) for r in records if (m := measured(r)) is not None]
        known.sort(key=lambda item: item[0])
        if len(known) > 1 and len(found) < _EVALUATIONS_IN_CURVES:
            ink = ("ink", "series-2", "series-3")[len(found)]
            steps, values = zip(*known, strict=True)
            found.append(Points(f"evaluation {pair.label} (no feedback)", steps, values, ink))
    return found


def _gaps(name: str, rows: Sequence[Row]) -> list[Chart | None]:
    readers = {"gap": reward_gap, "uplift": "feedback/uplift", "context": "policy/context_gap_mean"}
    drawn = curves(rows, readers)
    rewards = [
        Line("with feedback − without", drawn, "gap", "series-2"),
        Line("refined − its own draft (uplift)", drawn, "uplift", "muted", "dashed"),
    ]
    about = (
        "How much likelier refined replies are under the prompt with feedback than under the plain prompt. Only drafts "
        "that were still wrong are refined, so later steps show harder ones."
    )
    gap = line_chart(f"{name}-gap", "Teacher–student gap", "reward difference", rewards)
    if gap is None:
        return []
    context = [Line("context gap", drawn, "context", "series-3")]
    return [
        gap,
        line_chart(f"{name}-context", "Context gap", "nats per token", context, note=about, is_share=False),
    ]


def _dimensions(name: str, rows: Sequence[Row]) -> list[Chart | None]:
    """One chart a task whose scores have more than one dimension."""
    found = [m for key in _names(rows) if (m := re.fullmatch(r"rewards/(.+)/([^/]+)", key)) and m.group(2) != "mean"]
    drawn = []
    for index, task in enumerate(sorted({m.group(1) for m in found})):
        keys = {m.group(2).replace("_", " "): m.group(0) for m in found if m.group(1) == task}
        title = f"Scores by dimension: {task}"
        note = "Means over scored drafts, each on the scale of its rubric."
        drawn.append(_lines(f"{name}-dimensions-{index}", title, "mean score", rows, keys, note, is_share=False))
    return drawn


_FAILURE = re.compile(r"judge/(score|feedback)_(.+)_count")


def _failures(rows: Sequence[Row]) -> list[str]:
    """Metrics that count judgements which gave nothing, of those that ever occurred."""
    named = [key for key in _names(rows) if (m := _FAILURE.fullmatch(key)) and m.group(2) != "ok"]
    return [key for key in named if any(number(row, key) for row in rows)]


def _in_words(key: str) -> str:
    match = _FAILURE.fullmatch(key)
    return key if match is None else f"{match.group(1)} {match.group(2).replace('_', ' ')}"


def _call_charts(name: str, rows: Sequence[Row]) -> list[Chart | None]:
    """Latency, tokens and cost of judges and partners: metrics hold sums since the start of the run."""
    latency, tokens, cost = {}, {}, {}
    for who in ("judge", "partner"):
        latency[f"{who}, mean of the step"] = _ratio(f"{who}/latency_s", f"{who}/calls")
        latency |= {f"{who}, {name}": _plain(f"{who}/latency_{name}") for name in ("p50", "p95")}
        tokens |= {f"{who}, {way}": _difference(f"{who}/tokens_{way}") for way in ("in", "out")}
        cost[f"{who}, since the start"] = _plain(f"{who}/cost_usd")
    told = _with_previous(rows)
    return [
        _computed(f"{name}-latency", "Latency of calls", "seconds per call", told, latency),
        _computed(f"{name}-calls", "Tokens of calls", "tokens per step", told, tokens),
        _computed(f"{name}-cost", "Cost of calls", "US dollars", told, cost),
    ]


_BEFORE = "\n"  # before the names of what a metric was one step earlier: no metric is called so


def _with_previous(rows: Sequence[Row]) -> list[Row]:
    """Each row with the numbers of the row before it under names of their own."""
    earlier: list[Row] = [{}, *rows]
    return [{**{_BEFORE + k: v for k, v in e.items()}, **row} for e, row in zip(earlier, rows, strict=False)]


def _plain(key: str):
    return lambda row: number(row, key)


def _difference(key: str):
    def read(row: Row) -> float | None:
        now = number(row, key)
        return None if now is None else now - (number(row, _BEFORE + key) or 0.0)

    return read


def _ratio(amount: str, count: str):
    def read(row: Row) -> float | None:
        total, calls = _difference(amount)(row), _difference(count)(row)
        return None if total is None or not calls else total / calls

    return read


def _computed(name: str, title: str, y_label: str, rows: Sequence[Row], readers: Mapping[str, Any]) -> Chart | None:
    drawn = curves(rows, readers)
    lines = [Line(what, drawn, what, *_look(i)) for i, what in enumerate(readers)]
    lines = [line for line in lines if any(line.values)]
    return line_chart(name, title, y_label, lines, is_share=False)
