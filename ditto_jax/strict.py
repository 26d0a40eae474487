"""Typed construction of frozen dataclasses from plain values: wrong types and unknown keys are errors that help.

One function serves YAML files, task options and saved configs, so that every unknown key is answered with the
nearest known one and every wrong type names the dotted key. What no setting may be, whatever it is for, is here too.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
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
        nested = _dataclasses_in(hints[key])
        if not nested:
            continue
        if isinstance(value, Mapping):
            _check_keys(_chosen(nested, value, dotted), value, dotted)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                if isinstance(item, Mapping):
                    _check_keys(_chosen(nested, item, f"{dotted}[{i}]"), item, f"{dotted}[{i}]")


def _dataclasses_in(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [found for arg in typing.get_args(hint) for found in _dataclasses_in(arg)]


def _chosen(classes: list[type], value: Mapping[str, Any], where: str) -> type:
    """Returns the only class, or of several that which `kind` chooses: each has a field of that name with a default."""
    if len(classes) == 1:
        return classes[0]
    by_kind = {getattr(cls, "kind", None): cls for cls in classes}
    if value.get("kind") not in by_kind:
        raise ConfigError(f"{where}.kind={value.get('kind')!r}: must be one of {', '.join(map(str, by_kind))}")
    return by_kind[value["kind"]]


@functools.cache
def adapter(cls: type) -> pydantic.TypeAdapter[Any]:
    """Returns what reads and writes a class of settings; making it takes far longer than using it."""
    return pydantic.TypeAdapter(cls)


def refuse_nan(value: Any, where: str = "") -> None:
    """Returns nothing; raises ConfigError if any number in a config is "not a number".

    Every comparison with it is false, so that it would slip through the limits of a setting.
    """
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{where}=nan: must be a number; leave it out for the default")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key, inner in value.items():
            refuse_nan(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            refuse_nan(inner, f"{where}[{number}]")


def is_folder_name(name: str) -> bool:
    """Returns whether `name` is one plain, visible part of a path on every system: no way out of its folder."""
    return name.isprintable() and bool(name.strip()) and not name.startswith(".") and not {"/", "\\"} & set(name)


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Returns `cls(**values)` with every nested value validated; raises ConfigError naming the dotted key."""
    _check_keys(cls, values, where)
    try:
        built = adapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # from a __post_init__: it names its key, and does not echo every value
            raise cause from None
        dotted = ".".join([*([where] if where else []), *_keys_of(first["loc"], values, first["type"] == "missing")])
        raise ConfigError(f"{dotted}={first.get('input')!r}: {first['msg']}") from None
    refuse_nan(built, where)
    return built


def _keys_of(location: tuple[Any, ...], values: Any, is_missing: bool) -> list[str]:
    """Returns the parts of an error's location that are keys of `values`: pydantic adds the types that it tried."""
    keys: list[str] = []
    inner: Any = values
    for part in location:
        is_index = isinstance(inner, list | tuple) and isinstance(part, int) and part < len(inner)
        if is_index or (isinstance(inner, Mapping) and part in inner):
            inner = inner[part]
            keys.append(str(part))
    return [*keys, str(location[-1])] if is_missing else keys
