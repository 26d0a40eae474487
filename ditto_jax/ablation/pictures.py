"""Results → one picture: scores by update and by sample, final scores with intervals, teacher-student gaps.

In: the values of `summary.py`. Out: an SVG file in the style of the report. Every arm keeps its colour and dash in all
panels. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ditto_jax.report.svg import SERIES, ink, panels, standalone, step_axis, to_svg

_DASHES = ("-", (0, (5, 2.5)), (0, (1.2, 1.8)))
_HEIGHT = 330


def picture(results: Mapping[str, Any]) -> str:
    """Returns the text of the SVG file."""
    arms = results["arms"]
    figure, (by_update, by_sample, final, gap) = panels(2, 2, _HEIGHT)
    styles = {name: _style(number) for number, name in enumerate(arms)}
    _curves(by_update, {name: arm["curves"]["updates"] for name, arm in arms.items()}, styles)
    step_axis(by_update, "optimiser updates")
    _curves(by_sample, {name: arm["curves"]["samples"] for name, arm in arms.items()}, styles)
    step_axis(by_sample, "generated samples")
    for axes in (by_update, by_sample):
        axes.set_ylabel("score without feedback")
        axes.set_ylim(0.0, 1.04)
    _finals(final, arms, results["places"][0], styles)
    for name, arm in arms.items():
        gap.plot(arm["gap_curve"]["places"], arm["gap_curve"]["values"], **styles[name])
    gap.axhline(0.0, color=ink("muted"), linewidth=1.0)
    step_axis(gap, "optimiser updates")
    gap.set_ylabel("reward: with feedback minus without")
    handles, names = by_update.get_legend_handles_labels()
    if handles:
        style = {"frameon": False, "handlelength": 3.2, "labelcolor": ink("ink")}
        figure.legend(handles, names, loc="outside lower center", ncols=4, **style)
    return standalone(to_svg(figure, "ablation", _in_words(results)))


def _style(number: int) -> dict[str, Any]:
    dash = _DASHES[number // len(SERIES) % len(_DASHES)]
    return {"color": ink(SERIES[number % len(SERIES)]), "linestyle": dash}


def _curves(axes: Axes, curves: Mapping[str, Mapping[str, Any]], styles: Mapping[str, dict[str, Any]]) -> None:
    for name, curve in curves.items():
        known = [(x, v["mean"]) for x, v in zip(curve["places"], curve["values"], strict=True) if v is not None]
        if known:
            axes.plot(*zip(*known, strict=True), label=name, **styles[name])


def _finals(axes: Axes, arms: Mapping[str, Any], place: str, styles: Mapping[str, dict[str, Any]]) -> None:
    """One row an arm, the first on top: the mean and its interval."""
    names = list(arms)
    for row, name in enumerate(reversed(names)):
        estimate = arms[name]["at"][place]
        if estimate is None:
            continue
        colour = styles[name]["color"]
        if estimate["low"] is not None:
            axes.hlines(row, estimate["low"], estimate["high"], color=colour, linewidth=2.2)
        axes.plot([estimate["mean"]], [row], "o", color=colour, markersize=6)
    axes.set_yticks(range(len(names)), _shortened(names[::-1]))
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlabel(f"score at {place}, 95 % interval")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(True, axis="x")


def _shortened(names: Sequence[str], most: int = 22) -> list[str]:
    return [name if len(name) <= most else f"{name[: most - 1]}…" for name in names]


def _in_words(results: Mapping[str, Any]) -> str:
    place = results["places"][0]
    ends = [(name, arm["at"][place]) for name, arm in results["arms"].items()]
    scores = "; ".join(f"{name} {one['mean']:.3f}" for name, one in ends if one is not None)
    return f"Scores without feedback of the arms of {results['name']} at {place}: {scores or 'none measured'}."
