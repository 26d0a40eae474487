"""Curves and evaluation pairs → the charts of the report: drawing, legend, text alternative, and the data as a table.

In: numbers read by `readings.py` and `comparison.py`. Out: `Chart` records for the page. Colours are ink names of
`svg.py`. Nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ditto_jax.comparison import Group, Measured, Pair, show_measured, show_value
from ditto_jax.readings import OTHER, Curves, running_mean
from ditto_jax.svg import SERIES, drawing, ink, step_axis, to_svg
from ditto_jax.visible_text import one_line

_LONGEST_TICK = 10
_SMOOTHED_FROM = 25  # curves of so many points also get a running mean
_DASHES = {"solid": "-", "dashed": (0, (5, 2.5)), "dotted": (0, (1.2, 1.8))}
_MARKERS = {"D": "\u25c6", "s": "\u25a0", "^": "\u25b2", "v": "\u25bc"}  # matplotlib's name → the sign in the legend


@dataclasses.dataclass(frozen=True)
class Key:
    """One entry of a legend. mark: solid, dashed or dotted for lines, else the sign itself."""

    name: str
    ink: str
    mark: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart as the page needs it. `rows` hold the drawn numbers as text, one column each."""

    title: str
    svg: str
    keys: Sequence[Key]
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve over steps; None leaves a gap."""

    name: str
    curves: Curves
    column: str
    ink: str
    mark: str = "solid"

    @property
    def steps(self) -> Sequence[float]:
        return self.curves.steps

    @property
    def values(self) -> Sequence[float | None]:
        return self.curves.columns[self.column]

    @property
    def is_empty(self) -> bool:
        return all(value is None for value in self.values)


@dataclasses.dataclass(frozen=True)
class Points:
    """Single measurements with intervals, drawn over the curves."""

    name: str
    steps: Sequence[float]
    measured: Sequence[Measured]
    ink: str


def line_chart(
    name: str,
    title: str,
    y_label: str,
    lines: Sequence[Line],
    points: Sequence[Points] = (),
    note: str = "",
    is_reward: bool = True,
) -> Chart | None:
    """Returns curves over steps, or None if there is nothing to draw.

    name: unique in the page. is_reward: values in [0, 1] are shown against the whole of that range, so that no rise
    looks larger than it is.
    """
    lines = [line for line in lines if not line.is_empty]
    if not lines:
        return None
    figure, axes = drawing()
    for line in lines:
        _draw_line(axes, line)
    markers = [list(_MARKERS)[index % len(_MARKERS)] for index in range(len(points))]
    for group, marker in zip(points, markers, strict=True):
        _draw_points(axes, group, marker)
    shown = [v for line in lines for v in line.values if v is not None]
    shown += [m.value for group in points for m in group.measured]
    _limits(axes, shown, is_reward)
    step_axis(axes)
    axes.set_ylabel(y_label)
    keys = [Key(line.name, line.ink, line.mark) for line in lines]
    keys += [Key(p.name, p.ink, _MARKERS[marker]) for p, marker in zip(points, markers, strict=True)]
    alternative = f"{title}, by step. " + "; ".join([*map(_line_in_words, lines), *map(_points_in_words, points)]) + "."
    notes = [note, _smoothing_note(lines)]
    columns, rows = _line_table(lines)
    return Chart(title, to_svg(figure, name, one_line(alternative)), keys, _joined(notes), columns, rows)


def _draw_line(axes: Axes, line: Line) -> None:
    values = [math.nan if v is None else v for v in line.values]
    colour = ink(line.ink)
    style = _DASHES[line.mark]
    if len(values) < _SMOOTHED_FROM:
        axes.plot(line.steps, values, color=colour, linestyle=style, marker="o", markersize=3.2)
        return
    axes.plot(line.steps, values, color=colour, linewidth=0.9, alpha=0.4)
    smooth = [math.nan if v is None else v for v in running_mean(line.values)]
    axes.plot(line.steps, smooth, color=colour, linestyle=style)


def _draw_points(axes: Axes, points: Points, marker: str) -> None:
    for step, m in zip(points.steps, points.measured, strict=True):
        if m.low is not None and m.high is not None:
            axes.vlines(step, m.low, m.high, color=ink(points.ink), linewidth=1.4)
    values = [m.value for m in points.measured]
    axes.plot(
        points.steps, values, marker, markersize=6.5, color=ink(points.ink), markeredgecolor=ink("paper"), clip_on=False
    )


def _limits(axes: Axes, values: Sequence[float], is_reward: bool) -> None:
    low, high = min(values), max(values)
    if is_reward and low >= 0.0 and high <= 1.0:
        axes.set_ylim(0.0, 1.04)
        return
    low, high = min(low, 0.0), max(high, 0.0)
    air = 0.06 * ((high - low) or 1.0)
    axes.set_ylim(low - (air if low < 0.0 else 0.0), high + air)
    if low < 0.0:
        axes.axhline(0.0, color=ink("muted"), linewidth=1.0)


def _line_in_words(line: Line) -> str:
    kept = [(s, v) for s, v in zip(line.steps, line.values, strict=True) if v is not None]
    (first, start), (last, end) = kept[0], kept[-1]
    if len(kept) == 1:
        return f"{line.name} {start:.3g} at step {first:g}"
    return f"{line.name} from {start:.3g} at step {first:g} to {end:.3g} at step {last:g}"


def _points_in_words(points: Points) -> str:
    pairs = zip(points.steps, points.measured, strict=True)
    return f"{points.name}: " + ", ".join(f"{m.value:.3g} at step {s:g}" for s, m in pairs)


def _smoothing_note(lines: Sequence[Line]) -> str:
    binned = max(line.curves.per_point for line in lines)
    notes = [f"Each point is the mean of up to {binned} steps."] if binned > 1 else []
    if any(len(line.values) >= _SMOOTHED_FROM for line in lines):
        notes.append("Thin: the steps themselves; thick: running mean.")
    return " ".join(notes)


def _joined(notes: Sequence[str]) -> str:
    return " ".join(note for note in notes if note)


def _line_table(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    by_line = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    steps = sorted({step for values in by_line for step in values})
    rows = [[f"{step:g}", *(_cell(values.get(step)) for values in by_line)] for step in steps]
    return ["step", *(line.name for line in lines)], rows


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def evaluation_chart(name: str, pair: Pair) -> Chart | None:
    """Returns one evaluation by question order, before and after, with intervals; None if nothing was measured."""
    groups = [*pair.groups("order"), pair.whole]
    if all(m is None for g in groups for m in (g.before, g.after)):
        return None
    figure, axes = drawing(230)
    for place, group in enumerate(groups):
        _draw_measured(axes, place - 0.13, group.before, "muted", hollow=True)
        _draw_measured(axes, place + 0.13, group.after, "series-0", hollow=False)
    if len(groups) > 1:
        axes.axvline(len(groups) - 1.5, color=ink("grid"), linewidth=0.8)
    axes.set_xticks(range(len(groups)), [one_line(g.name)[:_LONGEST_TICK] for g in groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_xlabel("question order" if len(groups) > 1 else "all questions")
    if pair.in_unit:
        axes.set_ylim(0.0, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("accuracy" if pair.in_unit else "mean score")
    title = pair.label + (" (reported, not trained for)" if pair.is_official else "")
    sides = {"before": "muted", "after": "series-0"}
    keys = [
        Key(f"{side}, step {(record or {}).get('step', '?')}", sides[side], "\u25cb" if side == "before" else "\u25cf")
        for side, record in (("before", pair.before), ("after", pair.after))
        if record is not None
    ]
    words = "; ".join(_group_in_words(group, pair.in_unit) for group in groups)
    alternative = f"Evaluation {title} without feedback, by question order. {words}."
    rows = [[g.name, *(_measured_cell(m, pair.in_unit) for m in (g.before, g.after))] for g in groups]
    svg = to_svg(figure, name, one_line(alternative))
    return Chart(title, svg, keys, "", ("question order", "before", "after"), rows)


def _draw_measured(axes: Axes, place: float, m: Measured | None, ink_name: str, hollow: bool) -> None:
    if m is None:
        return
    colour = ink(ink_name)
    if m.low is not None and m.high is not None:
        axes.vlines(place, m.low, m.high, color=colour, linewidth=2.2, clip_on=False)
    face = ink("paper") if hollow else colour
    style = {"markersize": 8, "markerfacecolor": face, "markeredgecolor": colour, "markeredgewidth": 2}
    axes.plot([place], [m.value], "o", clip_on=False, zorder=3, **style)


def _group_in_words(group: Group, in_unit: bool) -> str:
    sides = (("before", group.before), ("after", group.after))
    found = ", ".join(f"{side} {show_value(m.value, in_unit)}" for side, m in sides if m is not None)
    return f"{'all orders' if group.name == 'all' else f'order {group.name}'}: {found or 'not measured'}"


def _measured_cell(m: Measured | None, in_unit: bool) -> str:
    return "not measured" if m is None else show_measured(m, in_unit)


def time_chart(name: str, curves: Curves) -> Chart | None:
    """Returns seconds per step, stacked by phase. A few far longer steps are cut off and named in the note."""
    phases = [p for p, values in curves.columns.items() if any(values)]
    if not phases:
        return None
    steps = curves.steps
    half = curves.per_point / 2
    edges = [step - half for step in steps] + [steps[-1] + half]
    figure, axes = drawing()
    base = [0.0] * len(steps)
    keys = []
    for index, phase in enumerate(phases):
        top = [low + (v or 0.0) for low, v in zip(base, curves.columns[phase], strict=True)]
        name_of_ink = "muted" if phase == OTHER else SERIES[index % len(SERIES)]
        axes.fill_between(
            edges,
            [*base, base[-1]],
            [*top, top[-1]],
            step="post",
            facecolor=ink(name_of_ink),
            edgecolor=ink("paper"),
            linewidth=0.6,
        )
        keys.append(Key(f"{phase} {_share(curves, phase)}", name_of_ink, "\u25a0"))
        base = top
    note = _joined(
        [
            "Stacked from the bottom in the order of the legend, which gives shares of the whole run.",
            _cut_off(axes, steps, base),
        ]
    )
    axes.set_xlim(edges[0], edges[-1])
    step_axis(axes)
    axes.set_ylabel("seconds")
    totals = ", ".join(f"{phase} {_share(curves, phase)}" for phase in phases)
    alternative = f"Seconds per step, stacked by phase. Shares of the whole run: {totals}. {note}"
    rows = [
        [f"{step:g}", *(_cell(curves.columns[p][i]) for p in phases), f"{base[i]:.4g}"] for i, step in enumerate(steps)
    ]
    columns = ["step", *(f"{phase}, s" for phase in phases), "whole step, s"]
    return Chart("Where the time goes", to_svg(figure, name, one_line(alternative)), keys, note, columns, rows)


def _share(curves: Curves, phase: str) -> str:
    sums: Mapping[str, float] = {p: sum(v or 0.0 for v in values) for p, values in curves.columns.items()}
    return f"{100 * sums[phase] / sum(sums.values()):.0f}\u00a0%"


def _cut_off(axes: Axes, steps: Sequence[float], totals: Sequence[float]) -> str:
    """Limits the y axis where few steps (compilation, for one) tower over the others; returns the words for it."""
    ordered = sorted(totals)
    usual = ordered[int(0.9 * (len(ordered) - 1))]
    beyond = [(step, total) for step, total in zip(steps, totals, strict=True) if total > 2.0 * usual]
    axes.set_ylim(0.0, 1.12 * max(t for t in totals if t <= 2.0 * usual) if beyond else 1.08 * ordered[-1])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if not beyond:
        return ""
    named = ", ".join(f"step {step:g} ({total:.1f} s)" for step, total in beyond[:4])
    more = f" and {len(beyond) - 4} more" if len(beyond) > 4 else ""
    return f"Taller than the chart: {named}{more}. The first step of a process includes compilation."
