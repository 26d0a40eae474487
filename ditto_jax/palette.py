"""The inks of the report: one name, one colour on light pages and one on dark ones.

Charts name inks (`ink:muted`), never colours, so that one specification serves both schemes: the page puts the colours
of its style sheet in their place, an exported figure those of the light scheme.
"""

from __future__ import annotations

from typing import Any

_INKS = {
    "page": ("#f5f6f8", "#0e1217"),
    "paper": ("#ffffff", "#161b22"),
    "ink": ("#1b1f24", "#e6e9ee"),
    "muted": ("#5b6775", "#9aa6b4"),
    "grid": ("#dde2e8", "#2c343e"),
    "edge": ("#d3d9e0", "#333c47"),
    "link": ("#0b5cad", "#7ab8ff"),
    "good": ("#176b3f", "#62d39b"),
    "bad": ("#a3341f", "#ff9a84"),
    "said": ("#f5f6f8", "#0e1217"),
    "added": ("#d6f2e0", "#173d2a"),
    "removed": ("#fbe0da", "#4a231c"),
    "series-0": ("#0b66c3", "#6db3ff"),
    "series-1": ("#b8540a", "#ffb066"),
    "series-2": ("#1a7f4b", "#5fd39a"),
    "series-3": ("#7d3fd6", "#c4a1ff"),
    "series-4": ("#c2185b", "#ff8ab5"),
    "series-5": ("#0e7c86", "#5cd0da"),
    "series-6": ("#7a6a00", "#d9c84a"),
    "series-7": ("#5b5f97", "#a9adf0"),
}
LIGHT = {name: light for name, (light, _) in _INKS.items()}
DARK = {name: dark for name, (_, dark) in _INKS.items()}
SERIES = tuple(name for name in LIGHT if name.startswith("series-"))
PREFIX = "ink:"


def ink(name: str) -> str:
    """Returns the ink as a specification names it. Raises KeyError for a name that the style sheet does not define."""
    if name not in LIGHT:
        raise KeyError(name)
    return PREFIX + name


def coloured(value: Any, colours: dict[str, str]) -> Any:
    """Returns a specification with colours in the place of ink names; data and titles stay as they are."""
    if isinstance(value, str):
        return colours.get(value.removeprefix(PREFIX), value) if value.startswith(PREFIX) else value
    if isinstance(value, dict):
        return {key: entry if key in ("data", "title") else coloured(entry, colours) for key, entry in value.items()}
    if isinstance(value, list):
        return [coloured(entry, colours) for entry in value]
    return value
