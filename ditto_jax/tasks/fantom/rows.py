"""One row of the task `fantom` → a validated example: released parquet rows, and what the public files are made into.

In: the fields of the released schema. Out: an example whose payload says the form of the question (choice, open, list,
binary or fact), its topic, the set of questions about one piece of information, and the gold in that form. Reads no
file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditto_jax.tasks.fields import Fields, structure
from ditto_jax.tasks.splits import group_name
from ditto_jax.types import Example

LENGTHS = ("short", "full")
TOPICS = ("belief", "answerability", "info_accessibility")
_TYPE = re.compile(
    r"(?P<fact>fact)\b.*|tom:(?P<topic>belief):(?:in)?accessible(?P<choice>:multiple-choice)?"
    r"|tom:(?P<asked>answerability|info_accessibility):(?P<form>list|binary)"
)
_OPTION = re.compile(r"^\(([a-d])\)[ \t]*(.*?)(?=^\([a-d]\)|^Choose\b|\Z)", re.DOTALL | re.MULTILINE)
_LETTERS = "ABCD"
_ACCESSIBILITIES = ("inaccessible", "accessible", "unstated")


def kind_of(question_type: str) -> tuple[str, str] | None:
    """Returns (topic, form) of a question type as the data spell it, or None for an unknown one."""
    match = _TYPE.fullmatch(question_type)
    if match is None:
        return None
    if match["fact"]:
        return "fact", "fact"
    if match["asked"]:
        return match["asked"], match["form"]
    return "belief", "choice" if match["choice"] else "open"


def with_options(question: str, options: tuple[str, ...]) -> str:
    """Returns a question followed by its lettered options, as the released rows hold them."""
    return "\n".join(
        (question, *(f"({letter.lower()}) {text}" for letter, text in zip(_LETTERS, options, strict=False)))
    )


def fantom_row(file: Path, where: str, example_id: str, info: Mapping[str, Any], length: str = "short") -> Example:
    """Returns the example of one row of the released schema, with the chat of the given length.

    info may add to the released fields: `source`, and `set_size`, how many questions on minds its set has (0: unknown).
    Raises DataError (file, row, field, rule).
    """
    row = Fields(file, where, info)
    question_type = row.text("question_type")
    kind = kind_of(question_type)
    if kind is None:
        raise row.error("question_type", "must be a belief, answerability, info_accessibility or fact question")
    topic, form = kind
    context = row.text("context") if length == "short" else row.text("full_context", "context")
    question = row.text("complete_question", "question")
    options: tuple[str, ...] = ()
    if form == "choice":
        question, options = _split_options(question)
    gold, answers = _gold(row, form, options)
    set_id = row.text("set_id", "part_id", default="")
    whole = row.text("full_context", default=context)
    payload = {
        "context": context,
        "question": question,
        "question_type": question_type,
        "topic": topic,
        "form": form,
        "options": options,
        "accessibility": row.one_of("missed_info_accessibility", _ACCESSIBILITIES, default=_accessible(question_type)),
        "order": row.text("tom_type", default="").split(":")[0],
        "fact_question": row.text("fact_question", default=""),
        "set_id": set_id or group_name("chat", whole),
        "set_size": row.integer("set_size", default=0),
        "conversation": set_id.split("-")[0] or group_name("chat", whole),
        "source": row.text("source", default="released"),
        **answers,
    }
    return Example(task="fantom", id=example_id, payload=payload, gold=gold)


def _accessible(question_type: str) -> str:
    return next((name for name in _ACCESSIBILITIES if f":{name}" in question_type), _ACCESSIBILITIES[-1])


def _split_options(question: str) -> tuple[str, tuple[str, ...]]:
    """The question without its options, and they; the whole question if they are not lettered (a), (b), … in order."""
    found = list(_OPTION.finditer(question))
    letters = "".join(match[1].upper() for match in found)
    if len(found) < 2 or letters != _LETTERS[: len(found)]:
        return question, ()
    return question[: found[0].start()].strip(), tuple(match[2].strip() for match in found)


def _gold(row: Fields, form: str, options: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The gold text, and the fields that scoring this form needs."""
    if form == "list":
        right, wrong = _names(row, "correct_answer"), _names(row, "wrong_answer") if row.has("wrong_answer") else ()
        both = {name.casefold() for name in right} & {name.casefold() for name in wrong}
        if both:
            raise row.error("wrong_answer", f"must not hold a name of correct_answer ({', '.join(sorted(both))})")
        return ", ".join(right) or "none", {"right_names": right, "wrong_names": wrong}
    answer = row.text("correct_answer")
    if form == "binary":
        polarity = {"yes": "yes", "no": "no", "no:long": "no"}.get(answer.lower())
        if polarity is None:
            raise row.error("correct_answer", "must be yes, no or no:long")
        return polarity, {}
    if form == "choice":
        index = _LETTERS.find(answer.upper()) if len(answer) == 1 and answer.isalpha() else _index(answer)
        if not 0 <= index < (len(options) or len(_LETTERS)):
            raise row.error("correct_answer", "must be the number from 0, or the letter, of an option")
        letter = _LETTERS[index]
        return options[index] if options else letter, {"gold_letter": letter}
    return answer, {"wrong_answer": row.text("wrong_answer")} if form == "open" else {}


def _index(answer: str) -> int:
    return int(answer) if re.fullmatch("[0-9]", answer) else -1


def _names(row: Fields, field: str) -> tuple[str, ...]:
    """A list of names, or text with brackets, quotes and commas around them."""
    value = row.row.get(field)
    if isinstance(value, str) and not isinstance(structure(value), (list, tuple)):
        text = row.text(field, empty=True)
        return tuple(name for item in text.split(",") if (name := item.strip(" []()'\"")))
    names = row.texts(field)
    if not all(names):
        raise row.error(field, "must not hold an empty name")
    return names
