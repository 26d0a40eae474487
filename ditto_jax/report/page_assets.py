"""Libraries, own scripts and data → the parts of a self-contained page, and the policy under which a browser runs it.

In: the files of `vendor/` and `templates/`, and values that JSON can hold. Out: text that may stand inside `<script>`
and `<style>`. The policy names every script by its hash and allows nothing else to run, to load or to connect, so that
what policies and judges wrote stays text even if an escape were forgotten. Decides nothing about what is shown.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ditto_jax.text.visible_text import visible

_HERE = Path(__file__).parent
VENDOR = _HERE / "vendor"
TEMPLATES = _HERE / "templates"

CHART_LIBRARIES = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")
BROWSER_LIBRARIES = ("tabulator.min.js", "diff.min.js")
TABLE_STYLE = "tabulator_simple.min.css"


@dataclasses.dataclass(frozen=True)
class Script:
    """A script as it stands in the page, and its hash as a policy names it."""

    text: Markup
    source: str


@functools.cache
def script(path: Path) -> Script:
    """Returns the script in a file. Raises ValueError if it cannot stand inside a `<script>` element unchanged."""
    text = path.read_text(encoding="utf-8")
    if "</script" in text.lower() or "<!--" in text or "\r" in text or "\0" in text:
        raise ValueError(f"{path}: a page cannot hold this script unchanged")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Script(Markup(text), f"'sha256-{digest}'")


def scripts(names: Sequence[str]) -> list[Script]:
    """Returns the named scripts, of `vendor/` or else of `templates/`, in their order."""
    return [script(VENDOR / name if (VENDOR / name).exists() else TEMPLATES / name) for name in names]


def table_style() -> Markup:
    """Returns the style sheet of the table library."""
    return Markup((VENDOR / TABLE_STYLE).read_text(encoding="utf-8"))


def content_policy(parts: Sequence[Script], served: bool = False) -> str:
    """Returns the Content-Security-Policy of a page with these scripts. served: it may ask its own server for data."""
    connect = "; connect-src 'self'" if served else ""
    sources = " ".join(part.source for part in parts) or "'none'"
    return f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'{connect}"


def shown(value: Any) -> Any:
    """Returns `value` with every text in it as `visible` shows it, keys included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {shown(key): shown(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [shown(entry) for entry in value]
    return value


def compact_json(value: Any) -> str:
    """Returns JSON without spaces. Raises ValueError for numbers that JSON does not have."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_block(value: Any) -> Markup:
    """Returns JSON that may stand inside a `<script type="application/json">`: it holds no `<` and nothing hidden."""
    return Markup(compact_json(shown(value)).replace("<", "\\u003c"))


def json_answer(value: Any) -> bytes:
    """Returns JSON for a request of the page; nothing hidden is in it."""
    return compact_json(shown(value)).encode()


def packed_block(value: Any) -> Markup:
    """Returns JSON, compressed and in base64; the same value always gives the same text. Nothing hidden is in it."""
    return Markup(base64.b64encode(gzip.compress(compact_json(shown(value)).encode(), 6, mtime=0)).decode())
