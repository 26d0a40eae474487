"""Reads the released SOUL parquet files of the tasks `hitom` and `paratomi`.

In: a file with the columns data_source (task key) and extra_info (struct holding the row); the column prompt is a
dummy and is not read. Out: the same validated examples as the public files give, types normalised. Rows of another
task are an error, never skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.data_files import bad_row, check_unique, take, text_list
from ditto_jax.tasks.hitom.files import hitom_example
from ditto_jax.tasks.paratomi.files import paratomi_example
from ditto_jax.types import Example

_COLUMNS = ("data_source", "extra_info")
_RELEASED = {"train": "{}_rl_train.parquet", "validation": "{}_val.parquet", "test": "{}_val.parquet"}


def read_parquet(path: Path, task_name: str, limit: int | None = None, split: str = "train") -> list[Example]:
    """Returns the examples of one released parquet file, ids "<task>-<extra_info.index, else row from 0>".

    A folder is searched for the released file name of `split`; a file is read whatever the split. With `limit`, a fixed
    sample in file order. Raises ConfigError (task or split without parquet data), MissingInputError (absent path) or
    DataError (file, row, field, rule), also for a data_source that is not `task_name`.
    """
    if task_name not in _READERS:
        raise ConfigError(f"task={task_name!r}: has no parquet reader; tasks that have one: {', '.join(_READERS)}")
    file = _released_file(path, task_name, split)
    examples = []
    for i, row in enumerate(_rows(file)):
        where = f"row[{i}]"
        source, info = row["data_source"], row["extra_info"]
        if source not in _READERS:
            raise bad_row(file, where, "data_source", source, f"unknown; known: {', '.join(_READERS)}")
        if source != task_name:
            raise bad_row(file, where, "data_source", source, f"must be {task_name!r}, the task that reads this file")
        if not isinstance(info, dict):
            raise bad_row(file, where, "extra_info", info, "must be a struct")
        index = info.get("index")
        example_id = f"{task_name}-{i if index is None else index}"
        examples.append(_with_extra(_READERS[task_name](file, where, example_id, info), info))
    if not examples:
        raise DataError(f"{file}: holds no row")
    check_unique(file, examples)
    return take(examples, limit)


def _released_file(path: Path, task_name: str, split: str) -> Path:
    if split not in _RELEASED:
        raise ConfigError(f"split={split!r}: must be one of {', '.join(_RELEASED)}")
    file = path / _RELEASED[split].format(task_name) if path.is_dir() else path
    if not file.is_file():
        raise MissingInputError(f"{file}: no such file; set the path to the released parquet file of {task_name}")
    return file


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            missing = [name for name in _COLUMNS if name not in opened.schema_arrow.names]
            if missing:
                raise DataError(f"{file}: no column {', '.join(missing)}; needed: {', '.join(_COLUMNS)}")
            return opened.read(columns=list(_COLUMNS)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable parquet file ({error})") from None


def _hitom_row(file: Path, where: str, example_id: str, info: dict[str, Any]) -> Example:
    row = {name: value for name, value in info.items() if value is not None}
    row["answer"] = _answer(file, where, info)
    row["story"] = _lines(info.get("story"))
    set_id = info.get("set_id")
    return hitom_example(file, where, example_id, row, set_id="" if set_id is None else str(set_id))


def _paratomi_row(file: Path, where: str, example_id: str, info: dict[str, Any]) -> Example:
    row = {
        "story": _lines(info.get("story")),
        "question": info.get("question"),
        "answer": _answer(file, where, info),
        "cands": _candidates(file, where, info.get("cands")),
        "question_type": str(info.get("qTypeRaw") or info.get("qType") or ""),
        "story_type": "",
    }
    return paratomi_example(file, where, example_id, row)


def _with_extra(example: Example, info: dict[str, Any]) -> Example:
    """The example with the row's own extra information, which prompts show in a section of its own, if it has any."""
    extra = info.get("extra_info")
    if not isinstance(extra, str) or not extra.strip():
        return example
    return dataclasses.replace(example, payload={**example.payload, "extra_info": extra.strip()})


def _answer(file: Path, where: str, info: dict[str, Any]) -> str:
    answer = info.get("correct_answer")
    if not isinstance(answer, str) or not answer.strip():
        raise bad_row(file, where, "extra_info.correct_answer", answer, "must be the text of the right answer")
    return answer


def _lines(story: object) -> object:
    """One sentence a line, from a list or the text of a Python list; anything else (plain text) as it is."""
    looks_like_list = not isinstance(story, str) or story.strip().startswith("[")
    sentences = text_list(story) if looks_like_list else None
    return story if sentences is None else "\n".join(sentences)


def _candidates(file: Path, where: str, cands: object) -> list[str]:
    if cands is None or (isinstance(cands, str) and not cands.strip()):
        return []
    names = text_list(cands)
    if names is None:
        raise bad_row(file, where, "cands", cands, "must be a list of texts, a Python list literal of texts, or empty")
    return names


_READERS: dict[str, Callable[[Path, str, str, dict[str, Any]], Example]] = {
    "hitom": _hitom_row,
    "paratomi": _paratomi_row,
}
