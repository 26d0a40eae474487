"""Fields of one data row → checked values: texts, numbers, lists and structures that files spell in several ways.

In: a row as a mapping, with its place for errors. Out: typed values; optional fields fall back to a default. Lists and
structures may be values, JSON text or text of a Python literal; text is parsed, never evaluated. Knows no task.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError
from ditto_jax.tasks.data_files import bad_row, encodable

_MAX_LITERAL = 2_000_000  # characters; above any published row, and small enough to parse at once


def structure(value: object) -> object:
    """Returns what a text spells as JSON or as a Python literal, other values as they are, None if it is neither."""
    if not isinstance(value, str):
        return value
    if len(value) > _MAX_LITERAL:
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


@dataclasses.dataclass(frozen=True)
class Fields:
    """One row. Every reader raises DataError naming file, row, field, value and rule."""

    file: Path
    where: str
    row: Mapping[str, Any]

    def error(self, field: str, rule: str) -> DataError:
        """Returns the error for one field, to be raised."""
        return bad_row(self.file, self.where, field, self.row.get(field), rule)

    def has(self, field: str) -> bool:
        """True if the field is there and not null."""
        return self.row.get(field) is not None

    def text(self, *fields: str, default: str | None = None, empty: bool = False) -> str:
        """Returns the first of the fields that is there, stripped; numbers and truth values become text.

        default: what an absent field gives; without it the field is required. empty: whether "" is allowed.
        """
        for field in fields:
            if not self.has(field):
                continue
            value = self.row[field]
            if isinstance(value, (int, float)):
                value = str(value)
            if not isinstance(value, str) or not encodable(value):
                raise self.error(field, "must be text")
            if not value.strip() and not empty and default is None:
                raise self.error(field, "must not be empty")
            return value.strip() if value.strip() or default is None else default
        if default is None:
            raise self.error(fields[0], "must be there")
        return default

    def integer(self, field: str, default: int | None = None) -> int:
        """Returns a whole number, which may be text."""
        if not self.has(field) and default is not None:
            return default
        try:
            return int(str(self.row[field]).strip())
        except (KeyError, ValueError):
            raise self.error(field, "must be a whole number") from None

    def flag(self, field: str, default: bool | None = None) -> bool:
        """Returns a truth value, which may be a number or text (true/false, yes/no, 1/0)."""
        if not self.has(field) and default is not None:
            return default
        value = str(self.row.get(field)).strip().lower()
        if value in ("true", "yes", "1", "1.0"):
            return True
        if value in ("false", "no", "0", "0.0", "") and self.has(field):
            return False
        raise self.error(field, "must be true or false")

    def one_of(self, field: str, choices: Sequence[str], default: str | None = None) -> str:
        """Returns a text that is one of `choices`."""
        value = self.text(field, default=default)
        if value not in choices:
            raise self.error(field, f"must be one of {', '.join(choices)}")
        return value

    def texts(self, *fields: str, default: Sequence[str] | None = None, count: int | None = None) -> tuple[str, ...]:
        """Returns a list of texts (a list, JSON or a Python literal), of `count` members if that is given."""
        field = next((field for field in fields if self.has(field)), None)
        if field is None and default is not None:
            return tuple(default)
        value = structure(self.row[field]) if field is not None else None
        is_list = isinstance(value, (list, tuple))
        if not is_list or not all(isinstance(item, str) and encodable(item) for item in value):
            raise self.error(field or fields[0], "must be a list of texts, as a list, JSON or a Python literal")
        if count is not None and len(value) != count:
            raise self.error(field or fields[0], f"must have {count} members, has {len(value)}")
        return tuple(item.strip() for item in value)

    def mapping(self, field: str) -> Mapping[str, Any]:
        """Returns a structure with text keys (a mapping, JSON or a Python literal)."""
        value = structure(self.row.get(field))
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self.error(field, "must be an object with named fields")
        return value

    def records(self, field: str) -> list[Fields]:
        """Returns a list of structures, each as Fields of its own, whose errors name the member."""
        value = structure(self.row.get(field))
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
            raise self.error(field, "must be a list of objects")
        return [Fields(self.file, f"{self.where}: {field}[{i}]", item) for i, item in enumerate(value)]

    def part(self, field: str) -> Fields:
        """Returns a nested structure as Fields of its own."""
        return Fields(self.file, f"{self.where}: {field}", self.mapping(field))


def fields_of(file: Path, where: str, value: object) -> Fields:
    """Returns a parsed row as Fields. Raises DataError if it is no object with named fields."""
    if not isinstance(value, Mapping):
        raise DataError(f"{file}: {where}: must be an object with named fields")
    return Fields(file, where, value)
