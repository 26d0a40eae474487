"""Rows of a file → examples, with an account of what was found, refused and why.

In: (place, row) pairs and the function that turns a row into an example. Out: examples in file order, and the
account. By default a malformed row ends the reading with its DataError; a tolerant report counts it and goes on. Knows
no format but lines of JSON.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError
from ditto_jax.tasks.data_files import read_text
from ditto_jax.types import Example

_SHOWN = 5


@dataclasses.dataclass
class RowReport:
    """What reading a source came to. skip_bad: count malformed rows instead of raising the first one's error.

    found: rows looked at. refused: why each malformed row was (file, row, field, value, rule). left_out: well-formed
    rows that the task does not use, by reason.
    """

    skip_bad: bool = False
    found: int = 0
    refused: list[str] = dataclasses.field(default_factory=list)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def refuse(self, error: DataError) -> None:
        """Counts one malformed row, or raises its error."""
        if not self.skip_bad:
            raise error
        self.refused.append(str(error))

    def as_dict(self) -> dict[str, Any]:
        """Returns the account for records: numbers, and the first reasons."""
        return {
            "found": self.found,
            "refused": len(self.refused),
            "refused_first": self.refused[:_SHOWN],
            "left_out": dict(sorted(self.left_out.items())),
        }


class LeftOut(Exception):
    """Raised by a row function: the row is well formed, but the task does not use it; the message says why."""


def read_rows(
    file: Path, rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], Example], report: RowReport
) -> list[Example]:
    """Returns `make(where, row)` for every row that can be used, in order; ids must be unique within the file.

    Raises DataError for a malformed row unless the report is tolerant, and if no row at all can be used.
    """
    examples: dict[str, Example] = {}
    for where, row in rows:
        report.found += 1
        try:
            example = make(where, row)
            if example.id in examples:
                raise DataError(f"{file}: {where}: id={example.id!r}: a row before has it; ids must be unique")
        except LeftOut as reason:
            report.left_out[str(reason)] += 1
        except DataError as error:
            report.refuse(error)
        else:
            examples[example.id] = example
    if not examples:
        reasons = [f"left out: {why}" for why in report.left_out] + [f"refused: {why}" for why in report.refused[:1]]
        raise DataError(f"{file}: holds no row that the task can use{'; '.join(['', *reasons])}")
    return list(examples.values())


def json_lines(file: Path, report: RowReport) -> Iterator[tuple[str, Any]]:
    """Yields (place, value) for every line of a JSONL file, plain or gzipped; lines that are no JSON are refused."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            report.found += 1
            report.refuse(DataError(f"{file}: line {number}: not valid JSON ({type(error).__name__})"))
