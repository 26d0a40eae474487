"""Reads the official Hi-ToM file: chain-of-thought rows become examples of the task `hitom`.

In: `Hi-ToM_data.json`, plain or gzipped, whole or any subset; or the folder that holds it. Out: validated examples
whose payload has story, question, choices, gold_letter, deception, story_length, question_order and set_id. The rows
of the other prompting style (VP) are skipped: their answers disagree with the chain-of-thought rows at orders 2-4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.data_files import bad_model, bad_row, find_file, read_json, text_list
from ditto_jax.tasks.hitom.generator import story_digest
from ditto_jax.tasks.rows import LeftOut, RowReport, read_rows
from ditto_jax.types import Example

_INSIDE = ("Hi-ToM_dataset/Hi-ToM_data.json", "Hi-ToM_data.json")
_OPTION = re.compile(r"(?:^|,\s*)([A-Z])\.\s+(.*?)(?=,\s*[A-Z]\.\s|$)", re.DOTALL)

Text = Annotated[str, pydantic.StringConstraints(min_length=1, strip_whitespace=True)]


class HiToMRow(pydantic.BaseModel):
    """One question as files spell it; numbers and truth values may be text ("3", "True")."""

    model_config = pydantic.ConfigDict(extra="ignore")
    story: Text
    question: Text
    choices: Text
    answer: Text  # the option text; parquet files call it correct_answer
    deception: bool
    story_length: int = pydantic.Field(ge=1)
    question_order: int = pydantic.Field(ge=0, le=4)


def read_hitom(path: Path, split: str = "test", report: RowReport | None = None) -> list[Example]:
    """Returns the chain-of-thought rows of the Hi-ToM file at `path`, ids "hitom-<row of the file, from 0>".

    A folder (the data set's own, or one level above) has the split "test" only; a file is read whatever the split.
    Raises MissingInputError (absent path or split) or DataError (file, row, field, rule).
    """
    if path.is_dir() and split != "test":
        raise MissingInputError(
            f"{path}: the Hi-ToM release has no split {split!r}; use the split 'test', name a file of your own, "
            "or use the source kind 'generated'"
        )
    file = find_file(path, _INSIDE, "the Hi-ToM file Hi-ToM_data.json", generated=True)

    def example(where: str, row: Any) -> Example:
        if not isinstance(row, dict):
            raise bad_row(file, where, "row", row, "must be a JSON object")
        style = row.get("prompting_type")
        if style not in ("CoTP", "VP"):
            raise bad_row(file, where, "prompting_type", style, "must be 'CoTP' or 'VP'")
        if style == "VP":
            raise LeftOut("prompting_type VP")
        return hitom_example(file, where, f"hitom-{where.removeprefix('data[').removesuffix(']')}", row)

    rows = ((f"data[{i}]", row) for i, row in enumerate(_rows(file)))
    return read_rows(file, rows, example, RowReport() if report is None else report)


def hitom_example(file: Path, where: str, example_id: str, row: dict[str, Any], set_id: str = "") -> Example:
    """Returns one validated example; `where` names the row in errors. Raises DataError.

    set_id: the story's identity; by default a digest of its text, so that all questions about one story share it.
    """
    try:
        checked = HiToMRow.model_validate(row)
    except pydantic.ValidationError as error:
        raise bad_model(file, where, error) from None
    options = read_choices(checked.choices)
    if options is None:
        rule = "must be lettered options in order, like 'A. red_box, B. blue_crate', without repeats"
        raise bad_row(file, where, "choices", checked.choices, rule)
    letters = [letter for letter, text in options.items() if text == checked.answer]
    if not letters:
        raise bad_row(file, where, "answer", checked.answer, "must be the text of one of the choices")
    story = _without_ornament(checked.story)
    payload = {
        "story": story,
        "question": checked.question,
        "choices": checked.choices,
        "gold_letter": letters[0],
        "deception": checked.deception,
        "story_length": checked.story_length,
        "question_order": checked.question_order,
        "set_id": set_id or story_digest(story),
    }
    return Example(task="hitom", id=example_id, payload=payload, gold=checked.answer)


def hitom_released(file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
    """Returns the example of one released row. Raises DataError."""
    row = {name: value for name, value in info.items() if value is not None}
    row["answer"] = released_answer(file, where, info)
    row["story"] = released_lines(info.get("story"))
    set_id = info.get("set_id")
    return hitom_example(file, where, example_id, row, set_id="" if set_id is None else str(set_id))


def released_answer(file: Path, where: str, info: Mapping[str, Any]) -> str:
    """Returns the gold text of a released row. Raises DataError."""
    answer = info.get("correct_answer")
    if not isinstance(answer, str) or not answer.strip():
        raise bad_row(file, where, "extra_info.correct_answer", answer, "must be the text of the right answer")
    return answer


def released_lines(story: object) -> object:
    """One sentence a line, from a list or the text of a Python list; anything else (plain text) as it is."""
    looks_like_list = not isinstance(story, str) or story.strip().startswith("[")
    sentences = text_list(story) if looks_like_list else None
    return story if sentences is None else "\n".join(sentences)


def read_choices(choices: str) -> dict[str, str] | None:
    """Returns letter -> option text of "A. red_box, B. blue_crate"; None unless letters run from A and texts differ."""
    found = _OPTION.findall(choices.strip())
    letters, texts = [letter for letter, _ in found], [text.strip() for _, text in found]
    in_order = choices.lstrip().startswith("A.") and letters == [chr(ord("A") + i) for i in range(len(found))]
    distinct = len(set(texts)) == len(texts) and all(texts)
    return dict(zip(letters, texts, strict=True)) if len(found) >= 2 and in_order and distinct else None


def _rows(file: Path) -> list[Any]:
    content = read_json(file)
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise DataError(f'{file}: must be a JSON object {{"data": [row, ...]}}')
    return rows


def _without_ornament(story: str) -> str:
    """The story without the lines of asterisks that close some official stories."""
    return re.sub(r"[\s*]+$", "", story)
