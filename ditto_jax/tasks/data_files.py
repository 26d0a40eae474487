"""Finding, opening and blaming the public data files that tasks read.

In: a path that a person named. Out: the plain or gzipped file behind it, its text, and errors that point at the row.
It knows no task and no file format.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pydantic

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.types import Example


def plain_or_gz(path: Path) -> Path | None:
    """Returns `path`, its gzipped or its unpacked twin, whichever exists as a file; None if none does."""
    packed = path.with_name(path.name + ".gz")
    unpacked = path.with_suffix("") if path.suffix == ".gz" else path
    return next((p for p in (path, packed, unpacked) if p.is_file()), None)


def find_file(path: Path, inside: Sequence[str], what: str) -> Path:
    """Returns the file that `path` names, or the first of the names `inside` that exists in the folder `path`.

    Plain and gzipped files stand for each other. Raises MissingInputError saying what to set otherwise; `what` names
    the wanted data for people.
    """
    if path.is_dir():
        found = next((file for name in inside if (file := plain_or_gz(path / name))), None)
        if found is None:
            names = ", ".join(f"{name}[.gz]" for name in inside) or "no file of this split"
            raise MissingInputError(f"{path}: the folder holds no {what} (looked for {names}); name the file itself")
        return found
    found = plain_or_gz(path)
    if found is None:
        raise MissingInputError(
            f"{path}: no such file or folder; set the path to {what}, "
            "or use the source kind 'generated', which needs none"
        )
    return found


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of a plain or gzipped file, line ends as "\\n". Raises DataError if it is damaged."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            return str(file.read())
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable as UTF-8 text ({error}); fetch the file again") from None


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
