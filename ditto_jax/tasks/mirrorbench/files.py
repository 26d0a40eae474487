"""Reads rows of the task `mirrorbench`: the benchmark's four normalised JSONL files, and released parquet rows.

In: `*_mirror.jsonl`, plain or gzipped, or the folder of them; or one `extra_info`. Out: examples whose payload has
task_description, turns, dataset and conversation_id; gold is the real user's turns. The public conversations are those
that the benchmark tests on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.data_files import find_file, plain_or_gz
from ditto_jax.tasks.fields import Fields
from ditto_jax.tasks.rows import RowReport, json_lines, read_rows
from ditto_jax.types import Example

NAMES = ("chatbot_arena", "clariq", "oasst1", "qulac")


def read_mirrorbench(path: Path, split: str, report: RowReport) -> list[Example]:
    """Returns the conversations of a file, or of all four in a folder, ids "mirrorbench-<conversation_id>".

    Raises MissingInputError (absent path or split) or DataError (file, line, field, rule).
    """
    if split != "test":
        raise MissingInputError(f"{path}: the public conversations are a test set; set source.split to test")
    examples: list[Example] = []
    for file in _files(path):

        def example(where: str, row: Any, file: Path = file) -> Example:
            if not isinstance(row, Mapping):
                raise DataError(f"{file}: {where}: must be a JSON object")
            conversation = Fields(file, where, row).text("conversation_id")
            return mirror_example(file, where, f"mirrorbench-{conversation}", row)

        examples += read_rows(file, json_lines(file, report), example, report)
    return examples


def mirror_example(file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
    """Returns one validated example. Raises DataError (file, row, field, rule)."""
    row = Fields(file, where, info)
    turns = tuple(
        {"role": turn.one_of("role", ("user", "assistant")), "content": turn.text("content")}
        for turn in row.records("turns")
    )
    spoken = [turn["content"] for turn in turns if turn["role"] == "user"]
    if not spoken:
        raise row.error("turns", "must hold at least one user turn")
    payload = {
        "task_description": row.text("task_description"),
        "turns": turns,
        "dataset": row.text("dataset", default="unknown"),
        "conversation_id": row.text("conversation_id", default=example_id),
    }
    return Example(task="mirrorbench", id=example_id, payload=payload, gold="\n".join(spoken))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [find_file(path, (), "a MirrorBench file such as oasst1_mirror.jsonl")]
    folder = path / "mirrorbench" if (path / "mirrorbench").is_dir() else path
    found = [file for name in NAMES if (file := plain_or_gz(folder / f"{name}_mirror.jsonl")) is not None]
    if not found:
        raise MissingInputError(f"{path}: the folder holds no MirrorBench file (looked for {NAMES[0]}_mirror.jsonl …)")
    return found
