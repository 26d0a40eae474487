"""Typed construction of frozen dataclasses from plain values: wrong types and unknown keys are errors that help.

One function serves YAML files, task options and saved configs, so that every unknown key is answered with the
nearest known one and every wrong type names the dotted key.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from ditto_jax.errors import ConfigError

T = TypeVar("T")


def _check_keys(cls: type, values: Mapping[str, Any], where: str) -> None:
    known = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"{dotted}: unknown key; {hint}")
        nested = _dataclass_in(hints[key])
        if nested is None:
            continue
        if isinstance(value, Mapping):
            _check_keys(nested, value, dotted)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                if isinstance(item, Mapping):
                    _check_keys(nested, item, f"{dotted}[{i}]")


def _dataclass_in(hint: Any) -> type | None:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    for arg in typing.get_args(hint):
        found = _dataclass_in(arg)
        if found is not None:
            return found
    return None


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Returns `cls(**values)` with every nested value validated; raises ConfigError naming the dotted key."""
    _check_keys(cls, values, where)
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # from a __post_init__: it names its key, and does not echo every value
            raise cause from None
        dotted = ".".join([*([where] if where else []), *map(str, first["loc"])])
        raise ConfigError(f"{dotted}={first.get('input')!r}: {first['msg']}") from None
