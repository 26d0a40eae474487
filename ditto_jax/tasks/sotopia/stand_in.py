"""What a generated kind of scene is: a plot, scores by rule, a scripted partner, and words about a draft.

In: a random generator, names, a dialogue. Out: plots and judgements of their facts. Agreements count only where both
sides do the same sealing action one after the other; what is merely said seals nothing, so nothing can be agreed by
hedging. Only what the dialogue itself decides is scored: no rule here guesses at manners or character.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from ditto_jax.tasks.sotopia.actions import Action
from ditto_jax.tasks.sotopia.scene import Scene
from ditto_jax.types import Turn

_CLOSED = 4.0  # points of ten for closing at all; the rest is for closing well
_SHARES = {"train": range(7), "validation": range(7, 8), "test": range(8, 10)}  # of ten

ThingT = TypeVar("ThingT")


@dataclasses.dataclass(frozen=True)
class Part:
    """What one side of a plot is given. facts: what rules know; `hidden` there lists what the other side's coach must
    not say.
    """

    goal: str
    secret: str
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawn scene before names are given to sides: `own` is played by the policy, `other` by its partner.

    thing: what the scene is about; the generator never uses one thing in two splits.
    """

    thing: str
    scenario: str
    relationship: str
    own: Part
    other: Part


class StandIn(abc.ABC):
    """A kind of scene whose outcome rules can read off a dialogue."""

    name: ClassVar[str]

    @abc.abstractmethod
    def plot(self, rng: random.Random, split: str, own: str, other: str) -> Plot:
        """Returns a new plot for two names."""

    @abc.abstractmethod
    def scores(self, scene: Scene, turns: Sequence[Turn]) -> dict[str, float]:
        """Returns those of the seven dimensions that the dialogue decides, for the side that looks at the scene."""

    @abc.abstractmethod
    def answer(self, scene: Scene, said: str, spoken: int, rng: random.Random) -> Action:
        """Returns what a scripted side that looks at the scene does after `said`, having spoken `spoken` times."""

    @abc.abstractmethod
    def advice(self, scene: Scene, turns: Sequence[Turn]) -> str | None:
        """Returns words about what went wrong, without anything the other side hides; None if nothing did."""


def of_share(things: Sequence[ThingT], split: str) -> list[ThingT]:
    """Returns the things that a split may use: seven, one and two of each ten."""
    return [thing for place, thing in enumerate(things) if place % 10 in _SHARES[split]]


def sealed(turns: Sequence[Turn], form: re.Pattern[str]) -> str | None:
    """Returns what the two sides sealed first: the same words in group 1 of `form`, in consecutive turns of both."""
    for before, after in itertools.pairwise(turns):
        found = [form.fullmatch(turn.text) for turn in (before, after)]
        if before.speaker != after.speaker and found[0] and found[1]:
            terms = found[0][1].casefold()
            if terms == found[1][1].casefold():
                return terms
    return None


def closing_goal(share: float) -> float:
    """Returns goal points 0 … 10 of an agreement within one's own limits that is `share` (0 … 1) as good as can be."""
    return _CLOSED + (10.0 - _CLOSED) * share


def by(turns: Iterable[Turn], name: str) -> list[str]:
    """Returns the texts of one side."""
    return [turn.text for turn in turns if turn.speaker == name]


def says_any(texts: Iterable[str], words: Iterable[str]) -> bool:
    """True if any of the words, or its plural, occurs in any text as a whole word."""
    pattern = re.compile(rf"\b(?:{'|'.join(re.escape(word) for word in words)})(?:s|es)?\b", re.IGNORECASE)
    return any(pattern.search(text) for text in texts)
