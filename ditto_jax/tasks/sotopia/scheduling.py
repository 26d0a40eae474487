"""Scheduling a meeting: two private calendars with a few halves of days in common, and an appointment to hide.

In: an occasion from a list. Out: a plot, its scores by rule (a time that suits both and oneself best, the appointment
kept private), a partner who knows its own calendar only, and words about the draft. A stand-in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from ditto_jax.tasks.sotopia.actions import ACT, SPEAK, Action
from ditto_jax.tasks.sotopia.scene import Scene
from ditto_jax.tasks.sotopia.stand_in import Part, Plot, StandIn, by, closing_goal, of_share, says_any, sealed
from ditto_jax.types import Turn

_OCCASIONS = (
    *("repair the boat", "rehearse the duet", "paint the fence", "plan the street fair", "clear out the cellar"),
    *("write the club's report", "try out the new trail", "prepare the quiz night", "sort the old photographs"),
    *("visit the apple orchard", "test the model train", "cook for the neighbours", "check the beehives"),
    *("practise the dance", "choose the curtains", "judge the pie contest", "mend the tents", "tune the piano"),
    *("plant the hedge", "record the radio play"),
)
_SECRETS = (
    ("a job interview with another company", ("interview", "another company")),
    ("an examination at a doctor's", ("doctor", "medical", "examination")),
    ("a meeting with a lawyer", ("lawyer",)),
    ("a singing lesson that nobody is to know about", ("singing", "lesson")),
    ("a viewing of a flat in another town", ("flat", "another town")),
)
_SLOTS = tuple(
    f"{day} {part}"
    for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
    for part in ("morning", "afternoon")
)
_TIME = "|".join(_SLOTS)
_WRITE = re.compile(rf"\[action\] (?:put|puts|write|writes) ({_TIME}) (?:into|in) the calendar\.?", re.IGNORECASE)
_NAMED = re.compile(rf"\b({_TIME})\b", re.IGNORECASE)
_COMMON, _ALONE = 3, 3  # halves of days that both have free, and that only one has


class Scheduling(StandIn):
    """Dimensions by rule: goal, secret."""

    name = "scheduling"

    def plot(self, rng: random.Random, split: str, own: str, other: str) -> Plot:
        occasion = rng.choice(of_share(_OCCASIONS, split))
        slots = rng.sample(_SLOTS, len(_SLOTS))
        common, busy = slots[:_COMMON], slots[_COMMON + 2 * _ALONE :]
        alone = (slots[_COMMON : _COMMON + _ALONE], slots[_COMMON + _ALONE : _COMMON + 2 * _ALONE])
        scenario = (
            f"{own} and {other} want to meet next week to {occasion} and are looking for a time. A week has five days "
            "with a morning and an afternoon each. A time is settled only when both, one directly after the other, do "
            'the action "write DAY PART into the calendar" with the same time, such as "write Sunday morning into the '
            'calendar".'
        )
        parts = [_part(rng, [*common, *own_only], rng.choice(busy)) for own_only in alone]
        return Plot(occasion, scenario, "acquaintances", *parts)

    def scores(self, scene: Scene, turns: Sequence[Turn]) -> dict[str, float]:
        """Goal: 4 for a settled time that is free for oneself, up to 10 for the one of those free for both that one
        likes best. Secret: -10 if what is to be hidden was named.
        """
        settled = sealed(turns, _WRITE)
        named = says_any(by(turns, scene.own.name), scene.own.facts["words"])
        free = [slot.casefold() for slot in scene.own.facts["free"]]
        goal = 0.0
        if settled is not None and settled in free:
            shared = [slot for slot in free if slot in {s.casefold() for s in scene.other.facts["free"]}]
            worse = sum(free.index(slot) > free.index(settled) for slot in shared)
            goal = closing_goal(min(1.0, worse / (len(shared) - 1)))
        return {"secret": -10.0 if named else 0.0, "goal": goal}

    def answer(self, scene: Scene, said: str, spoken: int, rng: random.Random) -> Action:
        free = scene.own.facts["free"]
        named = [time.capitalize() for time in _NAMED.findall(said)]
        wanted = next((slot for slot in free if slot in named), None)
        if wanted is not None:
            return Action(ACT, f"write {wanted} into the calendar")
        proposal = free[spoken % len(free)]
        refusal = f"{named[-1]} is not possible for me. " if named else ""
        return Action(SPEAK, f"{refusal}What about {proposal}?")

    def advice(self, scene: Scene, turns: Sequence[Turn]) -> str | None:
        scores = self.scores(scene, turns)
        if scores["secret"] < 0:
            return "You mentioned what you want to hide. Say that a time does not suit you, and give no reason."
        settled = sealed(turns, _WRITE)
        if settled is None:
            return (
                "No time was settled. Propose one that is free for you; when the other agrees, do the action "
                '"write DAY PART into the calendar" with exactly that time.'
            )
        if scores["goal"] == 0:
            return "You settled a time that is not free for you. Look at your own calendar before you agree."
        if scores["goal"] < 10:
            return "The time is not the one you would like best. Propose your favourites first, in order."
        return None


def _part(rng: random.Random, free: list[str], taken: str) -> Part:
    free = rng.sample(free, len(free))
    what, words = rng.choice(_SECRETS)
    goal = (
        f"Settle a time that is free for you; these are, from the one you like best to the one you like least: "
        f"{', '.join(free)}. On {taken} you have {what}; the other side must not learn of it."
    )
    return Part(goal, what, {"free": tuple(free), "words": words, "hidden": (what, *free)})
