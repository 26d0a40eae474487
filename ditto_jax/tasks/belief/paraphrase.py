"""Symbolic events → a ToMi story in varied wording, one sentence an event.

In: events and a random generator. Out: running text in which every event's characters, object and place are named. It
changes no fact and no order, so the gold answer of the plain story stays right.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from ditto_jax.tasks.belief.story import Event, Kind

_TEMPLATES: dict[Kind, tuple[str, ...]] = {
    Kind.ENTER: (
        "{who} came into the {place}.",
        "{who} walked into the {place}.",
        "Then {who} turned up in the {place}.",
        "Into the {place} went {who}.",
        "{who} made an entrance into the {place}.",
    ),
    Kind.EXIT: (
        "{who} left the {place}.",
        "{who} went away from the {place}.",
        "{who} stepped out of the {place}.",
        "Out of the {place} went {who}.",
        "After a while {who} departed from the {place}.",
    ),
    Kind.PLACE: (
        "Inside the {place} there is the {object}.",
        "The {place} holds the {object}.",
        "Someone had put the {object} into the {place}.",
        "The {object} lies in the {place}.",
        "The {object} can be found in the {place}.",
    ),
    Kind.MOVE: (
        "{who} took the {object} and put it into the {place}.",
        "{who} carried the {object} over to the {place}.",
        "{who} transferred the {object} to the {place}.",
        "The {object} was put into the {place} by {who}.",
        "{who} found a new spot for the {object}, namely the {place}.",
    ),
    Kind.NOISE: ("{who} {object}.", "By the way, {who} {object}.", "Everybody knows that {who} {object}."),
}


def paraphrase(events: Iterable[Event], rng: random.Random) -> str:
    """Returns the story as sentences joined by spaces. Raises ValueError if a sentence lost one of its facts."""
    return " ".join(_sentence(event, rng) for event in events)


def _sentence(event: Event, rng: random.Random) -> str:
    who = event.agents[0] if event.agents else ""
    sentence = rng.choice(_TEMPLATES[event.kind]).format(who=who, object=event.object, place=event.place)
    missing = [fact for fact in (who, event.object, event.place) if fact and not _mentions(sentence, fact)]
    if missing:
        raise ValueError(f"paraphrase {sentence!r} of story line {event.line} does not mention {', '.join(missing)}")
    return sentence


def _mentions(sentence: str, fact: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(fact)}(?![\w-])", sentence) is not None
