"""The inks of the report: one name, one colour on light pages and one on dark ones, as `templates/palette.css` says.

Charts name inks (`ink:muted`), never colours, so that one specification serves both schemes: the page puts the colours
of its style sheet in their place, an exported figure those of the light scheme.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_SHEET = (Path(__file__).parent / "templates" / "palette.css").read_text(encoding="utf-8")

LIGHT = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", _SHEET.split("@media", 1)[0]))
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
