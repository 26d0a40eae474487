"""Reads rows of the task `mistakes`: released rows of labelled questions, and the open misconception examples.

In: one `extra_info` of a released file, or `data.json` of the misconception examples (a substitute: it has a wrong and
a right answer and no options). Out: examples with options, gold_letter, question, misconception and group. Options of
the substitute are the two answers, what pupils with other misconceptions said to the same question, and both answers
with another number at the end, in an order by hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError
from ditto_jax.tasks.data_files import encodable, find_file, read_json
from ditto_jax.tasks.fields import Fields
from ditto_jax.tasks.rows import LeftOut, RowReport, read_rows
from ditto_jax.tasks.splits import group_name, of_split
from ditto_jax.types import Example

_INSIDE = ("math-misconceptions/data.json", "data.json")
_LETTERS = "ABCD"
_OPTIONS = len(_LETTERS)
_PICTURE = re.compile(r"\[(?:image|no graph)", re.IGNORECASE)


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

    All examples of one misconception are in one split. Questions or answers that are pictures are left out. Raises
    MissingInputError (absent path) or DataError (file, row, field, rule).
    """
    file = find_file(path, _INSIDE, "the misconception examples data.json", generated=True)
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
    if any(_PICTURE.search(answer) for answer in (wrong, right)):
        raise LeftOut("an answer is a picture")
    question = row.text("Question")
    candidates = [
        *(wrong, right),
        *_other_answers(rows, misconception, "Question", question, wrong),
        *(_other_number(answer, example_id) for answer in (right, wrong)),
        *_other_answers(rows, misconception, "Topic", row.text("Topic"), wrong),
    ]
    different: dict[str, str] = {}
    for text in filter(None, candidates):
        different.setdefault(_plain(text), text)
    options = list(different.values())[:_OPTIONS]
    if len(options) < _OPTIONS:
        raise LeftOut("fewer than four different options")
    options.sort(key=lambda option: hashlib.sha256(f"{example_id}|{option}".encode()).digest())
    payload = {
        "question": question,
        "options": tuple(options),
        "misconception": row.text("Misconception"),
        "gold_letter": _LETTERS[options.index(wrong)],
        "group": group_name("misconception", misconception),
        "source": "misconception examples",
    }
    return Example(task="mistakes", id=example_id, payload=payload, gold=wrong)


def _other_answers(rows: Sequence[Any], misconception: str, field: str, value: str, like: str) -> list[str]:
    """Wrong answers of other misconceptions in rows with this value of a field, those about as long as `like` first."""
    others = [
        _one_line(row["Incorrect Answer"])
        for row in rows
        if isinstance(row, Mapping)
        and row.get("Misconception ID") != misconception
        and _is_text(row.get(field))
        and row[field].strip() == value
        and _is_text(row.get("Incorrect Answer"))
    ]
    return sorted((text for text in others if not _PICTURE.search(text)), key=lambda text: abs(len(text) - len(like)))


def _other_number(answer: str, example_id: str) -> str:
    """The answer with another last digit in its last number, as a slip of the pen would leave it; "" without one."""
    digits = list(re.finditer("[0-9]", answer))
    if not digits:
        return ""
    last = digits[-1]
    others = [digit for digit in "123456789" if digit != last[0]]
    place = hashlib.sha256(f"{example_id}|{answer}".encode()).digest()[0] % len(others)
    return f"{answer[: last.start()]}{others[place]}{answer[last.end() :]}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and encodable(value)


def _plain(text: str) -> str:
    """A text without spaces and case, in which two options of a question must differ."""
    return "".join(text.casefold().split())


def _one_line(text: str) -> str:
    return " ".join(text.split())
