"""Samples of one task → its record: the score with intervals, what became of every sample, breakdowns, who judged.

checkpoint, **evaluation**, report

In: samples, settings. Out: plain values (eval/<label>/step_<n>.json; the schema is docs/evaluation.md). A sample
without a score is counted among the outcomes and left out of every mean. Plays and asks nothing. Imports no jax.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ditto_jax.config import EvalConfig
from ditto_jax.evaluation.samples import Sample
from ditto_jax.evaluation.simulator_faults import fault_counts
from ditto_jax.evaluation.statistics import Estimate, clustered_interval, clusters_of, estimate_mean
from ditto_jax.rollouts.forms import is_held
from ditto_jax.rollouts.prompts import LoadedTask
from ditto_jax.tasks.base import Scored
from ditto_jax.types import Outcome

SCHEMA_VERSION = 2


def task_record(
    loaded: LoadedTask, samples: Sequence[Sample], config: EvalConfig, judge: str, step: int
) -> dict[str, Any]:
    """Returns the record of one task. judge: identity of who scores it, as configured."""
    groups: dict[str, dict[str, list[Sample]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for sample in samples:
        for name, value in sample.labels.items():
            groups[name][value].append(sample)
    lengths = [sample.tokens for sample in samples if sample.tokens is not None]
    return {
        "schema_version": SCHEMA_VERSION,
        "label": loaded.label,
        "task": loaded.task.name,
        "task_version": loaded.task.version,
        "metric": "mean_score",
        **measured(samples, config),
        "clustered_interval": _clustered(samples, config),
        "trials": config.num_samples,
        "temperature": config.temperature,
        "constrained": config.constrained and is_held(loaded),
        "judge": judge,
        "judges": _judges(samples),
        "scored_by": sorted({s.verdict.judge for s in samples if s.verdict.score is not None}),
        "partners": {role: who for s in samples for role, who in s.partners.items()},
        "source": _source(loaded),
        "rows": {**loaded.rows.as_dict(), "used": len(loaded.examples)},
        "outcomes": _outcomes(samples),
        "faults": _faults(loaded, samples),
        "step": step,
        "truncated_fraction": sum(s.truncated for s in samples) / max(1, len(samples)),
        "mean_completion_tokens": sum(lengths) / len(lengths) if lengths else None,
        "breakdown": {
            name: {value: measured(own, config) for value, own in sorted(values.items())}
            for name, values in sorted(groups.items())
        },
        "metrics": _metrics(loaded, samples, config),
    }


def measured(samples: Iterable[Sample], config: EvalConfig) -> dict[str, Any]:
    """Returns {"value", "interval", "n"}: the mean over items of their mean score; None where nothing has a score."""
    items: dict[str, list[float]] = collections.defaultdict(list)
    for sample in samples:
        if sample.verdict.score is not None:
            items[sample.example.id].append(sample.verdict.score)
    return as_measured(estimate_mean(list(items.values()), config.confidence, config.bootstrap))


def as_measured(estimate: Estimate | None) -> dict[str, Any]:
    """Returns an estimate as plain values."""
    if estimate is None:
        return {"value": None, "interval": None, "n": 0}
    interval = None
    if math.isfinite(estimate.high - estimate.low):
        bounds = {"low": estimate.low, "high": estimate.high}
        interval = {**bounds, "confidence": estimate.confidence, "method": estimate.method}
    return {"value": estimate.value, "interval": interval, "n": estimate.n}


def item_means(rows: Iterable[Mapping[str, Any]]) -> tuple[list[float], list[int]]:
    """Returns (the mean score of each scored item, the cluster that it belongs to), from rows of samples."""
    scores: dict[str, list[float]] = {}
    groups: dict[str, list[str]] = {}
    for row in rows:
        if row["score"] is not None:
            scores.setdefault(row["id"], []).append(row["score"])
            groups[row["id"]] = row["groups"]
    means = [math.fsum(own) / len(own) for own in scores.values()]
    return means, clusters_of([groups[item] for item in scores])


def _clustered(samples: Sequence[Sample], config: EvalConfig) -> dict[str, Any] | None:
    """The interval where items share a story, conversation or book; None where every item stands alone."""
    means, clusters = item_means(sample.as_row() for sample in samples)
    if len(set(clusters)) == len(means):
        return None
    count, method = len(set(clusters)), "bootstrap-clusters"
    bounds = clustered_interval(means, clusters, config.confidence, config.bootstrap)
    if len(set(means)) == 1:  # resampling equal scores says nothing; as if each cluster were one item
        estimate = estimate_mean([means[:1]] * count, config.confidence)
        bounds, method = (estimate.low, estimate.high) if estimate and estimate.method == "wilson" else None, "wilson"
    if bounds is None:
        return None
    return {"low": bounds[0], "high": bounds[1], "confidence": config.confidence, "method": method, "clusters": count}


def _judges(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Who gave how many verdicts, by which prompts or rules: "openai:m@x-1" is the judge "openai:m", version "x-1"."""
    counts = collections.Counter(sample.verdict.judge for sample in samples)
    found = []
    for name, count in sorted(counts.items()):
        identity, _, version = name.partition("@")
        found.append(
            {"identity": identity, "prompt_versions": version.split(",") if version else [], "verdicts": count}
        )
    return found


def _outcomes(samples: Iterable[Sample]) -> dict[str, int]:
    counts = collections.Counter(sample.verdict.outcome for sample in samples)
    return {f"score_{outcome.value}_count": counts[outcome] for outcome in Outcome}


def _faults(loaded: LoadedTask, samples: Sequence[Sample]) -> dict[str, Any] | None:
    """How many of the played episodes show each fault; None for tasks that are not played in character."""
    if not loaded.task.in_character:
        return None
    played = [sample for sample in samples if sample.conversation.messages]
    return {"episodes": len(played), **fault_counts(sample.faults for sample in played)}


def _source(loaded: LoadedTask) -> dict[str, Any] | None:
    """Which source the rows are of, and whether they stand in for real data; None for a task without settings."""
    if loaded.config is None:
        return None
    source = loaded.config.source
    stand_in = source.kind == "generated" and len(loaded.task.sources) > 1
    return {"kind": source.kind, "path": source.path, "split": source.split, "stand_in": stand_in}


def _metrics(loaded: LoadedTask, samples: Sequence[Sample], config: EvalConfig) -> dict[str, Any]:
    """The dimensions of the score with intervals, and what the task measures over all its conversations."""
    scored = [s for s in samples if s.verdict.score is not None]
    by_name: dict[str, dict[str, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for sample in scored:
        for name, value in sample.verdict.dimensions.items():
            by_name[name][sample.example.id].append(value)
    metrics = {
        name: as_measured(estimate_mean(list(items.values()), config.confidence, config.bootstrap))
        for name, items in sorted(by_name.items())
    }
    batch = loaded.task.batch_metrics([Scored(s.example, s.conversation, s.verdict) for s in scored])
    return {**metrics, **{name: {"value": value, "n": len(scored)} for name, value in sorted(batch.items())}}
