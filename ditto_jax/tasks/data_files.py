"""Finding, opening and blaming the public data files that tasks read.

In: a path that a person named. Out: the plain or gzipped file behind it, its text, JSON value or table rows, and errors
that point at the row. It knows no task.
"""

from __future__ import annotations

import ast
import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.types import Example


def plain_or_gz(path: Path) -> Path | None:
    """Returns `path`, its gzipped or its unpacked twin, whichever exists as a file; None if none does."""
    packed = path.with_name(path.name + ".gz")
    unpacked = path.with_suffix("") if path.suffix == ".gz" else path
    return next((p for p in (path, packed, unpacked) if p.is_file()), None)


def find_file(path: Path, inside: Sequence[str], what: str, generated: bool = False) -> Path:
    """Returns the file that `path` names, or the first of the names `inside` that exists in the folder `path`.

    Plain and gzipped files stand for each other. Raises MissingInputError saying what to set otherwise; `what` names
    the wanted data for people, `generated` says whether the task can do without.
    """
    if path.is_dir():
        found = next((file for name in inside if (file := plain_or_gz(path / name))), None)
        if found is None:
            names = ", ".join(f"{name}[.gz]" for name in inside) or "no file of this split"
            raise MissingInputError(f"{path}: the folder holds no {what} (looked for {names}); name the file itself")
        return found
    found = plain_or_gz(path)
    if found is None:
        instead = ", or use the source kind 'generated', which needs none" if generated else ""
        raise MissingInputError(f"{path}: no such file or folder; set the path to {what}{instead}")
    return found


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of a plain or gzipped file, line ends as "\\n". Raises DataError if it is damaged."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            return str(file.read())
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable as UTF-8 text ({error}); fetch the file again") from None


def read_json(path: Path) -> Any:
    """Returns the value that a plain or gzipped file holds as JSON. Raises DataError if it holds something else."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; lists nested thousands deep
        raise DataError(f"{path}: not valid JSON ({type(error).__name__})") from None


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yields ("line <number>", row) of a plain or gzipped CSV file, by the names of its first line.

    Fields beyond those stand under the key None, absent ones are None. Raises DataError if a column is missing or the
    file is no CSV.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}: line 1: no column {', '.join(missing)}; needed: {', '.join(columns)}")
        for row in reader:
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not valid CSV ({error})") from None


def encodable(text: str) -> bool:
    """Returns whether a text can be written as UTF-8: JSON can spell halves of characters, which cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def text_list(value: object) -> list[str] | None:
    """Returns the strings of a list, or of a Python list literal in text, stripped; None if `value` is neither.

    Literals are parsed, never evaluated.
    """
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item.strip() for item in value):
        return None
    return [item.strip() for item in value]


def bad_row(path: Path, row: str, field: str, value: object, rule: str) -> DataError:
    """Returns the error for one malformed field: file, row, field, value (shortened) and the rule it breaks."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return DataError(f"{path}: {row}: {field}={shown}: {rule}")


def bad_model(path: Path, row: str, error: pydantic.ValidationError) -> DataError:
    """Returns the error for the first field that a pydantic schema refused."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "row"
    value = None if first["type"] == "missing" else first.get("input")
    return bad_row(path, row, field, value, first["msg"])


def check_unique(path: Path, examples: Iterable[Example]) -> None:
    """Raises DataError if two rows have one id."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(f"{path}: two rows have the id {example.id!r}; ids must be unique within a file")
        seen.add(example.id)


def take(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """Returns all examples, or a fixed sample of `limit` of them in file order.

    Files are sorted by question kind, so that their first rows would be a biased subset. The sample is chosen by a
    hash of the id: it is the same on every machine, and a smaller sample is part of a larger one.
    """
    if limit is None or limit >= len(examples):
        return list(examples)
    if limit < 0:
        raise ValueError(f"limit={limit}: must be None (all) or at least 0")
    by_hash = sorted(range(len(examples)), key=lambda i: hashlib.sha256(examples[i].id.encode()).digest())
    return [examples[i] for i in sorted(by_hash[:limit])]
