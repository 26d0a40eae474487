"""rollouts/ of a run → a few examples chosen by a stated rule, and counts of what became of the rollouts.

A long run is not read whole: at most `MOST_STEPS` steps, evenly spaced, first and last included; whoever shows the
counts says so. Text is passed on as it was written: making it safe to show is the page's business.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ditto_jax.runs.rollout_facts import RolloutFact, fact_of
from ditto_jax.runs.run_dir import RunDirectory

MOST_STEPS = 60

RULE = (
    "The steps whose rollouts were read are cut into three equal parts: early, middle and late. From each part comes "
    "the first draft that scored higher after feedback, of a task not shown yet if there is one; then, from the latest "
    "step that has one, a draft that did not score higher after feedback. Where a part has none, the first unshown one "
    "of any part takes its place. Nothing was picked by hand."
)
_PARTS = ("early", "middle", "late")
_LEAST_SHOWN = 3
_POLICY = "policy"  # in the place of a judge's name: words of a reflection

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Example:
    """A wrong draft, the words about it, and the refined rollout under them; both scored."""

    step: int
    draft: Row
    refined: Row
    part: str = ""

    @property
    def task(self) -> str:
        return str(self.draft.get("task", ""))

    @property
    def words(self) -> str:
        return str(self.refined.get("used_feedback") or (self.draft.get("feedback") or {}).get("text") or "")

    @property
    def by_policy(self) -> bool:
        """Whether the policy wrote the words itself."""
        return (self.draft.get("feedback") or {}).get("judge") == _POLICY

    @property
    def rose(self) -> bool:
        return self.refined["score"] > self.draft["score"]


@dataclasses.dataclass
class RolloutReading:
    """What the rollouts of the steps that were read say.

    changes: pairs whose score "rose", stayed the "same" or "fell" after feedback. score_outcomes, feedback_outcomes:
    counts by outcome, of judges; reflections: of words that the policy wrote itself. truncated and total:
    counts by role. facts: of every rollout that was read, in order. examples: as `RULE` says.
    """

    steps_written: int = 0
    steps_read: int = 0
    changes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    score_outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    feedback_outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    reflections: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    leaked: int = 0
    truncated: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    total: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    judges: set[str] = dataclasses.field(default_factory=set)
    facts: list[RolloutFact] = dataclasses.field(default_factory=list)
    examples: list[Example] = dataclasses.field(default_factory=list)


def read_rollouts(run: RunDirectory) -> RolloutReading:
    """Returns counts and examples from the rollouts of a run; all empty if it wrote none."""
    written = run.rollout_steps()
    steps = evenly_spaced(written, MOST_STEPS)
    reading = RolloutReading(len(written), len(steps))
    candidates: list[Example] = []
    for step in steps:
        rows = run.read_rollouts(step)
        _count(rows, reading)
        reading.facts += [fact_of(step, row) for row in rows]
        pairs = _pairs(step, rows)
        reading.changes.update(_change(pair) for pair in pairs)
        candidates += _firsts(pairs)
    reading.examples = choose(candidates, steps)
    return reading


def evenly_spaced(steps: Sequence[int], most: int) -> list[int]:
    """Returns at most `most` of the steps, evenly spaced, first and last included."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _count(rows: Iterable[Row], reading: RolloutReading) -> None:
    for row in rows:
        role = str(row.get("role", ""))
        reading.total[role] += 1
        reading.truncated[role] += bool(row.get("truncated"))
        if role != "reflection":  # scored by the refined rollouts under it
            reading.score_outcomes[str(row.get("outcome", ""))] += 1
            if row.get("judge"):
                reading.judges.add(str(row["judge"]))
        feedback = row.get("feedback")
        if feedback:
            outcome, leaked = str(feedback.get("outcome", "")), bool(feedback.get("leak"))
            if feedback.get("judge") == _POLICY:
                reading.reflections["leaked" if leaked else outcome] += 1
            else:
                reading.feedback_outcomes[outcome] += 1
                reading.leaked += leaked


def _pairs(step: int, rows: Sequence[Row]) -> list[Example]:
    drafts = {_slot(row): row for row in rows if row.get("role") == "draft"}
    refined = [row for row in rows if row.get("role") == "refined"]
    pairs = [Example(step, drafts[_slot(row)], row) for row in refined if _slot(row) in drafts]
    scored = [p for p in pairs if p.draft.get("score") is not None and p.refined.get("score") is not None]
    return [pair for pair in scored if pair.words]


def _slot(row: Row) -> tuple[Any, ...]:
    return row.get("prompt_index"), row.get("prompt_id"), row.get("sample")


def _change(pair: Example) -> str:
    if pair.rose:
        return "rose"
    return "same" if pair.refined["score"] == pair.draft["score"] else "fell"


def _firsts(pairs: Iterable[Example]) -> list[Example]:
    """The first pair of each task that rose and the first that did not: all that `choose` can want of one step."""
    firsts: dict[tuple[str, bool], Example] = {}
    for pair in pairs:
        firsts.setdefault((pair.task, pair.rose), pair)
    return list(firsts.values())


def choose(candidates: Sequence[Example], steps: Sequence[int]) -> list[Example]:
    """Returns examples as `RULE` says; candidates are in the order of their steps."""
    chosen: list[Example] = []
    part_of = {step: _PARTS[3 * i // len(steps)] for i, step in enumerate(steps)}
    named = [dataclasses.replace(c, part=part_of[c.step]) for c in candidates]
    for part in _PARTS:
        _take_first(chosen, [c for c in named if c.part == part and c.rose])
    chosen += [c for c in reversed(named) if not c.rose][:1]
    while len(chosen) < _LEAST_SHOWN:
        left = [c for c in named if c not in chosen]
        if not left:
            break
        _take_first(chosen, [c for c in left if c.rose] or left)
    return sorted(chosen, key=lambda c: (not c.rose, c.step))


def _take_first(chosen: list[Example], candidates: Sequence[Example]) -> None:
    shown = {c.task for c in chosen}
    fresh = [c for c in candidates if c.task not in shown]
    chosen += (fresh or candidates)[:1]
