"""A reply on stage → what its speaker says, what others hear of it, and whom a director's reply names.

In: replies of the policy, the narrator and the next-speaker predictor. Out: plain lines; bracketed thoughts are private
and an unclosed one reaches to the end. Knows no scene, and asks nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ditto_jax.tasks.answers import visible_text
from ditto_jax.types import Turn

ENVIRONMENT = "Environment"
END = "<END CHAT>"
SILENT = "(says nothing)"

_LABEL = re.compile(r"next[\s_-]*speaker[\s*_\"'`]*[:=-]", re.IGNORECASE)
_AROUND = " \t\r\n*_\"'`.,;:!?()[]{}<>“”‘’"


def without_thoughts(text: str) -> str:
    """Returns the text without what stands in square brackets, nested or unclosed, and without leftover spaces."""
    kept, depth = [], 0
    for character in text:
        if character == "[":
            depth += 1
        elif character == "]":
            depth = max(0, depth - 1)
        elif not depth:
            kept.append(character)
    lines = (" ".join(line.split()) for line in "".join(kept).split("\n"))
    return "\n".join(line for line in lines if line)


def own_words(reply: str, speaker: str, others: Iterable[str]) -> tuple[str, bool]:
    """Returns what `speaker` says in a reply, and whether the reply went on to speak for somebody else.

    Think blocks go, closed or not; so does "Speaker:" at the head of a line. From the first line on that begins with
    the name of another participant and a colon, nothing is kept: nobody puts words into the mouths of others.
    """
    text = _named(speaker).sub("", visible_text(reply))
    starts = [found.start() for name in others if name != speaker and (found := _named(name).search(text))]
    return text[: min(starts, default=len(text))].strip(), bool(starts)


def _named(name: str) -> re.Pattern[str]:
    return re.compile(rf"^[\s*]*{re.escape(name)}\s*\**\s*:\**", re.IGNORECASE | re.MULTILINE)


def heard(turn: Turn) -> str:
    """Returns the line that others hear: "name: words", without thoughts."""
    return f"{turn.speaker}: {without_thoughts(turn.text) or SILENT}"


def spoken(turns: Iterable[Turn]) -> str:
    """Returns a dialogue as everybody on stage heard it, a line or more for each turn."""
    return "\n".join(heard(turn) for turn in turns)


def next_speaker(reply: str, names: Sequence[str]) -> str | None:
    """Returns the one of `names` that a director's reply names, END, or None if it names nobody for certain.

    What counts is the line after the last "Next speaker:"; without that label, the text before the first colon, else
    the whole reply. It must be one name and nothing else: "Ann or Bob" names nobody.
    """
    text = visible_text(reply)
    labels = list(_LABEL.finditer(text))
    if labels:
        text = text[labels[-1].end() :].lstrip(_AROUND).split("\n", 1)[0]
    for candidate in (text, text.split(":", 1)[0]):
        plain = _plain(candidate)
        if plain == _plain(END):
            return END
        found = [name for name in names if _plain(name) == plain]
        if len(found) == 1:
            return found[0]
    return None


def _plain(name: str) -> str:
    return " ".join(name.strip(_AROUND).casefold().split())
