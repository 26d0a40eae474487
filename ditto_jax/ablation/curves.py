"""Run directories → what a run learned by update and by generated sample, and whether it collapsed.

In: metrics and evaluation records as `ditto-jax train` writes them. Out: one `RunCurve` a run. Samples are counted, not
planned: a gate decides at every step how many rollouts there are. Compares no runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditto_jax.ablation.config import CollapseConfig, ScoreConfig
from ditto_jax.ablation.plan import PlannedRun
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.runs.readings import number, reward_gap
from ditto_jax.runs.run_dir import RunDirectory

AXES = ("updates", "samples")
_SMOOTHED = 3  # steps whose mean stands for one of them: the entropy of a single step is that of a few prompts


@dataclasses.dataclass(frozen=True)
class Point:
    """The score of an evaluation, over n items, and the optimiser updates, samples and tokens generated until then."""

    updates: int
    samples: int
    tokens: int
    score: float
    n: int


@dataclasses.dataclass(frozen=True)
class RunCurve:
    """One run: its evaluations, and by update the teacher-student gap (None where nobody was taught) and entropy.

    refined: refined rollouts in all.
    """

    arm: str
    seed: int
    warm_start: int
    points: Sequence[Point]
    updates: Sequence[int]
    gap: Sequence[float | None]
    entropy: Sequence[float | None]
    refined: int

    def at(self, axis: str, value: float) -> float | None:
        """Returns the score at a number of updates or samples, between evaluations linearly; None beyond the last."""
        places = [getattr(point, axis) for point in self.points]
        if not places or value > places[-1]:
            return None
        return float(np.interp(value, places, [point.score for point in self.points]))

    @property
    def samples_per_update(self) -> float:
        last = self.points[-1]
        return last.samples / max(1, last.updates)

    @property
    def refined_per_update(self) -> float:
        return self.refined / max(1, self.points[-1].updates)


def read_curve(run: PlannedRun, score: ScoreConfig) -> RunCurve:
    """Returns what a finished run left behind."""
    directory = RunDirectory(run.folder)
    rows = directory.read_metrics()
    per_step = run.config.train.updates_per_step
    points = []
    for step, (value, items) in sorted(_scores(read_evaluations(directory), score).items()):
        before = [row for row in rows if row["step"] <= step]
        samples = sum(int(row["completions/count"]) for row in before)
        tokens = sum(int(row["completions/sampled_tokens"]) for row in before)
        points.append(Point(step * per_step, samples, tokens, value, items))
    return RunCurve(
        run.arm,
        run.seed,
        run.warm_start,
        points,
        [row["step"] * per_step for row in rows],
        [reward_gap(row) for row in rows],
        [number(row, "entropy") for row in rows],
        int(sum(number(row, "feedback/refined_count") or 0 for row in rows)),
    )


def _scores(records: Sequence[Mapping[str, Any]], score: ScoreConfig) -> dict[int, tuple[float, int]]:
    """Returns step → (mean score, items), pooled over the evaluated tasks; items without a score are in neither."""
    sums: dict[int, tuple[float, int]] = {}
    for record in records:
        entries = [record]
        if score.breakdown:
            groups = record["breakdown"].get(score.breakdown, {})
            entries = [entry for value, entry in groups.items() if value not in score.without]
        for entry in entries:
            if entry["value"] is not None:
                total, items = sums.get(record["step"], (0.0, 0))
                sums[record["step"]] = (total + entry["value"] * entry["n"], items + entry["n"])
    return {step: (total / items, items) for step, (total, items) in sums.items()}


def collapses(curve: RunCurve, config: CollapseConfig) -> list[str]:
    """Returns one sentence for each way in which a run collapsed; none for a healthy one."""
    found = []
    if any(value is None for value in curve.entropy):
        update = next(u for u, value in zip(curve.updates, curve.entropy, strict=True) if value is None)
        found.append(f"the entropy is no finite number from update {update} on")
    else:
        smooth = _smoothed([value for value in curve.entropy if value is not None])
        if smooth and smooth[-1] < config.entropy_fraction * max(smooth):
            found.append(f"entropy fell from {max(smooth):.3g} to {smooth[-1]:.3g} nats a token")
    scores = [point.score for point in curve.points]
    if scores and max(scores) - scores[-1] > config.score_drop:
        best = curve.points[int(np.argmax(scores))]
        found.append(f"the score fell from {best.score:.3f} at update {best.updates} to {scores[-1]:.3f} at the end")
    return found


def _smoothed(values: Sequence[float]) -> list[float]:
    width = min(_SMOOTHED, len(values))
    return [math.fsum(values[i : i + width]) / width for i in range(len(values) - width + 1)] if width else []
