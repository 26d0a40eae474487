"""Rows of metrics.jsonl → the few numbers that people are shown: rewards, gap, time split, series over steps.

Every key of a row is optional: what is absent, null or not finite is None and leaves no point in a curve. Both the live
progress and the report read metrics through this file, so they agree. Imports no jax and draws nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

OTHER = "other"
_PHASE_ORDER = ("draft", "refine", "rollout", "score", "pack", "update", "write", "checkpoint", "eval")


def number(row: Row, key: str) -> float | None:
    """Returns row[key] as a finite float, or None if it is absent or no finite number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def reward_gap(row: Row) -> float | None:
    """Returns the teacher-student gap: mean reward with feedback (where a draft needed it) minus without; None where
    nothing was refined.
    """
    taught, draft = number(row, "feedback/with_feedback_reward"), number(row, "reward")
    if taught is None or draft is None or row.get("feedback/refined_count") == 0:
        return None
    return taught - draft


def transfer(rows: Iterable[Row]) -> float | None:
    """Returns how far the mean draft reward moved, from the first tenth of the steps to the last; None for fewer than
    two.
    """
    both = ends([reward for row in rows if (reward := number(row, "reward")) is not None])
    return None if both is None else both[1] - both[0]


def time_split(row: Row) -> dict[str, float]:
    """Returns seconds by phase of one step; "other" is what the step took beyond its named phases.

    A row of a step without `time/step_s` has no "other".
    """
    readings = ((key[len("time/") : -len("_s")], number(row, key)) for key in row if _is_phase(key))
    named = {name: seconds for name, seconds in readings if seconds is not None}
    split = {name: named[name] for name in sorted(named, key=_phase_rank)}
    whole = number(row, "time/step_s")
    if whole is not None:
        split[OTHER] = max(0.0, whole - sum(split.values()))
    return split


def _is_phase(key: str) -> bool:
    return key.startswith("time/") and key.endswith("_s") and key != "time/step_s"


def _phase_rank(name: str) -> tuple[int, str]:
    return (_PHASE_ORDER.index(name) if name in _PHASE_ORDER else len(_PHASE_ORDER), name)


def ends(values: Sequence[float]) -> tuple[float, float, int] | None:
    """Returns (mean of the first tenth, mean of the last tenth, values in each), or None for fewer than two values."""
    if len(values) < 2:
        return None
    size = max(1, len(values) // 10)
    return sum(values[:size]) / size, sum(values[-size:]) / size, size


@dataclasses.dataclass(frozen=True)
class Curves:
    """Columns of numbers over the same steps. per_point: how many steps each point is the mean of."""

    steps: Sequence[float]
    columns: Mapping[str, Sequence[float | None]]
    per_point: int = 1


def curves(rows: Iterable[Row], readers: Mapping[str, str | Callable[[Row], float | None]], most: int = 240) -> Curves:
    """Returns one column per reader (a key, or a function of the row), at most `most` points long.

    Longer runs are averaged over blocks of equally many rows; a block without a value is None.
    """
    by_step = {step: row for row in rows if (step := number(row, "step")) is not None}
    steps = sorted(by_step)
    size = max(1, math.ceil(len(steps) / most))
    blocks = [steps[i : i + size] for i in range(0, len(steps), size)]
    columns = {name: [_mean(map(_reader(r), (by_step[s] for s in b))) for b in blocks] for name, r in readers.items()}
    return Curves([sum(block) / len(block) for block in blocks], columns, size)


def time_curves(rows: Sequence[Row], most: int = 240) -> Curves:
    """Returns seconds per step by phase, for all phases that occur in any row."""
    splits = [time_split(row) for row in rows]
    present = dict.fromkeys(name for split in splits for name in split if name != OTHER)
    phases = sorted(present, key=_phase_rank) + ([OTHER] if any(OTHER in split for split in splits) else [])
    table = [{"step": row.get("step"), **split} for row, split in zip(rows, splits, strict=True)]
    return curves(table, {phase: phase for phase in phases}, most)


def running_mean(values: Sequence[float | None]) -> list[float | None]:
    """Returns centred means over a tenth of the values; towards the ends the window shrinks on both sides alike."""
    most, last = max(1, len(values) // 20), len(values) - 1
    reaches = [min(most, i, last - i) for i in range(len(values))]
    return [
        None if v is None else _mean(values[i - reach : i + reach + 1])
        for i, (v, reach) in enumerate(zip(values, reaches, strict=True))
    ]


def _reader(read: str | Callable[[Row], float | None]) -> Callable[[Row], float | None]:
    return read if callable(read) else lambda row: number(row, read)


def _mean(values: Iterable[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return sum(kept) / len(kept) if kept else None
