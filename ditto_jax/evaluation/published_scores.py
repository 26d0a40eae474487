"""The figures that the paper reports for the suite, with their source and what to know before comparing with them.

In: the packaged file published/soul_table_3.csv. Out: score by system and task. Nothing of it is ever computed with
but means over the same tasks. Imports no jax.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from importlib.resources import files

_FILE = "published/soul_table_3.csv"


@dataclasses.dataclass(frozen=True)
class Published:
    """scores: system → task → score; benchmarks: task → the name that the paper gives it."""

    source: str
    columns: str
    caveats: tuple[str, ...]
    benchmarks: Mapping[str, str]
    scores: Mapping[str, Mapping[str, float]]

    def average(self, system: str, tasks: Collection[str]) -> float:
        """Returns the unweighted mean of a system's scores on `tasks`, as the paper averages over all ten."""
        return math.fsum(self.scores[system][task] for task in tasks) / len(tasks)


@functools.cache
def published_scores() -> Published:
    """Returns the paper's Table 3."""
    lines = files("ditto_jax.evaluation").joinpath(_FILE).read_text(encoding="utf-8").splitlines()
    notes = [line[1:].strip().partition(": ") for line in lines if line.startswith("#")]
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    systems = [name for name in rows[0] if name not in ("task", "benchmark")]
    (source,) = (text for name, _, text in notes if name == "source")
    (columns,) = (text for name, _, text in notes if name == "columns")
    return Published(
        source,
        columns,
        tuple(text for name, _, text in notes if name == "caveat"),
        {row["task"]: row["benchmark"] for row in rows},
        {system: {row["task"]: float(row[system]) for row in rows} for system in systems},
    )
