"""Reply → accepted, or the fault for which it is drawn again: a simulated person never says nothing and never thinks
aloud.

In: the text of one reply. Out: its visible text with thoughts routed apart, or a fault. Text is never repaired: a reply
is taken as it is, or another one is drawn. Counts what happened.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

_TAG = re.compile(r"</?(?:seed:)?think(?:ing)?\b[^>]*>", re.IGNORECASE)
# A thought at the very beginning, opened there or by the chat template.
_LEADING = re.compile(
    r"\A\s*(?:<(?:seed:)?think(?:ing)?>)?((?:(?!<(?:seed:)?think).)*?)</(?:seed:)?think(?:ing)?>",
    re.DOTALL | re.IGNORECASE,
)
_TURN_MARK = re.compile(
    r"<\|(?:system|user|assistant|end|im_start|im_end|eot_id|start_header_id|end_header_id)\|>|</?start_of_turn>"
)
_OTHER_SPEAKER = re.compile(r"\A\W*(?:assistant|agent|system|ai)\W*:", re.IGNORECASE)


class Fault(enum.StrEnum):
    """Why a reply is not a turn of a simulated person."""

    EMPTY = "empty"  # nothing visible is said, and no tool is called
    THINKING = "thinking"  # thoughts stand where speech should
    TURN_MARK = "turn_mark"  # markers of turns, written out
    OTHER_SPEAKER = "other_speaker"  # it speaks as the other side
    BROKEN_CALL = "broken_call"  # a tool call that cannot be read, where speech should be
    SPEECH_AND_CALL = "speech_and_call"  # both at once, for callers that take one of them


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What a reply says, what it thought before, and the fault for which it must not be used."""

    text: str
    reasoning: str
    fault: Fault | None


def inspect(text: str) -> Spoken:
    """Returns what the reply says. A complete thought at its beginning is routed to `reasoning`; any other is a fault.

    That it says nothing is no fault here: it may call a tool, or end the conversation.
    """
    leading = _LEADING.match(text)
    reasoning = leading[1].strip() if leading else ""
    said = (text[leading.end() :] if leading else text).strip()
    return Spoken(said, reasoning, _fault(said))


def _fault(said: str) -> Fault | None:
    if _TAG.search(said):
        return Fault.THINKING
    if _TURN_MARK.search(said):
        return Fault.TURN_MARK
    return Fault.OTHER_SPEAKER if _OTHER_SPEAKER.match(said) else None


def is_visible(text: str) -> bool:
    """Returns whether a reader sees anything: letters, digits, signs or symbols."""
    return any(unicodedata.category(character)[0] in "LNPS" and character != "\ufffd" for character in text)


class GuardCounters:
    """How many replies were given, drawn again and given up, and why."""

    def __init__(self):
        self._counts: Counter[str] = Counter()

    def count(self, name: str) -> None:
        self._counts[name] += 1

    def as_dict(self) -> Mapping[str, float]:
        """Returns replies, redrawn, gave_up, ended, and fault/<name> for every fault."""
        names = ("replies", "redrawn", "gave_up", "ended", *(f"fault/{fault}" for fault in Fault))
        return {name: self._counts[name] for name in names}
