"""Rollouts of runs → what the page's rollout browser needs: an index of items to filter, and the texts, step by step.

In: run directories. Out: columns of small numbers (`RolloutIndex`) and one block of texts per step. An item is one
draft with all that was made of it; which roles that are is what the records say. Texts are passed on as they were
written: making them safe to show is the business of `page_assets.py` and the page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ditto_jax.report.rollout_reading import evenly_spaced
from ditto_jax.report.rollout_sources import TRAINING, rows_of, sources_of
from ditto_jax.runs.run_dir import RunDirectory

MOST_EMBEDDED = 10_000  # rollouts in one page; more are left to the server
_LONGEST_TEXT = 20_000  # characters of one text; the rest is in rollouts/

Row = Mapping[str, Any]


class _Names:
    """Numbers for texts, in the order of their first use."""

    def __init__(self):
        self.numbers: dict[str, int] = {}

    def number(self, name: Any) -> int:
        return self.numbers.setdefault(str(name), len(self.numbers))

    @property
    def all(self) -> list[str]:
        return list(self.numbers)


class RolloutIndex:
    """Columns over items, for all runs of a page.

    run, source, step, prompt, sample and row say which item it is (`source`: training or an evaluation, over
    `sources`; `row`: the prompt's place in the step). before: the draft's reward; after: that of what was made of it
    under feedback; null where there is none. outcomes, roles and flags are sets of bits over `outcomes`, `roles` and
    `FLAGS`.
    """

    FLAGS = ("truncated", "feedback withheld (leak)", "not kept for training")

    def __init__(self):
        self._tasks, self._prompts, self._outcomes, self._roles = _Names(), _Names(), _Names(), _Names()
        self._sources = _Names()
        names = (
            "run",
            "source",
            "step",
            "row",
            "sample",
            "task",
            "prompt",
            "before",
            "after",
            "outcomes",
            "roles",
            "flags",
        )
        self.columns: dict[str, list[Any]] = {name: [] for name in names}
        self.rollouts = 0

    def source(self, name: str) -> int:
        """Returns the number of a source, as items and blocks name it."""
        return self._sources.number(name)

    def add(self, run: int, source: str, step: int, items: Iterable[Sequence[Row]]) -> None:
        """Adds the items of one step."""
        for rows in items:
            self.rollouts += len(rows)
            first = rows[0]
            entry = {
                "run": run,
                "source": self.source(source),
                "step": step,
                "row": int(first.get("prompt_index") or 0),
                "sample": int(first.get("sample") or 0),
                "task": self._tasks.number(first.get("task", "")),
                "prompt": self._prompts.number(first.get("prompt_id", "")),
                "before": first.get("score"),
                "after": next((r.get("score") for r in rows if r.get("used_feedback") is not None), None),
                "outcomes": _bits(self._outcomes.number(r.get("outcome", "")) for r in rows),
                "roles": _bits(self._roles.number(r.get("role", "")) for r in rows),
                "flags": _flags(rows),
            }
            for name, value in entry.items():
                self.columns[name].append(value)

    def as_dict(self) -> dict[str, Any]:
        """Returns the index as JSON can hold it."""
        return {
            "sources": self._sources.all,
            "tasks": self._tasks.all,
            "prompts": self._prompts.all,
            "outcomes": self._outcomes.all,
            "roles": self._roles.all,
            "flags": list(self.FLAGS),
            "rollouts": self.rollouts,
            "columns": self.columns,
        }


def _bits(numbers: Iterable[int]) -> int:
    return sum({1 << number for number in numbers})


def _flags(rows: Sequence[Row]) -> int:
    leaked = any((row.get("feedback") or {}).get("leak") for row in rows)
    found = (any(row.get("truncated") for row in rows), leaked, any(row.get("kept") is False for row in rows))
    return _bits(number for number, is_set in enumerate(found) if is_set)


def items_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Returns the rollouts of a step by item, each in the order of the records: the draft comes first."""
    items: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        items.setdefault((row.get("prompt_index"), row.get("prompt_id"), row.get("sample")), []).append(row)
    return list(items.values())


_SHOWN = ("role", "gold", "facts", "partners", "outcome", "score", "dimensions", "judge", "truncated", "kept")
_SHOWN_TEXTS = ("reply", "critique", "detail", "used_feedback")


def block_of(items: Iterable[Sequence[Row]]) -> dict[str, Any]:
    """Returns the texts of one step: `prompts` without repetition, and `items` by "row.sample"."""
    prompts: dict[tuple[tuple[str, str], ...], int] = {}
    found = {}
    for rows in items:
        name = f"{int(rows[0].get('prompt_index') or 0)}.{int(rows[0].get('sample') or 0)}"
        found[name] = [_rollout(row, prompts) for row in rows]
    return {"prompts": [[{"role": r, "content": _cut(c)} for r, c in prompt] for prompt in prompts], "items": found}


def _rollout(row: Row, prompts: dict[tuple[tuple[str, str], ...], int]) -> dict[str, Any]:
    messages = tuple((str(m.get("role", "")), str(m.get("content", ""))) for m in row.get("prompt") or [])
    feedback = row.get("feedback") or {}
    shown: dict[str, Any] = {name: row[name] for name in _SHOWN if row.get(name) not in (None, "", {})}
    shown |= {name: _cut(str(row[name])) for name in _SHOWN_TEXTS if row.get(name)}
    shown["prompt"] = prompts.setdefault(messages, len(prompts))
    if row.get("turns"):
        shown["turns"] = [{**turn, "text": _cut(str(turn.get("text", "")))} for turn in row["turns"]]
    if feedback:
        shown["feedback"] = {name: _cut(str(value)) for name, value in feedback.items() if value}
    if row.get("advantage"):
        shown["advantage"] = row["advantage"]
    return shown


def _cut(text: str) -> str:
    """The text, or its beginning and how much was left out."""
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]} […] {len(text) - _LONGEST_TEXT:,} more characters are in rollouts/."


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What a page carries itself. blocks: (run, source, step) → texts. note: what was left out, in words; empty if
    nothing.
    """

    index: RolloutIndex
    blocks: Mapping[tuple[int, int, int], dict[str, Any]]
    note: str


def embedded_rollouts(runs: Sequence[RunDirectory], most: int = MOST_EMBEDDED) -> Embedded:
    """Returns the rollouts of evenly spaced whole steps of every source, about `most` of them over all runs."""
    index, blocks, left_out = RolloutIndex(), {}, []
    for number, run in enumerate(runs):
        left = most // len(runs)
        sources = sources_of(run)
        # Evaluations are few and come first: their items are the scenes that come again.
        for source in sorted(sources, key=lambda name: name == TRAINING):
            share = left if source == TRAINING else left // (2 * max(1, len(sources) - 1))
            steps = _affordable(run, source, sources[source], share)
            for step in steps:
                items = items_of(rows_of(run, source, step))
                left -= sum(map(len, items))
                index.add(number, source, step, items)
                blocks[number, index.source(source), step] = block_of(items)
            if len(steps) < len(sources[source]):
                left_out.append(f"{len(steps)} of {len(sources[source])} steps of {run.path.name} ({source})")
    words = f"This page holds the rollouts of {' and '.join(left_out)}, evenly spaced." if left_out else ""
    return Embedded(index, blocks, words + (" ditto-jax report --serve shows all." if words else ""))


def whole_index(runs: Sequence[RunDirectory], is_wanted: Callable[[], bool] = lambda: True) -> RolloutIndex:
    """Returns the index of all rollouts of the runs; their files are read one after another, and no text is kept.

    is_wanted: asked before each file; once it says no, the index ends there.
    """
    index = RolloutIndex()
    for number, run in enumerate(runs):
        for source, steps in sources_of(run).items():
            for step in steps:
                if not is_wanted():
                    return index
                index.add(number, source, step, items_of(rows_of(run, source, step)))
    return index


def _affordable(run: RunDirectory, source: str, steps: Sequence[int], most: int) -> list[int]:
    """As many steps as `most` rollouts allow, judged by the larger of the first and the last step; first and last at
    least.
    """
    largest = max(len(rows_of(run, source, step)) for step in {steps[0], steps[-1]})
    return evenly_spaced(steps, max(2, most // max(1, largest)))
