"""Numbers and ink names → pieces of Vega-Lite specifications that charts share: axes, layers, what hovering shows.

In: values under the names of their series. Out: dictionaries for the library. A legend outside the drawing switches
series off through the parameter `hidden`. Knows nothing of runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ditto_jax.report.palette import ink
from ditto_jax.text.visible_text import one_line

Spec = dict[str, Any]

NOT_HIDDEN: Spec = {"filter": "indexof(hidden, datum.s) < 0"}
CONFIG: Spec = {
    "background": None,
    "view": {"stroke": None},
    "axisX": {"grid": False},
    "axis": {
        **{f"{part}Color": ink("muted") for part in ("domain", "tick")},
        **{f"{part}Color": ink("ink") for part in ("label", "title")},
        "gridColor": ink("grid"),
        "labelFontSize": 12,
        "titleFontSize": 12.5,
        "titleFontWeight": "normal",
    },
    "legend": {"labelColor": ink("ink"), "labelFontSize": 12, "orient": "bottom", "direction": "vertical"},
}
_HEIGHT = 230
_LONGEST_TICK = 110  # pixels


def layered(layers: Sequence[Spec], height: int = _HEIGHT) -> Spec:
    """Returns a specification with the width of its place. `hidden`: the series that the legend has switched off."""
    return {
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "params": [{"name": "hidden", "value": []}],
        "layer": list(layers),
        "config": CONFIG,
    }


def steps_axis() -> Spec:
    """Returns the x encoding of charts over steps."""
    axis = {"title": "step", "tickMinStep": 1, "tickCount": 6, "grid": False}
    return {"field": "step", "type": "quantitative", "axis": axis, "scale": {"zero": False, "nice": False}}


def by_series(what: Mapping[str, Any]) -> Spec:
    """Returns an encoding by series: `what` gives the value of each of them."""
    scale = {"domain": list(what), "range": list(what.values())}
    return {"field": "s", "type": "nominal", "scale": scale, "legend": None}


def hover_layer(names: Sequence[str], rows: Sequence[Sequence[str]], x: Spec) -> Spec:
    """Returns a rule at the step nearest to the pointer, with the values of the data table."""
    values = [{"step": float(row[0]), **{f"c{i}": cell for i, cell in enumerate(row)}} for row in rows]
    tooltip = [{"field": f"c{i}", "type": "nominal", "title": one_line(n)} for i, n in enumerate(("step", *names))]
    at = {"type": "point", "on": "pointerover", "nearest": True, "encodings": ["x"], "clear": "pointerout"}
    seen = {"condition": {"param": "at", "empty": False, "value": 0.7}, "value": 0}
    return {
        "data": {"values": values},
        "params": [{"name": "at", "select": at}],
        "mark": {"type": "rule", "color": ink("muted")},
        "encoding": {"x": x, "opacity": seen, "tooltip": tooltip},
    }


def evaluation_spec(values: Sequence[Spec], in_unit: bool, x_label: str) -> Spec:
    """Returns the chart of one evaluation: values by group, before beside after, with their intervals."""
    sides = ["before", "after"]
    x_axis = {"title": x_label, "labelAngle": 0, "labelLimit": _LONGEST_TICK, "labelOverlap": "greedy"}
    x = {"field": "group", "type": "nominal", "sort": None, "axis": x_axis}
    offset = {"field": "s", "type": "nominal", "sort": sides, "scale": {"domain": sides, "paddingOuter": 1.2}}
    axis = {"title": "accuracy" if in_unit else "mean score", "tickCount": 5, **({"format": "%"} if in_unit else {})}
    y = {"type": "quantitative", "axis": axis, "scale": {"domain": [0, 1]} if in_unit else {"zero": True}}
    colour = {"domain": sides, "range": [ink("muted"), ink("series-0")]}
    fill = {"domain": sides, "range": [ink("paper"), ink("series-0")]}
    shared = {"x": x, "xOffset": offset, "color": {"field": "s", "scale": colour, "legend": None}}
    names = (("group", "question order"), ("s", "when"), ("value", "value"), ("interval", "interval"), ("n", "n"))
    tooltip = [{"field": field, "type": "nominal", "title": title} for field, title in names]
    rule = {"mark": {"type": "rule", "strokeWidth": 2.2}}
    point = {"mark": {"type": "point", "size": 80, "strokeWidth": 2, "opacity": 1}}
    filled = {"field": "s", "scale": fill, "legend": None}
    layers = [
        {**rule, "encoding": {**shared, "y": {"field": "low", **y}, "y2": {"field": "high"}, "tooltip": tooltip}},
        {**point, "encoding": {**shared, "y": {"field": "v", **y}, "fill": filled, "tooltip": tooltip}},
    ]
    data = {"data": {"values": list(values)}, "transform": [NOT_HIDDEN]}
    return layered([{**data, **layer} for layer in layers], 220)


def stack_layer(values: Sequence[Spec], colours: Mapping[str, str], x: Spec, y_label: str, highest: float) -> Spec:
    """Returns amounts between `from` and `to`, stacked by series up to `highest`."""
    order = {"sort": [{"field": "order"}], "as": ["low", "high"]}
    y = {"field": "low", "type": "quantitative", "axis": {"title": y_label, "tickCount": 5}}
    return {
        "data": {"values": list(values)},
        "transform": [NOT_HIDDEN, {"stack": "v", "groupby": ["from", "to"], **order}],
        "mark": {"type": "rect", "clip": True, "stroke": None},
        "encoding": {
            "x": {**x, "field": "from"},
            "x2": {"field": "to"},
            "y": {**y, "scale": {"domain": [0, highest]}},
            "y2": {"field": "high"},
            "color": by_series(colours),
        },
    }
