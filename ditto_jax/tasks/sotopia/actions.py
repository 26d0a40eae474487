"""Reply of one side → its action, and the action as the other side, the judge and the report see it.

In: raw text. Out: one of four kinds of action with its words on one line, so that no turn can pose as another one. A
reply that is no JSON action is speech, as it stands; that it was malformed is noted. Knows no scene and no score.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import pydantic

from ditto_jax.tasks.answers import visible_text
from ditto_jax.tasks.dialogue import cut_middle

SPEAK, GESTURE, ACT, LEAVE = "speak", "non-verbal communication", "action", "leave"
KINDS = (SPEAK, GESTURE, ACT, LEAVE)

_DECODER = json.JSONDecoder(strict=False)  # line breaks inside strings are common and harmless
_MAX_STARTS = 100  # braces that are tried as the start of an object; bounds the work on hostile text
_MAX_CHARACTERS = 50_000


class ActionReply(pydantic.BaseModel):
    """The JSON object that a reply should be."""

    model_config = pydantic.ConfigDict(extra="forbid")
    action_type: Literal["speak", "non-verbal communication", "action", "leave"]
    argument: str


@dataclasses.dataclass(frozen=True)
class Action:
    """What one side does in one turn. `well_formed`: the reply was an action in JSON, not free text."""

    kind: str
    text: str
    well_formed: bool = True

    @property
    def shown(self) -> str:
        """What stands in the transcript after the name: speech as it is, everything else behind its kind in brackets.

        Speech never begins with a bracket of its own, so that a thing said cannot pose as a thing done.
        """
        if self.kind == SPEAK:
            return f"({self.text[1:]}" if self.text.startswith("[") else self.text
        return f"[{self.kind}] {self.text}".strip()

    def observed(self, name: str) -> str:
        """Returns the sentence that the other side reads."""
        if self.kind == SPEAK:
            return f'{name} said: "{self.shown}"'
        if self.kind == LEAVE:
            return f"{name} left the conversation." + (f" ({self.text})" if self.text else "")
        return f"{name} {self.shown}"

    def as_json(self) -> str:
        """Returns the reply that means this action."""
        return json.dumps({"action_type": self.kind, "argument": self.text}, ensure_ascii=False)


def read_action(reply: str, max_words: int) -> Action | None:
    """Returns the action of a reply, of at most `max_words` words; None if nothing visible is said or done.

    The largest JSON object in the visible text counts if its action_type is a known kind and its argument is text;
    otherwise the whole visible text is speech.
    """
    visible = visible_text(reply)
    found = _largest_object(visible)
    kind, argument = found.get("action_type"), found.get("argument", "")
    kind = kind.strip().casefold() if isinstance(kind, str) else ""
    well_formed = kind in KINDS and isinstance(argument, str)
    if not well_formed:
        kind, argument = SPEAK, visible
    text = cut_middle(" ".join(argument.split()), max_words)
    return Action(kind, text, well_formed) if text or kind == LEAVE else None


def heard(line: str, name: str) -> str:
    """Returns the transcript form of a sentence that `Action.observed` made about `name`."""
    rest = line.removeprefix(f"{name} ")
    if rest.startswith('said: "'):
        return rest.removeprefix('said: "').removesuffix('"')
    return rest


def _largest_object(text: str) -> dict[str, Any]:
    text = text[:_MAX_CHARACTERS]
    best: dict[str, Any] = {}
    size = place = 0
    for _ in range(_MAX_STARTS):
        start = text.find("{", place)
        if start < 0:
            break
        try:
            value, place = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            place = start + 1
            continue
        if place - start > size:
            best, size = value, place - start
    return best
