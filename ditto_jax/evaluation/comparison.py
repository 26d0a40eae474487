"""Evaluation records → before and after, by question order, with intervals and a sentence that claims no more.

In: the records of `evaluate.read_evaluations`. Out: pairs, table rows and sentences for the terminal and the report.
Nothing is estimated here: values and intervals are those of the records. Imports no jax.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Measured:
    """A measured mean. low and high are None where no interval exists (a single item)."""

    value: float
    low: float | None
    high: float | None
    n: int
    confidence: float | None = None

    @property
    def in_unit(self) -> bool:
        return 0.0 <= self.value <= 1.0


def measured(entry: Mapping[str, Any] | None) -> Measured | None:
    """Returns the mean in a record or in one of its parts, or None if nothing was measured."""
    if not entry or entry.get("value") is None:
        return None
    interval = entry.get("interval") or {}
    low, high = interval.get("low"), interval.get("high")
    bounds = (None, None)
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        bounds = (float(low), float(high))
    return Measured(float(entry["value"]), *bounds, int(entry.get("n") or 0), interval.get("confidence"))


@dataclasses.dataclass(frozen=True)
class Group:
    """One line of a before/after table: `name` is a question order (or another label) or "all"."""

    name: str
    before: Measured | None
    after: Measured | None

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after.value - self.before.value


@dataclasses.dataclass(frozen=True)
class Pair:
    """The first and the last evaluation under one label. Either may be missing."""

    label: str
    before: Record | None
    after: Record | None

    @property
    def is_official(self) -> bool:
        """True for the public files of a benchmark: reported, not trained for."""
        return self.label.startswith("official")

    @property
    def whole(self) -> Group:
        return Group(ALL, measured(self.before), measured(self.after))

    @property
    def in_unit(self) -> bool:
        """True if every value lies in [0, 1], so that percentages can be shown."""
        groups = [self.whole, *self.groups("order")]
        return all(m.in_unit for g in groups for m in (g.before, g.after) if m is not None)

    def groups(self, name: str) -> list[Group]:
        """Returns the lines of one breakdown, such as "order", numbers in their order."""
        before, after = (_breakdown(record, name) for record in (self.before, self.after))
        values = sorted({*before, *after}, key=_natural)
        return [Group(v, measured(before.get(v)), measured(after.get(v))) for v in values]

    def breakdowns(self) -> list[str]:
        """Returns the names of all breakdowns in either record, "order" first."""
        names = {name for r in (self.before, self.after) if r for name in (r.get("breakdown") or {})}
        return sorted(names, key=lambda name: (name != "order", name))


def _breakdown(record: Record | None, name: str) -> Mapping[str, Any]:
    return ((record or {}).get("breakdown") or {}).get(name) or {}


def _natural(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)


def pair_evaluations(records: Iterable[Record], order: Sequence[str] = ()) -> list[Pair]:
    """Returns one pair per label: labels in `order` first, then by name; official ones last.

    A label that was evaluated once counts as "before" at step 0 and as "after" later.
    """
    by_label: dict[str, list[Record]] = {}
    for record in records:
        by_label.setdefault(str(record.get("label", "")), []).append(record)
    pairs = []
    for label, own in by_label.items():
        own.sort(key=lambda record: record.get("step") or 0)
        if len(own) > 1:
            pairs.append(Pair(label, own[0], own[-1]))
        else:
            pairs.append(Pair(label, own[0], None) if not own[0].get("step") else Pair(label, None, own[0]))
    ranks = {label: rank for rank, label in enumerate(order)}
    return sorted(pairs, key=lambda pair: (pair.is_official, ranks.get(pair.label, len(ranks)), pair.label))


def show_value(value: float, in_unit: bool, signed: bool = False) -> str:
    """Returns a percentage if the scores lie in [0, 1], else a plain number."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f}\u00a0%" if in_unit else f"{value:{sign}.3g}"


def show_change(change: float, in_unit: bool) -> str:
    """Returns a signed difference, in percentage points where scores lie in [0, 1]."""
    return f"{100 * change:+.1f}\u00a0points" if in_unit else f"{change:+.3g}"


def show_interval(m: Measured, in_unit: bool) -> str:
    """Returns "19.8 to 32.4 %" or why there is no interval."""
    if m.low is None or m.high is None:
        return "no interval"
    if in_unit:
        return f"{100 * m.low:.1f} to {100 * m.high:.1f}\u00a0%"
    return f"{m.low:.3g} to {m.high:.3g}"


def show_measured(m: Measured, in_unit: bool) -> str:
    """Returns value, interval and n in words."""
    share = "" if m.confidence is None or m.low is None else f"{100 * m.confidence:.3g}\u00a0% interval "
    return f"{show_value(m.value, in_unit)} ({share}{show_interval(m, in_unit)}, n\u00a0=\u00a0{m.n})"


def intervals_overlap(group: Group) -> bool | None:
    """Returns whether the before and after intervals share a value; None if either is missing."""
    a, b = group.before, group.after
    if a is None or b is None or a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    return a.low <= b.high and b.low <= a.high


def verdict_on_change(group: Group) -> str:
    """Returns what before and after permit to say, in one sentence."""
    if group.change is None:
        return "There is no pair of evaluations to compare."
    if group.change == 0.0:
        return "Nothing changed."
    overlap = intervals_overlap(group)
    if overlap is None:
        return "Without intervals the change cannot be told from chance."
    if overlap:
        return "The change lies within the intervals: by itself this run does not show that anything changed."
    return "The intervals do not overlap."


def sentence(pair: Pair) -> str:
    """Returns accuracy without feedback, before and after, as one honest sentence or two."""
    group, in_unit = pair.whole, pair.in_unit
    what = "accuracy without feedback" if in_unit else "mean score without feedback"
    if group.before is not None and group.after is not None:
        text = (
            f"{what} went from {show_measured(group.before, in_unit)} at step {_step(pair.before)} to "
            f"{show_measured(group.after, in_unit)} at step {_step(pair.after)}, "
            f"{show_change(group.after.value - group.before.value, in_unit)}. {verdict_on_change(group)}"
        )
    elif (single := group.before or group.after) is not None:
        record = pair.before if group.before is not None else pair.after
        text = (
            f"{what} was {show_measured(single, in_unit)} at step {_step(record)}; no other evaluation succeeded, "
            "so nothing can be said about a change."
        )
    else:
        text = "no reply got a score, so there is no accuracy."
    return text + "".join(f" Note: {difference}." for difference in differences(pair))


def differences(pair: Pair) -> list[str]:
    """Returns what besides the weights differs between the two evaluations, which makes them hard to compare."""
    if pair.before is None or pair.after is None:
        return []
    found = []
    for key, name in (("judge", "judge"), ("task_version", "task version"), ("n", "number of scored items")):
        a, b = pair.before.get(key), pair.after.get(key)
        if a != b:
            found.append(f"the {name} differs (before: {a}, after: {b})")
    return found


def _step(record: Record | None) -> Any:
    return (record or {}).get("step", "?")


@dataclasses.dataclass(frozen=True)
class Control:
    """What one more attempt makes of wrong drafts: under the judge's words, and under words without content."""

    label: str
    step: Any
    feedback: Measured | None
    content_free: Measured | None
    without_usable_feedback: int

    @property
    def finding(self) -> str:
        """What the two numbers permit to say about whether the policy reads."""
        if self.feedback is None or self.content_free is None:
            return "One of the two was not measured."
        overlap = intervals_overlap(Group("", self.content_free, self.feedback))
        if overlap is None or overlap:
            return "Not shown: the two lie within each other's intervals."
        if self.feedback.value > self.content_free.value:
            return "Yes: the content of the words makes the difference."
        return "No: words without content do better."


def reading_controls(pair: Pair) -> list[Control]:
    """Returns the control measured before and after, where it was measured."""
    controls = []
    for record in (pair.before, pair.after):
        if record is None or not ("fixed_by_feedback" in record or "fixed_by_content_free_feedback" in record):
            continue
        real, free = record.get("fixed_by_feedback"), record.get("fixed_by_content_free_feedback")
        unusable = int((real or {}).get("without_usable_feedback") or 0)
        controls.append(Control(pair.label, _step(record), measured(real), measured(free), unusable))
    return controls
