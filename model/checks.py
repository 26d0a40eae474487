"""Rules for single values of a model configuration; whatever breaks one raises UnsupportedModel with the field's name.

In: a value, or a dictionary as it stands in a config.json and the name of a field. Out: nothing, or the value. How
fields belong together is decided where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from model.errors import UnsupportedModel


def is_int(value: Any) -> bool:
    """Returns whether value is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_count(name: str, value: Any) -> None:
    """Raises UnsupportedModel unless value is an integer of at least 1."""
    if not is_int(value) or value < 1:
        raise UnsupportedModel(name, value, "it must be an integer of at least 1")


def check_positive(name: str, value: Any) -> None:
    """Raises UnsupportedModel unless value is a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UnsupportedModel(name, value, "it must be a positive finite number")


def required_count(values: Mapping[str, Any], name: str) -> int:
    """Returns a count that config.json has to state."""
    if name not in values:
        raise UnsupportedModel(name, None, "config.json must state it")
    check_count(name, values[name])
    return values[name]


def optional(values: Mapping[str, Any], name: str, default: Any) -> Any:
    """Returns a field that config.json may leave out or set to null."""
    value = values.get(name)
    return default if value is None else value


def optional_bool(values: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Returns a switch that config.json may leave out or set to null."""
    value = optional(values, name, default)
    if not isinstance(value, bool):
        raise UnsupportedModel(name, value, "it must be true or false")
    return value
