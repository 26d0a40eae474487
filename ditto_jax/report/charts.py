"""Curves and evaluation pairs → the charts of the report: a Vega-Lite specification, legend, text and data table each.

In: numbers read by `readings.py` and `comparison.py`. Out: `Chart` records for the page. Colours are ink names of
`palette.py`; the library draws. Nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ditto_jax.evaluation.comparison import Group, Measured, Pair, show_interval, show_measured, show_value
from ditto_jax.report.chart_specs import (
    NOT_HIDDEN,
    Spec,
    by_series,
    evaluation_spec,
    hover_layer,
    layered,
    stack_layer,
    steps_axis,
)
from ditto_jax.report.palette import SERIES, ink
from ditto_jax.runs.readings import OTHER, Curves, running_mean
from ditto_jax.text.visible_text import one_line

_SMOOTHED_FROM = 25  # curves of so many points also get a running mean
_DASHES = {"solid": [1, 0], "dashed": [6, 3], "dotted": [1.5, 2.5]}
_SHAPES = {"diamond": "\u25c6", "square": "\u25a0", "triangle-up": "\u25b2", "triangle-down": "\u25bc"}


@dataclasses.dataclass(frozen=True)
class Key:
    """One entry of a legend. series: its name in the specification. mark: solid, dashed or dotted for lines, else the
    sign itself.
    """

    series: str
    name: str
    ink: str
    mark: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart as the page needs it. `rows` hold the drawn numbers as text, one column each; `name` is unique in the
    page; `alternative` says in words what is drawn.
    """

    name: str
    title: str
    spec: Spec
    keys: Sequence[Key]
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    alternative: str


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve over steps; None leaves a gap. low, high: columns of the band around it, if it has one."""

    name: str
    curves: Curves
    column: str
    ink: str
    mark: str = "solid"
    low: str = ""
    high: str = ""

    @property
    def steps(self) -> Sequence[float]:
        return self.curves.steps

    @property
    def values(self) -> Sequence[float | None]:
        return self.curves.columns[self.column]

    @property
    def band(self) -> list[tuple[float, float, float]]:
        """(step, low, high), where both are known."""
        if not self.low:
            return []
        sides = zip(self.steps, self.curves.columns[self.low], self.curves.columns[self.high], strict=True)
        return [(step, low, high) for step, low, high in sides if low is not None and high is not None]

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
    is_share: bool = True,
) -> Chart | None:
    """Returns curves over steps, or None if there is nothing to draw.

    name: unique in the page. is_share: values in [0, 1] are shown against the whole of that range, so that no rise
    looks larger than it is.
    """
    lines = [line for line in lines if not line.is_empty]
    if not lines:
        return None
    shapes = [list(_SHAPES)[index % len(_SHAPES)] for index in range(len(points))]
    keys = [Key(f"s{i}", line.name, line.ink, line.mark) for i, line in enumerate(lines)]
    keys += [
        Key(f"s{len(lines) + i}", p.name, p.ink, _SHAPES[shape])
        for i, (p, shape) in enumerate(zip(points, shapes, strict=True))
    ]
    x, y = steps_axis(), _values_axis(y_label, lines, points, is_share)
    columns, rows = _line_table(lines)
    layers = [_band_layer(lines, keys, x, y), *_line_layers(lines, keys, x, y)]
    layers += [_point_layer(p, keys[len(lines) + i], shapes[i], x, y) for i, p in enumerate(points)]
    layers.append(hover_layer([line.name for line in lines], rows, x))
    alternative = f"{title}, by step. " + "; ".join([*map(_line_in_words, lines), *map(_points_in_words, points)]) + "."
    return Chart(
        name,
        title,
        layered([layer for layer in layers if layer]),
        keys,
        _joined([note, _smoothing_note(lines)]),
        columns,
        rows,
        one_line(alternative),
    )


def _values_axis(title: str, lines: Sequence[Line], points: Sequence[Points], is_share: bool) -> Spec:
    drawn = [v for line in lines for v in line.values if v is not None]
    drawn += [m.value for group in points for m in group.measured]
    scale: Spec = {"domain": [0, 1]} if is_share and min(drawn) >= 0.0 and max(drawn) <= 1.0 else {"zero": True}
    return {"type": "quantitative", "axis": {"title": title, "tickCount": 5}, "scale": scale}


def _inks(keys: Sequence[Key]) -> dict[str, str]:
    return {key.series: ink(key.ink) for key in keys}


def _colour(keys: Sequence[Key]) -> Spec:
    return by_series(_inks(keys))


def _band_layer(lines: Sequence[Line], keys: Sequence[Key], x: Spec, y: Spec) -> Spec | None:
    values = [
        {"s": key.series, "step": step, "low": low, "high": high}
        for line, key in zip(lines, keys, strict=False)
        for step, low, high in line.band
    ]
    if not values:
        return None
    return {
        "data": {"values": values},
        "transform": [NOT_HIDDEN],
        "mark": {"type": "area", "opacity": 0.18},
        "encoding": {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}, "color": _colour(keys)},
    }


def _line_layers(lines: Sequence[Line], keys: Sequence[Key], x: Spec, y: Spec) -> list[Spec]:
    """The curves; where they are long, thin as they are and thick as running means."""
    # All keys in both scales: layers share them, and a legend is made of what they agree on.
    colour, dashes = _colour(keys), by_series({key.series: _DASHES.get(key.mark, [1, 0]) for key in keys})
    keys = keys[: len(lines)]
    exact, smooth = [], []
    for line, key in zip(lines, keys, strict=True):
        is_long = len(line.values) >= _SMOOTHED_FROM
        exact += _line_values(key, line.steps, line.values) if is_long else []
        smooth += _line_values(key, line.steps, running_mean(line.values) if is_long else line.values)
    dots = not exact
    encoding = {"x": x, "y": {"field": "v", **y}, "color": colour}
    thick: Spec = {
        "data": {"values": smooth},
        "transform": [NOT_HIDDEN],
        "mark": {"type": "line", "strokeWidth": 2.2, "point": {"size": 22} if dots else False},
        "encoding": {**encoding, "strokeDash": dashes},
    }
    if not exact:
        return [thick]
    thin: Spec = {
        "data": {"values": exact},
        "transform": [NOT_HIDDEN],
        "mark": {"type": "line", "strokeWidth": 0.9, "opacity": 0.4},
        "encoding": encoding,
    }
    return [thin, thick]


def _line_values(key: Key, steps: Sequence[float], values: Sequence[float | None]) -> list[Spec]:
    return [{"s": key.series, "step": step, "v": value} for step, value in zip(steps, values, strict=True)]


def _point_layer(points: Points, key: Key, shape: str, x: Spec, y: Spec) -> Spec:
    values = [
        {"s": key.series, "step": step, "v": m.value, "low": m.low, "high": m.high, "said": show_measured(m, m.in_unit)}
        for step, m in zip(points.steps, points.measured, strict=True)
    ]
    tooltip = [
        {"field": "step", "type": "quantitative", "title": "step"},
        {"field": "said", "type": "nominal", "title": points.name},
    ]
    bounds = {"x": x, "y": {"field": "low", **y}, "y2": {"field": "high"}}
    mark = {"type": "point", "shape": shape, "filled": True, "size": 90, "opacity": 1, "stroke": ink("paper")}
    return {
        "data": {"values": values},
        "transform": [NOT_HIDDEN],
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 1.4, "color": ink(points.ink)}, "encoding": bounds},
            {
                "mark": {**mark, "fill": ink(points.ink)},
                "encoding": {"x": x, "y": {"field": "v", **y}, "tooltip": tooltip},
            },
        ],
    }


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
    title = pair.label + (" (reported, not trained for)" if pair.is_official else "")
    sides = (("before", pair.before, "muted", "\u25cb"), ("after", pair.after, "series-0", "\u25cf"))
    keys = [
        Key(side, f"{side}, step {record.get('step', '?')}", ink_name, mark)
        for side, record, ink_name, mark in sides
        if record is not None
    ]
    values = [
        {"s": side, "group": one_line(group.name), **_measured_values(m, pair.in_unit)}
        for group in groups
        for side, m in (("before", group.before), ("after", group.after))
        if m is not None
    ]
    words = "; ".join(_group_in_words(group, pair.in_unit) for group in groups)
    alternative = f"Evaluation {title} without feedback, by question order. {words}."
    rows = [[g.name, *(_measured_cell(m, pair.in_unit) for m in (g.before, g.after))] for g in groups]
    spec = evaluation_spec(values, pair.in_unit, "question order" if len(groups) > 1 else "all questions")
    columns = ("question order", "before", "after")
    return Chart(name, title, spec, keys, "", columns, rows, one_line(alternative))


def _measured_values(m: Measured, in_unit: bool) -> Spec:
    said = {"value": show_value(m.value, in_unit), "interval": show_interval(m, in_unit), "n": m.n}
    return {"v": m.value, "low": m.low, "high": m.high, **said}


def _group_in_words(group: Group, in_unit: bool) -> str:
    sides = (("before", group.before), ("after", group.after))
    found = ", ".join(f"{side} {show_value(m.value, in_unit)}" for side, m in sides if m is not None)
    return f"{'all orders' if group.name == 'all' else f'order {group.name}'}: {found or 'not measured'}"


def _measured_cell(m: Measured | None, in_unit: bool) -> str:
    return "not measured" if m is None else show_measured(m, in_unit)


def stacked_chart(name: str, title: str, y_label: str, curves: Curves, unit: str = "", note: str = "") -> Chart | None:
    """Returns amounts per step, stacked by column. A few far taller steps are cut off and named in the note.

    unit: stands after the numbers, with a space before it.
    """
    parts = [p for p, values in curves.columns.items() if any(values)]
    if not parts or not curves.steps:
        return None
    inks = {p: "muted" if p == OTHER else SERIES[i % len(SERIES)] for i, p in enumerate(parts)}
    keys = [Key(f"s{i}", f"{p} {_share(curves, p)}", inks[p], "\u25a0") for i, p in enumerate(parts)]
    half = curves.per_point / 2
    values = [
        {"s": key.series, "order": i, "from": step - half, "to": step + half, "v": curves.columns[part][at] or 0.0}
        for i, (key, part) in enumerate(zip(keys, parts, strict=True))
        for at, step in enumerate(curves.steps)
    ]
    totals = [sum(curves.columns[p][at] or 0.0 for p in parts) for at in range(len(curves.steps))]
    highest, cut = _cut_off(curves.steps, totals, unit)
    rows = [
        [f"{step:g}", *(_cell(curves.columns[p][i]) for p in parts), f"{totals[i]:.4g}"]
        for i, step in enumerate(curves.steps)
    ]
    note = _joined(
        ["Stacked from the bottom in the order of the legend, which gives shares of the whole run.", note, cut]
    )
    shares = ", ".join(f"{part} {_share(curves, part)}" for part in parts)
    alternative = f"{title}: {y_label} by step, stacked. Shares of the whole run: {shares}. {note}"
    x = steps_axis()
    layers = [stack_layer(values, _inks(keys), x, y_label, highest), hover_layer([*parts, "together"], rows, x)]
    columns = ["step", *(f"{part}{unit and ','}{unit}" for part in parts), f"together{unit and ','}{unit}"]
    return Chart(name, title, layered(layers), keys, note, columns, rows, one_line(alternative))


def _share(curves: Curves, part: str) -> str:
    sums: Mapping[str, float] = {p: sum(v or 0.0 for v in values) for p, values in curves.columns.items()}
    return f"{100 * sums[part] / sum(sums.values()):.0f}\u00a0%"


def _cut_off(steps: Sequence[float], totals: Sequence[float], unit: str) -> tuple[float, str]:
    """Returns the top of the y axis where few steps (compilation, for one) tower over the others, and the words."""
    ordered = sorted(totals)
    usual = ordered[int(0.9 * (len(ordered) - 1))]
    beyond = [(step, total) for step, total in zip(steps, totals, strict=True) if usual and total > 2.0 * usual]
    if not beyond:
        return 1.08 * ordered[-1], ""
    named = ", ".join(f"step {step:g} ({total:.1f}{unit})" for step, total in beyond[:4])
    more = f" and {len(beyond) - 4} more" if len(beyond) > 4 else ""
    return 1.12 * max(t for t in totals if t <= 2.0 * usual), f"Taller than the chart: {named}{more}."
