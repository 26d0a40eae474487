"""Reply text → the answer in it: think blocks removed, the answer tag read, names and letters compared strictly.

In: the policy's reply, option lists or candidate names. Out: the text in the first answer tag, an option letter, or the
candidates that it names. It knows no gold and gives no score.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_THINK = re.compile(r"<(?:seed:)?think>.*?(?:</(?:seed:)?think>|\Z)", re.DOTALL | re.IGNORECASE)
_OPENED_BEFORE = re.compile(r"\A.*</(?:seed:)?think>", re.DOTALL | re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


def visible_text(reply: str) -> str:
    """Returns the reply without think blocks.

    An unclosed block reaches to the end: an unfinished thought is not an answer. A closing tag without an opening one
    ends a thought that the chat template opened, so all before it goes too.
    """
    return _OPENED_BEFORE.sub("", _THINK.sub("", reply)).strip()


def answer_text(reply: str) -> str | None:
    """Returns the stripped text of the first answer tag outside think blocks, None if there is no complete tag."""
    match = _ANSWER.search(visible_text(reply))
    return None if match is None else match[1].strip()


def answer_letter(reply: str) -> str | None:
    """Returns the letter A-Z that alone stands in the answer tag, upper case; None for anything else."""
    text = answer_text(reply)
    return text.upper() if text is not None and re.fullmatch("[A-Za-z]", text) else None


def plain_name(name: str) -> str:
    """Returns a name in lower case with underscores, hyphens and runs of spaces as single spaces."""
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))


def named_candidates(text: str, candidates: Iterable[str]) -> set[str]:
    """Returns the plain names of all candidates that occur in `text` as whole words.

    Longer candidates are found first and use up their words, so "red box" does not also name "box".
    """
    rest = plain_name(text)
    found = set()
    for name in sorted({plain_name(candidate) for candidate in candidates} - {""}, key=len, reverse=True):
        rest, count = re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", "|", rest)
        if count:
            found.add(name)
    return found
