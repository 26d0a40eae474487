"""A matplotlib figure → SVG that stands inline in a page and takes its colours from the page's style sheet.

Figures are drawn in stand-in colours, one per ink name; in the finished SVG each is replaced by `var(--name)`, so that
one drawing serves light and dark pages. Text stays text. The same figure always gives the same bytes. What is drawn is
decided in `charts.py`.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SERIES = tuple(f"series-{i}" for i in range(8))
INKS = ("ink", "muted", "grid", "paper", *SERIES)
_NAMESPACE = "http://www.w3.org/2000/svg"
_PALETTE = Path(__file__).parent / "templates" / "palette.css"
_WIDTH = 400  # units of the drawing; on a phone one unit is a little less than one CSS pixel

# Stand-ins are matched in the finished text, so they must be colours that nothing else is drawn in.
_STAND_INS = {name: f"#0{index:x}fe0{index:x}" for index, name in enumerate(INKS, start=1)}

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of runs and tasks may hold dollar signs
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib; the page puts its own font in its place
    "font.size": 12.5,
    "axes.labelsize": 12.5,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.edgecolor": _STAND_INS["muted"],
    "axes.labelcolor": _STAND_INS["ink"],
    "text.color": _STAND_INS["ink"],
    "xtick.color": _STAND_INS["muted"],
    "ytick.color": _STAND_INS["muted"],
    "xtick.labelcolor": _STAND_INS["ink"],
    "ytick.labelcolor": _STAND_INS["ink"],
    "grid.color": _STAND_INS["grid"],
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
}


def ink(name: str) -> str:
    """Returns the stand-in colour of an ink; raises KeyError for a name that the style sheet does not define."""
    return _STAND_INS[name]


def drawing(height: int = 240) -> tuple[Figure, Axes]:
    """Returns an empty figure, 400 by `height` units, with one pair of axes in the style of the report."""
    figure, axes = panels(1, 1, height)
    return figure, axes[0]


def panels(rows: int, columns: int, height: int = 240) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure of several axes, row by row, each 400 by `height` units."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(columns * _WIDTH / 72, rows * height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = [figure.add_subplot(rows, columns, number) for number in range(1, rows * columns + 1)]
    for one in axes:
        one.tick_params(length=3)
        one.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def step_axis(axes: Axes, label: str = "step") -> None:
    """Labels the x axis with whole steps."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def to_svg(figure: Figure, name: str, alternative: str) -> str:
    """Returns the figure as an `<svg>` element without outside references, described by `alternative`.

    name: unique in the page; it starts every id inside the drawing, because ids are shared by the whole page.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text with its own fonts; that this machine's font lacks a sign does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    _strip(root)
    _prefix_ids(root, name)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": alternative,
        "class": "chart",
    }
    text = ElementTree.tostring(root, encoding="unicode")
    for ink_name, colour in _STAND_INS.items():
        text = text.replace(colour, f"var(--{ink_name})")
    return text


def standalone(svg: str) -> str:
    """Returns the element of `to_svg` as a file of its own, with a size and the report's palette, light and dark."""
    root = ElementTree.fromstring(svg)
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib |= {"xmlns": _NAMESPACE, "width": width, "height": height, "style": "background: var(--paper)"}
    style = ElementTree.Element("style")
    style.text = f"{_PALETTE.read_text(encoding='utf-8')}text {{ font-family: system-ui, sans-serif !important; }}\n"
    root.insert(0, style)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _strip(element: ElementTree.Element) -> None:
    """Drops metadata and styles for the whole page; takes namespaces off names, which HTML supplies itself."""
    element.tag = _local(element.tag)
    element.attrib = {_local(key): value for key, value in element.attrib.items()}
    for child in list(element):
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _strip(child)


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _prefix_ids(root: ElementTree.Element, name: str) -> None:
    used = "".join(value for element in root.iter() for value in element.attrib.values())
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                # matplotlib names every group; only what is referred to needs a name.
                if f"#{value}" in used:
                    element.attrib[key] = f"{name}-{value}"
                else:
                    del element.attrib[key]
            elif key == "href":
                element.attrib[key] = f"#{name}-{value.removeprefix('#')}"
            else:
                element.attrib[key] = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", value)
