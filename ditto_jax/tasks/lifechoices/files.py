"""Reads rows of the task `lifechoices`: released parquet rows, and the authors' `data.json`, which have one schema.

In: one `extra_info`, or a JSON list of rows (or of lists of rows, one a book). Out: examples with a character, a
memory, a scenario, a question and four options, grouped by book. Splits of the JSON file are by book, so that no novel
is in two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError
from ditto_jax.tasks.data_files import find_file, read_json
from ditto_jax.tasks.fields import Fields
from ditto_jax.tasks.rows import RowReport, read_rows
from ditto_jax.tasks.splits import group_name, of_split
from ditto_jax.types import Example

_INSIDE = ("data.json", "LifeChoice/data/data.json", "LifeChoice/data.json", "data/data.json")
_LETTERS = "ABCD"
_LABEL = re.compile(r"\(?([A-Da-d])\s*[.):]\s*(?=\S)")
_GOLD = re.compile(r"\W*([A-Da-d])(?!\w)")


def lifechoices_row(file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
    """Returns one validated example. Raises DataError (file, row, field, rule)."""
    row = Fields(file, where, info)
    choice = row.part("Multiple Choice Question")
    options = _without_labels(choice.texts("Options", count=len(_LETTERS)))
    if not all(options) or len(set(options)) < len(options):
        raise choice.error("Options", "must be four different texts, none of them empty")
    gold = _GOLD.match(choice.text("Correct Answer"))
    if gold is None:
        raise choice.error("Correct Answer", "must be a letter A-D, or start with one")
    letter = gold[1].upper()
    payload = {
        "character": row.text("character_name"),
        "memory": row.text("input_text"),
        "book": row.text("book"),
        "scenario": choice.text("Scenario"),
        "question": choice.text("Question"),
        "options": options,
        "gold_letter": letter,
    }
    return Example(task="lifechoices", id=example_id, payload=payload, gold=options[_LETTERS.index(letter)])


def book_group(example: Example) -> str:
    """Returns the group of the novel, which other tasks on books name alike."""
    return group_name("book", str(example.payload["book"]))


def read_lifechoices(path: Path, split: str, report: RowReport) -> list[Example]:
    """Returns the decisions of a split of `data.json`, ids "lifechoices-<place in the file>".

    Raises MissingInputError (absent path), ConfigError (split) or DataError (file, row, field, rule).
    """
    file = find_file(path, _INSIDE, "LifeChoice's data.json")
    rows = read_json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file}: must be a JSON list of decisions, or of lists of them")

    def example(where: str, row: Any) -> Example:
        if not isinstance(row, Mapping):
            raise DataError(f"{file}: {where}: must be a JSON object")
        return lifechoices_row(file, where, f"lifechoices-{'-'.join(re.findall('[0-9]+', where))}", row)

    return of_split(read_rows(file, _places(rows), example, report), book_group, split)


def _places(rows: list[Any]) -> Iterator[tuple[str, Any]]:
    for i, row in enumerate(rows):
        if isinstance(row, list):
            yield from ((f"[{i}][{k}]", inner) for k, inner in enumerate(row))
        else:
            yield f"[{i}]", row


def _without_labels(options: tuple[str, ...]) -> tuple[str, ...]:
    """Options without the letters before them, if every option starts with its own."""
    labels = [_LABEL.match(option) for option in options]
    own = all(label and label[1].upper() == letter for label, letter in zip(labels, _LETTERS, strict=True))
    return (
        tuple(option[label.end() :] for option, label in zip(options, labels, strict=True) if label) if own else options
    )
