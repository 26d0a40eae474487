"""Reads the released SOUL parquet files: rows become the same validated examples as the public files give.

In: a file with the columns data_source (task key) and extra_info (struct holding the row); the column prompt is a
dummy and is not read. Out: what the task's `released_row` makes of each row. Rows of another data source are an error,
never skipped: the file is not what it was taken for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.data_files import bad_row, take
from ditto_jax.tasks.manifest import check_file
from ditto_jax.tasks.option_checks import check_choice
from ditto_jax.tasks.released import released_files, unusable
from ditto_jax.tasks.rows import read_rows
from ditto_jax.tasks.splits import SPLITS
from ditto_jax.types import Example

if TYPE_CHECKING:
    from ditto_jax.tasks.soul_task import SoulTask

_COLUMNS = ("data_source", "extra_info")


def read_parquet(path: Path, task: SoulTask[Any], source: Source) -> list[Example]:
    """Returns the examples of one released parquet file, ids "<task>-<extra_info.index, else row from 0>".

    A folder is searched for the released file name of the split; a file is read whatever the split. With a limit, a
    fixed sample in file order. Raises ConfigError (split or task without released data), MissingInputError (absent
    path) or DataError (file, row, field, rule), also for a data_source that is not the task's name, and for a file that
    is not what the manifest beside it says.
    """
    file = _released_file(path, task.name, source.split)

    def example(where: str, row: dict[str, Any]) -> Example:
        info = row["extra_info"]
        if not isinstance(info, dict):
            raise bad_row(file, where, "extra_info", info, "must be a struct")
        index = info.get("index")
        number = where.removeprefix("row[").removesuffix("]") if index is None else index
        return _with_extra(task.released_row(file, where, f"{task.name}-{number}", info), info)

    return take(read_rows(file, _own_rows(file, task.name), example, source.rows), source.limit)


def _released_file(path: Path, task_name: str, split: str) -> Path:
    check_choice("split", split, SPLITS)
    file = path / released_files(task_name).file(split) if path.is_dir() else path
    if not file.is_file():
        raise MissingInputError(
            f"{file}: no such file; set the path to the released parquet file of {task_name}, "
            "which `ditto-jax data fetch` gets"
        )
    check_file(file)
    return file


def _own_rows(file: Path, task_name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, row in enumerate(_rows(file)):
        where, name = f"row[{i}]", row["data_source"]
        if name != task_name:
            rule = unusable(str(name)) or f"must be {task_name!r}, the task that reads this file"
            raise bad_row(file, where, "data_source", name, rule)
        yield where, row


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            missing = [name for name in _COLUMNS if name not in opened.schema_arrow.names]
            if missing:
                raise DataError(f"{file}: no column {', '.join(missing)}; needed: {', '.join(_COLUMNS)}")
            return opened.read(columns=list(_COLUMNS)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file ({error})") from None


def _with_extra(example: Example, info: dict[str, Any]) -> Example:
    """The example with the row's own extra information, which prompts show in a section of its own, if it has any."""
    extra = info.get("extra_info")
    if not isinstance(extra, str) or not extra.strip():
        return example
    return dataclasses.replace(example, payload={**example.payload, "extra_info": extra.strip()})
