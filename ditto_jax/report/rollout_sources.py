"""Where the rollouts of a run stand on disk → rows of one step, whoever wrote them: training, or an evaluation.

In: rollouts/ and eval/<label>/samples_<step>.jsonl. Out: rows with the names of rollouts/ (`records.py`). A source is
"training" or the label of an evaluation, whose items come again at every step that was evaluated. Judges nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ditto_jax.runs.run_dir import RunDirectory

TRAINING = "training"

Row = Mapping[str, Any]


def sources_of(run: RunDirectory) -> dict[str, list[int]]:
    """Returns the steps of each source that wrote rollouts, training first."""
    found = {TRAINING: run.rollout_steps()}
    for path in sorted(run.evaluations.glob("*/samples_*.jsonl")):
        step = path.stem.removeprefix("samples_")
        if step.isdecimal():
            found.setdefault(f"evaluation {path.parent.name}", []).append(int(step))
    return {source: sorted(steps) for source, steps in found.items() if steps}


def rows_of(run: RunDirectory, source: str, step: int) -> list[Row]:
    """Returns the rollouts of one step of a source; empty if it wrote none. Lines that hold no sample are left out."""
    if source == TRAINING:
        return list(run.read_rollouts(step))
    label = source.removeprefix("evaluation ")
    path = run.evaluations / label / f"samples_{step:06d}.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    samples = [row for row in map(_sample, lines) if row is not None]
    places: dict[str, int] = {}
    for row in samples:
        places.setdefault(str(row.get("id")), len(places))
    return [_as_rollout(row, label, step, places[str(row.get("id"))]) for row in samples]


def _sample(line: str) -> dict[str, Any] | None:
    """A sample; None for an empty line and for one that was being written when its process ended."""
    try:
        found = json.loads(line) if line else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _as_rollout(sample: Row, label: str, step: int, place: int) -> Row:
    named = {"role": "evaluation", "task": label, "prompt_id": f"{label}/{sample.get('id')}"}
    return {**sample, **named, "step": step, "prompt_index": place, "sample": sample.get("sample") or 0}
