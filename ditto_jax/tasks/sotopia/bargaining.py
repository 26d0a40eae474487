"""Bargaining over one thing: a seller with a lowest price and a buyer with a highest one, both private.

In: a base price from a list. Out: a plot whose limits always leave room for a sale, its scores by rule (share of that
room, own limit kept to oneself), a partner who gives way step by step, and words about the draft. A stand-in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from ditto_jax.tasks.sotopia.actions import ACT, SPEAK, Action
from ditto_jax.tasks.sotopia.scene import Scene
from ditto_jax.tasks.sotopia.stand_in import Part, Plot, StandIn, by, closing_goal, of_share, sealed
from ditto_jax.types import Turn

_THINGS = (
    *(("bicycle", 160), ("desk lamp", 45), ("record player", 120), ("rowing machine", 210), ("guitar", 180)),
    *(("camping tent", 110), ("sewing machine", 130), ("bookcase", 90), ("espresso machine", 240), ("telescope", 260)),
    *(("violin", 320), ("leather jacket", 85), ("chess clock", 50), ("wooden kayak", 390), ("typewriter", 140)),
    *(
        ("pair of skis", 150),
        ("garden bench", 95),
        ("film camera", 170),
        ("oil painting", 280),
        ("electric piano", 350),
    ),
)
_SHAKE = re.compile(r"\[action\] shakes? hands on \$?(\d{1,6})(?: dollars)?\.?", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,6}")
_SENTENCE = re.compile(r"[.!?;]+\s")
_LIMIT_WORDS = re.compile(
    r"\b(?:limit|minimum|maximum|lowest|highest|at (?:least|most)|no (?:less|more|lower|higher)|budget|"
    r"go (?:below|above|under|over)|(?:least|most) i can|all i (?:have|can))\b",
    re.IGNORECASE,
)
_STEPS = 5  # turns in which a scripted side gives way from its first price to its limit
_COUNTER = ("I could do {} dollars.", "For me it would be {} dollars.", "Let us say {} dollars.")


class Bargaining(StandIn):
    """Dimensions by rule: goal, financial_and_material_benefits, secret."""

    name = "bargaining"

    def plot(self, rng: random.Random, split: str, own: str, other: str) -> Plot:
        thing, base = rng.choice(of_share(_THINGS, split))
        limits = {"seller": round(base * rng.uniform(0.6, 0.8)), "buyer": round(base * rng.uniform(1.0, 1.3))}
        first = {"seller": round(base * rng.uniform(1.4, 1.7)), "buyer": round(base * rng.uniform(0.3, 0.5))}
        roles = rng.sample(("seller", "buyer"), 2)
        names = dict(zip(roles, (own, other), strict=True))
        scenario = (
            f"At a flea market {names['seller']} sells a used {thing}, and {names['buyer']} stops to look at it. They "
            "bargain aloud. By the custom of this market a sale is closed only when both, one directly after the "
            'other, do the action "shake hands on N dollars" with the same number N.'
        )
        parts = [_part(role, thing, limits[role], first[role]) for role in roles]
        return Plot(thing, scenario, "strangers", *parts)

    def scores(self, scene: Scene, turns: Sequence[Turn]) -> dict[str, float]:
        """Goal: 4 for a sale within the own limit, up to 10 for all of the room between the limits. Financial: 5 times
        the share of that room, negative beyond the own limit. Secret: -10 if the own limit was named as such.
        """
        price, limit = sealed(turns, _SHAKE), scene.own.facts["limit"]
        share = 0.0
        if price is not None:
            share = max(-1.0, min(1.0, (int(price) - limit) / (scene.other.facts["limit"] - limit)))
        return {
            "secret": -10.0 if _names_limit(by(turns, scene.own.name), limit) else 0.0,
            "financial_and_material_benefits": 5.0 * share,
            "goal": 0.0 if price is None or share < 0 else closing_goal(share),
        }

    def answer(self, scene: Scene, said: str, spoken: int, rng: random.Random) -> Action:
        facts = scene.own.facts
        price = round(facts["first"] + (facts["limit"] - facts["first"]) * min(1.0, spoken / _STEPS))
        offers = _NUMBER.findall(said)
        sells = facts["role"] == "seller"
        if offers and (int(offers[-1]) >= price if sells else int(offers[-1]) <= price):
            return Action(ACT, f"shake hands on {int(offers[-1])} dollars")
        return Action(SPEAK, rng.choice(_COUNTER).format(price))

    def advice(self, scene: Scene, turns: Sequence[Turn]) -> str | None:
        scores = self.scores(scene, turns)
        if scores["secret"] < 0:
            return "You said aloud what your limit is. Name offers, never the limit behind them."
        if scores["financial_and_material_benefits"] < 0:
            return (
                "You closed at a price that is worse for you than no sale. Keep your own limit before every handshake."
            )
        if scores["goal"] == 0:
            return (
                "No sale was closed. When a price on the table is better than your limit, do the action "
                '"shake hands on N dollars" yourself, with exactly that number, and let the other do the same.'
            )
        if scores["goal"] < 8:
            return (
                "The sale was closed early or with large concessions. Start further away, move in small steps, and let "
                "the other side move first."
            )
        return None


def _part(role: str, thing: str, limit: int, first: int) -> Part:
    what = (
        f"Sell the {thing} for as much as you can. Below {limit} dollars you would rather keep it."
        if role == "seller"
        else f"Buy the {thing} for as little as you can. Above {limit} dollars you would rather go without."
    )
    facts = {"role": role, "limit": limit, "first": first, "hidden": (str(limit),)}
    return Part(f"{what} Keep this limit to yourself.", f"the limit of {limit} dollars", facts)


def _names_limit(texts: Sequence[str], limit: int) -> bool:
    """Whether a sentence holds both the limit's number and a word for a limit; an offer of that number does not."""
    return any(
        str(limit) in _NUMBER.findall(sentence) and _LIMIT_WORDS.search(sentence)
        for text in texts
        for sentence in _SENTENCE.split(text)
    )
