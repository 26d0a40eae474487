"""Evaluated tasks → the average over the suite, as the paper takes it, beside what the paper reports.

checkpoint, **evaluation**, report

In: evaluations of single tasks. Out: the unweighted mean of the tasks' scores with an interval, which of the ten it
lacks and which stand in for real data, and the published averages over the same tasks. Imports no jax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ditto_jax.config import EvalConfig
from ditto_jax.evaluation.published_scores import published_scores
from ditto_jax.evaluation.record import item_means
from ditto_jax.evaluation.statistics import resampled_means

if TYPE_CHECKING:
    from ditto_jax.evaluation.evaluate import TaskEvaluation

_SHOWN = ("gpt_5_4", "gpt_5_nano", "base_8b", "grpo_8b", "ditto_8b")


def soul_average(evaluations: Sequence[TaskEvaluation], config: EvalConfig) -> dict[str, Any] | None:
    """Returns the average over the suite's tasks that have a score; None without any.

    Of several labels of one task the first counts. The interval resamples the items of each task (whole clusters where
    items share a story, conversation or book); it says nothing about how tasks were chosen.
    """
    paper = published_scores()
    first: dict[str, TaskEvaluation] = {}
    for evaluation in evaluations:
        if evaluation.record["task"] in paper.benchmarks and evaluation.record["value"] is not None:
            first.setdefault(evaluation.record["task"], evaluation)
    tasks = [task for task in paper.benchmarks if task in first]
    if not tasks:
        return None
    stand_ins = [task for task in tasks if (first[task].record["source"] or {}).get("stand_in")]
    return {
        "value": math.fsum(first[task].record["value"] for task in tasks) / len(tasks),
        "interval": _interval([first[task] for task in tasks], config),
        "tasks": tasks,
        "missing": [task for task in paper.benchmarks if task not in first],
        "stand_ins": stand_ins,
        "is_complete": len(tasks) == len(paper.benchmarks) and not stand_ins,
        "published": {
            "source": paper.source,
            "columns": paper.columns,
            "caveats": list(paper.caveats),
            "average_over_these_tasks": {name: round(paper.average(name, tasks), 4) for name in paper.scores},
            "scores": {name: {task: scores[task] for task in tasks} for name, scores in paper.scores.items()},
        },
        "measured": {task: first[task].record["value"] for task in tasks},
    }


def _interval(evaluations: Sequence[TaskEvaluation], config: EvalConfig) -> dict[str, Any] | None:
    means = []
    for number, evaluation in enumerate(evaluations):
        values, clusters = item_means(evaluation.samples)
        if len(set(clusters)) < 2:
            return None
        means.append(resampled_means(values, clusters, config.bootstrap, seed=number))
    low, high = np.quantile(np.mean(means, axis=0), ((1 - config.confidence) / 2, (1 + config.confidence) / 2))
    bounds = {"low": float(low), "high": float(high)}
    return {**bounds, "confidence": config.confidence, "method": "bootstrap-clusters-within-tasks"}


def average_lines(average: dict[str, Any]) -> list[str]:
    """Returns the average as Markdown: what it is over, one line a task, and the caveats."""
    paper, published = published_scores(), average["published"]
    over = f"{len(average['tasks'])} of {len(paper.benchmarks)} tasks"
    if average["missing"]:
        over += f"; not measured: {', '.join(average['missing'])}"
    if average["stand_ins"]:
        over += f"; on generated stand-ins: {', '.join(average['stand_ins'])}"
    interval = average["interval"]
    around = "" if interval is None else f" [{interval['low']:.3f}, {interval['high']:.3f}]"
    comparable = "" if average["is_complete"] else " **Not the paper's benchmark**: see what is missing or stands in."
    header = ("benchmark", "measured", *_SHOWN)
    lines = [
        f"SOUL average: {average['value']:.3f}{around}, over {over}.{comparable}",
        "",
        f"| {' | '.join(header)} |",
        f"|{' --- |' * len(header)}",
    ]
    for task in average["tasks"]:
        cells = (paper.benchmarks[task], f"{average['measured'][task]:.3f}")
        lines.append(_row([*cells, *(f"{published['scores'][name][task]:.3f}" for name in _SHOWN)]))
    averages = published["average_over_these_tasks"]
    lines.append(_row(["average over these", f"{average['value']:.3f}", *(f"{averages[name]:.3f}" for name in _SHOWN)]))
    lines += ["", f"Columns behind the measured one: {published['source']}. {published['columns']}.", ""]
    return [*lines, *(f"- {caveat}" for caveat in published["caveats"])]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
