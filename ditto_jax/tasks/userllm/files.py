"""Reads released rows of the task `userllm`.

In: one `extra_info` of a released file. Out: examples of the three subtasks with the goal freed of its boilerplate. A
null history is a first turn (the release treats it as a later one without text); a missing assistant's or user's turn
of the templated subtasks is written from the question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditto_jax.tasks.fields import Fields, structure
from ditto_jax.tasks.rows import LeftOut
from ditto_jax.tasks.splits import group_name
from ditto_jax.tasks.userllm.turns import CSQA, END, NQ, PRISM, UserTurn
from ditto_jax.types import Example

_SOURCES = {"commonsense_qa": CSQA, "natural_questions": NQ}
_BOILERPLATE = re.compile(r"\A.*?language model to\s*[:–—-]*\s*", re.IGNORECASE | re.DOTALL)
_LABEL = re.compile(r"\A\W*(?:user|human|person|me)\W*:\W*", re.IGNORECASE)


def userllm_released(file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
    """Returns the example of one released row. Raises DataError (file, row, field, rule), LeftOut for rows that cannot
    be scored.
    """
    row = Fields(file, where, info)
    subtask = subtask_of(row)
    history = row.text("conversation_history", default="", empty=True)
    intent = _intent(row, history)
    question = row.text("question", default=_first_line(history) or intent)
    options: tuple[str, ...] = ()
    if subtask == CSQA:
        options = _options(row)
    is_last = row.flag("is_last_turn", default=False if subtask != PRISM or not history else None)
    turn = UserTurn(
        subtask=subtask,
        intent=intent,
        history=history,
        source="released",
        group=group_name("intent", intent) if subtask == PRISM else group_name("question", question),
        is_last=is_last,
        question="" if subtask == PRISM else question,
        suggestion=row.text("assistant_suggestion_turn", default="", empty=True),
        options=options,
        gold=END if is_last else "",
    )
    if subtask != PRISM and not history:
        raise row.error("conversation_history", "must hold the chat before the turn in this subtask")
    return turn.example(example_id)


def subtask_of(row: Fields) -> str:
    """Returns the subtask that a row's source names. Raises DataError for an unknown one."""
    source = row.text("source").casefold()
    if "prism" in source:
        return PRISM
    if source not in _SOURCES:
        raise row.error("source", f"must be {', '.join(_SOURCES)} or hold 'prism'")
    return _SOURCES[source]


def _intent(row: Fields, history: str) -> str:
    """The goal, from the first field that has one."""
    text = row.text("intent", "intent_summary", "opening_prompt", default=_first_line(history))
    intent = _BOILERPLATE.sub("", text).strip()
    if not intent:
        raise row.error("intent", "must say what the user is after, here or in the history's first line")
    return intent


def _first_line(history: str) -> str:
    return _LABEL.sub("", history.strip().partition("\n")[0]).strip()


def _options(row: Fields) -> tuple[str, ...]:
    """Choices as a list, as JSON, or under the key `text`."""
    if not row.has("choices") or row.row["choices"] in ("", [], "[]"):
        raise LeftOut("no choices to score by")
    found = row
    if isinstance(structure(row.row["choices"]), Mapping):
        found = row.part("choices")
    options = found.texts("text" if found is not row else "choices")
    if not all(options):
        raise row.error("choices", "must not hold empty texts")
    return options
