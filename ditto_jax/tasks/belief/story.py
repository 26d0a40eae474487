"""Story text <-> symbolic events, in the wording of the public Hi-ToM and ToMi stories.

In: a story as text, numbered lines or running sentences. Out: one event per sentence with its line number; or text
again, in the official wording or in a terse one. The parser is strict: a sentence it does not know is an error, never
skipped. It knows nothing of beliefs.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Iterable, Sequence

from ditto_jax.errors import DataError
from ditto_jax.tasks.belief.words import WAITING_ROOM


class Kind(enum.StrEnum):
    ENTER = "enter"  # agents enter a place (room)
    BE = "be"  # the narrator states that agents are in a place (room)
    EXIT = "exit"  # one agent leaves a place (room)
    PLACE = "place"  # the narrator states that an object is in a place (container)
    SITE = "site"  # the narrator states in which place (room) a container stands; the container is `object`
    MOVE = "move"  # one agent moves an object to a place (container)
    STAY = "stay"  # one agent does nothing in a place (room)
    CLAIM = "claim"  # one agent tells everyone that an object is in a place (container)
    TELL = "tell"  # the first agent tells the second alone that an object is in a place (container)
    NOISE = "noise"  # one agent likes, dislikes, loses or sees something: `object` holds the words after the name


@dataclasses.dataclass(frozen=True)
class Event:
    """One sentence of a story. `line` counts sentences from 1; unused fields are empty."""

    kind: Kind
    line: int
    agents: tuple[str, ...] = ()
    object: str = ""
    place: str = ""


# A thing is one word, or words joined by spaces where a file writes "treasure chest" for "treasure_chest".
_THING = r"[\w-]+(?: [\w-]+)?"
_NAME = r"(?!The )[A-Z][\w-]*"
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    (Kind.ENTER, re.compile(rf"(?P<a>{_NAME}(?:, {_NAME})*(?: and {_NAME})?) entered the (?P<p>{_THING})")),
    (Kind.BE, re.compile(rf"(?P<a>{_NAME}(?: and {_NAME})?) (?:is|are) in the (?P<p>{_THING})")),
    (Kind.EXIT, re.compile(rf"(?P<a>{_NAME}) exited the (?P<p>{_THING})")),
    (Kind.MOVE, re.compile(rf"(?P<a>{_NAME}) moved the (?P<o>{_THING}) to the (?P<p>{_THING})")),
    (Kind.STAY, re.compile(rf"(?P<a>{_NAME}) made no movements and stayed in the (?P<p>{_THING}) for 1 minute")),
    (
        Kind.CLAIM,
        re.compile(rf"(?P<a>{_NAME}) publicly claimed that (?:the )?(?P<o>{_THING}) is in the (?P<p>{_THING})"),
    ),
    (
        Kind.TELL,
        re.compile(rf"(?P<a>{_NAME}) privately told (?P<b>{_NAME}) that the (?P<o>{_THING}) is in the (?P<p>{_THING})"),
    ),
    (Kind.PLACE, re.compile(rf"The (?P<o>{_THING}) is in the (?P<p>{_THING})")),
    (Kind.NOISE, re.compile(rf"(?P<a>{_NAME}) (?P<o>(?:likes|loves|dislikes|hates) the {_THING})")),
    (Kind.NOISE, re.compile(rf"(?P<a>{_NAME}) (?P<o>saw an? [\w-]+|lost (?:his|her|their) [\w-]+)")),
)
_VERBS = "entered|is in|are in|exited|moved|made no|publicly|privately|likes|loves|dislikes|hates|saw|lost"
# Some sentences have no full stop, so a sentence also begins where a name is followed by a verb of the grammar.
_OPENING = rf"(?:\d+ )?(?:{_NAME}(?:(?:, {_NAME})* and {_NAME})? (?:{_VERBS})\b|The [\w -]+ is in )"
_BEGIN = re.compile(rf"(?:\.|(?<=\w)(?<!\band))\s+(?={_OPENING})")


def parse_story(text: str) -> tuple[Event, ...]:
    """Returns the events of a story, in order. Raises DataError quoting the first sentence outside the grammar."""
    events: list[Event] = []
    contents: set[str] = set()
    containers: set[str] = set()
    for line, sentence in enumerate(_sentences(text), start=1):
        event = _parse_sentence(sentence, line)
        if event.kind is Kind.PLACE and event.object in containers and event.object not in contents:
            event = dataclasses.replace(event, kind=Kind.SITE)
        elif event.kind in (Kind.PLACE, Kind.MOVE):
            contents.add(event.object)
            containers.add(event.place)
        events.append(event)
    return tuple(events)


def _sentences(text: str) -> list[str]:
    lines = [line.strip() for line in text.strip().split("\n") if line.strip(" *\t\r")]
    pieces = lines if len(lines) > 1 else _BEGIN.split(text.strip())
    return [re.sub(r"^\d+\s+", "", piece).rstrip(" .") for piece in pieces]


def _parse_sentence(sentence: str, line: int) -> Event:
    for kind, pattern in _PATTERNS:
        match = pattern.fullmatch(sentence)
        if match is not None:
            found = match.groupdict()
            agents = tuple(re.split(r", | and ", found["a"])) if "a" in found else ()
            agents += (found["b"],) if "b" in found else ()
            return Event(kind, line, agents, found.get("o", ""), found.get("p", ""))
    raise DataError(
        f"story line {line}: {sentence!r} is not a sentence of the story grammar; "
        "write for example 'Ann moved the apple to the red_box.'"
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


_OFFICIAL: dict[Kind, Callable[[Event], str]] = {
    Kind.ENTER: lambda e: f"{_listed(e.agents)} entered the {e.place}.",
    Kind.BE: lambda e: f"{_listed(e.agents)} {'is' if len(e.agents) == 1 else 'are'} in the {e.place}.",
    Kind.EXIT: lambda e: f"{e.agents[0]} exited the {e.place}.",
    Kind.PLACE: lambda e: f"The {e.object} is in the {e.place}.",
    Kind.SITE: lambda e: f"The {e.object} is in the {e.place}.",
    Kind.MOVE: lambda e: f"{e.agents[0]} moved the {e.object} to the {e.place}.",
    Kind.STAY: lambda e: f"{e.agents[0]} made no movements and stayed in the {e.place} for 1 minute.",
    Kind.CLAIM: lambda e: f"{e.agents[0]} publicly claimed that {e.object} is in the {e.place}.",
    Kind.TELL: lambda e: f"{e.agents[0]} privately told {e.agents[1]} that the {e.object} is in the {e.place}.",
    Kind.NOISE: lambda e: f"{e.agents[0]} {e.object}.",
}
_TERSE: dict[Kind, Callable[[Event], str]] = {
    Kind.ENTER: lambda e: f"{' '.join(e.agents)} enter {e.place}.",
    Kind.BE: lambda e: f"{' '.join(e.agents)} in {e.place}.",
    Kind.EXIT: lambda e: f"{e.agents[0]} exit.",
    Kind.PLACE: lambda e: f"{e.object} in {e.place}.",
    Kind.SITE: lambda e: f"{e.object} in {e.place}.",
    Kind.MOVE: lambda e: f"{e.agents[0]} move {e.object} {e.place}.",
    Kind.STAY: lambda e: f"{e.agents[0]} stay.",
    Kind.CLAIM: lambda e: f"{e.agents[0]} claim {e.object} in {e.place}.",
    Kind.TELL: lambda e: f"{e.agents[0]} tell {e.agents[1]} {e.object} in {e.place}.",
    Kind.NOISE: lambda e: f"{e.agents[0]} {e.object}.",
}


def render_story(events: Iterable[Event]) -> str:
    """Returns the story in the official wording: numbered lines joined by newlines. `parse_story` is its inverse."""
    return "\n".join(f"{event.line} {_OFFICIAL[event.kind](event)}" for event in events)


def render_terse(events: Iterable[Event]) -> str:
    """Returns the story in as few words as possible, unnumbered, without the walks to the waiting room."""
    kept = (e for e in events if not (e.kind is Kind.ENTER and e.place == WAITING_ROOM))
    return " ".join(_TERSE[event.kind](event) for event in kept)


def renumber(events: Iterable[Event]) -> tuple[Event, ...]:
    """Returns the events with `line` counted anew from 1."""
    return tuple(dataclasses.replace(event, line=i) for i, event in enumerate(events, start=1))


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked about `object`. chain: who thinks that who thinks ...; empty for reality and memory."""

    object: str
    chain: tuple[str, ...] = ()
    memory: bool = False


_QUESTIONS = (
    re.compile(rf"Where (?:is|was) the (?P<o>{_THING}) (?P<m>at the beginning|really)\?"),
    re.compile(rf"Where (?:will|does) (?P<a>{_NAME}) (?:look|search) for the (?P<o>{_THING})\?"),
    re.compile(rf"Where does (?P<a>{_NAME}) think that (?P<b>{_NAME}) searches for the (?P<o>{_THING})\?"),
    re.compile(rf"Where does (?P<c>{_NAME} (?:really )?think(?: {_NAME} thinks)*) the (?P<o>{_THING}) is\?"),
)


def parse_question(text: str) -> Question:
    """Returns the chain and object of a Hi-ToM or ToMi question. Raises DataError for any other question."""
    for pattern in _QUESTIONS:
        match = pattern.fullmatch(text.strip().replace(" - ", "-"))  # "t - shirt" in some files
        if match is not None:
            found = match.groupdict()
            if "c" in found:
                chain = tuple(word for word in found["c"].split() if word not in ("really", "think", "thinks"))
            else:
                chain = tuple(found[key] for key in ("a", "b") if key in found)
            return Question(found["o"], chain, memory=found.get("m") == "at the beginning")
    raise DataError(
        f"question {text!r} is none of the known forms; for example 'Where does Ann really think the apple is?'"
    )
