"""Jinja2 templates whose every inserted value must say how it is quoted: for a shell, for YAML, or as a plain word.

In: a template's name and values. Out: text. A value without one of the filters below is an error of the template, so
that no setting can become a command.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2

FOLDER = Path(__file__).parent / "templates"


class _Quoted(str):
    """Text that may stand where a filter has put it."""


def render_template(template: str, /, **values: Any) -> str:
    """Returns the text of a template; raises TypeError for a value that the template does not quote."""
    return _ENVIRONMENT.get_template(template).render(**values)


def _shell(value: Any) -> _Quoted:
    return _Quoted(shlex.quote(str(value)))


def _words(values: Iterable[Any]) -> _Quoted:
    return _Quoted(shlex.join(str(value) for value in values))


def _yaml(value: Any) -> _Quoted:
    """JSON is YAML, except that YAML has an escape of its own for signs beyond 16 bits."""
    text = json.dumps(value, ensure_ascii=False)
    return _Quoted("".join(sign if sign < "\x7f" else _escaped(ord(sign)) for sign in text))


def _escaped(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _plain(value: Any) -> _Quoted:
    """Signs that mean nothing to a shell or to YAML; raises ValueError for others."""
    if not re.fullmatch(r"[A-Za-z0-9_.,:/@-]+", str(value)):
        raise ValueError(f"{value!r} is no plain word")
    return _Quoted(value)


def _sbatch(value: Any) -> _Quoted:
    """A value in a line that only Slurm reads; raises ValueError if it would end the line or the value."""
    if not re.fullmatch(r"[^\s'\"#\\]+", str(value)):
        raise ValueError(f"{value!r} is no value of a Slurm option")
    return _Quoted(value)


def _only_quoted(value: Any) -> Any:
    if not isinstance(value, _Quoted):
        raise TypeError(f"{value!r} is inserted without a filter that quotes it")
    return value


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_only_quoted,
    )
    environment.filters |= {"shell": _shell, "words": _words, "yaml": _yaml, "plain": _plain, "sbatch": _sbatch}
    return environment


_ENVIRONMENT = _environment()
