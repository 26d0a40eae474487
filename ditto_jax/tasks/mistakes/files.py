"""Reads rows of the task `mistakes`: released rows of labelled questions, and the open misconception examples.

In: one `extra_info` of a released file, or `data.json` of the misconception examples (a substitute: it has a wrong and
a right answer and no options). Out: examples with options, gold_letter, question, misconception and group. Options of
the substitute are the two answers and wrong answers of other misconceptions of the same topic, in an order by hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError
from ditto_jax.tasks.data_files import find_file, read_json
from ditto_jax.tasks.fields import Fields
from ditto_jax.tasks.rows import LeftOut, RowReport, read_rows
from ditto_jax.tasks.splits import group_name, of_split
from ditto_jax.types import Example

_INSIDE = ("math-misconceptions/data.json", "data.json")
_LETTERS = "ABCD"


def mistakes_released(file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
    """Returns the example of one released row; its group is the question. Raises DataError (file, row, field)."""
    row = Fields(file, where, info)
    options = tuple(row.text(f"Answer{letter}Text", default="") for letter in _LETTERS)
    letter = row.text("TargetOption", "target_option").upper()
    if letter not in set(_LETTERS) or not options[_LETTERS.index(letter)]:
        raise row.error("TargetOption", "must be the letter A-D of an option that is there")
    question = row.text("QuestionText", "question", "raw_prompt")
    payload = {
        "question": question,
        "options": options,
        "misconception": row.text("MisconceptionName", "misconception_text"),
        "gold_letter": letter,
        "group": group_name("question", question),
        "source": "eedi",
    }
    gold = row.text("TargetAnswer", "target_text", default=options[_LETTERS.index(letter)])
    return Example(task="mistakes", id=example_id, payload=payload, gold=gold)


def read_mistakes(path: Path, split: str, report: RowReport) -> list[Example]:
    """Returns the examples of a split of the misconception examples, ids "mistakes-<misconception>-<number>".

    All examples of one misconception are in one split. Questions that show a picture are left out. Raises
    MissingInputError (absent path) or DataError (file, row, field, rule).
    """
    file = find_file(path, _INSIDE, "the misconception examples data.json")
    rows = read_json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file}: must be a JSON list of examples")

    def example(where: str, row: Any) -> Example:
        if not isinstance(row, Mapping):
            raise DataError(f"{file}: {where}: must be a JSON object")
        fields = Fields(file, where, row)
        if fields.text("Question image", default="", empty=True):
            raise LeftOut("the question shows a picture")
        return _open_example(fields, rows)

    examples = read_rows(file, ((f"[{i}]", row) for i, row in enumerate(rows)), example, report)
    return of_split(examples, lambda example: str(example.payload["group"]), split)


def _open_example(row: Fields, rows: Sequence[Any]) -> Example:
    misconception = row.text("Misconception ID")
    example_id = f"mistakes-{misconception}-{row.integer('Example Number')}"
    wrong, right = _one_line(row.text("Incorrect Answer")), _one_line(row.text("Correct Answer"))
    others = _other_answers(rows, row.text("Topic"), misconception, example_id)
    options = list(dict.fromkeys([wrong, right, *others]))[:4]
    if len(options) < 4:
        raise LeftOut("fewer than four different options")
    options.sort(key=lambda option: hashlib.sha256(f"{example_id}|{option}".encode()).digest())
    payload = {
        "question": row.text("Question"),
        "options": tuple(options),
        "misconception": row.text("Misconception"),
        "gold_letter": _LETTERS[options.index(wrong)],
        "group": group_name("misconception", misconception),
        "source": "misconception examples",
    }
    return Example(task="mistakes", id=example_id, payload=payload, gold=wrong)


def _other_answers(rows: Sequence[Any], topic: str, misconception: str, example_id: str) -> list[str]:
    """Wrong answers of other misconceptions, those of the same topic first, in an order that depends on the example."""
    others = [
        (row.get("Topic") != topic, _one_line(str(row["Incorrect Answer"])))
        for row in rows
        if isinstance(row, Mapping) and row.get("Incorrect Answer") and row.get("Misconception ID") != misconception
    ]
    others.sort(key=lambda other: (other[0], hashlib.sha256(f"{example_id}|{other[1]}".encode()).digest()))
    return [text for _, text in others]


def _one_line(text: str) -> str:
    return " ".join(text.split())
