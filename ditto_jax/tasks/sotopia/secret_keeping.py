"""Finding something out while keeping a plan secret: one side prepares a surprise and needs a detail for it.

In: a topic and a plan from lists. Out: a plot, its scores by rule (the detail learned, the plan unspoken), a partner
who tells the detail to someone who keeps asking, and words about the draft. A stand-in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ditto_jax.tasks.sotopia.actions import SPEAK, Action
from ditto_jax.tasks.sotopia.scene import Scene
from ditto_jax.tasks.sotopia.stand_in import Part, Plot, StandIn, by, of_share, says_any
from ditto_jax.types import Turn

_TOPICS = (
    ("cake", ("lemon", "walnut", "cherry", "carrot")),
    ("flower", ("tulip", "peony", "lily", "iris")),
    ("tea", ("jasmine", "mint", "ginger", "rooibos")),
    ("colour", ("turquoise", "crimson", "ochre", "violet")),
    ("board game", ("draughts", "backgammon", "halma", "ludo")),
    ("fruit", ("mango", "plum", "quince", "fig")),
    ("dance", ("tango", "waltz", "polka", "salsa")),
    ("bird", ("heron", "robin", "kestrel", "wren")),
    ("instrument", ("cello", "harp", "oboe", "banjo")),
    ("soup", ("leek", "pumpkin", "lentil", "tomato")),
    ("tree", ("birch", "cedar", "willow", "larch")),
    ("cheese", ("gouda", "brie", "feta", "comté")),
    ("spice", ("saffron", "cumin", "cardamom", "anise")),
    ("sport", ("fencing", "rowing", "curling", "archery")),
    ("gemstone", ("opal", "garnet", "topaz", "onyx")),
    ("jam", ("apricot", "rhubarb", "quince", "gooseberry")),
    ("season", ("spring", "summer", "autumn", "winter")),
    ("pasta", ("penne", "linguine", "ravioli", "gnocchi")),
    ("city", ("Lisbon", "Prague", "Oslo", "Kyoto")),
    ("nut", ("almond", "pecan", "hazelnut", "cashew")),
)
_PLANS = (
    ("a surprise party", ("party", "parties")),
    ("a gift for the birthday", ("gift", "birthday")),
    ("a farewell from all colleagues", ("farewell",)),
    ("an engraved medal from the whole street", ("medal", "engraved")),
)
_ASKED = 2  # mentions of the topic after which a scripted side tells
_SMALL_TALK = ("What a week this was.", "I like this place.", "The bus was late again.", "You look well.")
_KEPT, _BETRAYED = 10.0, 3.0  # goal for the detail with the plan kept, and with the plan given away


class SecretKeeping(StandIn):
    """Dimensions by rule: goal, knowledge, secret."""

    name = "secret-keeping"

    def plot(self, rng: random.Random, split: str, own: str, other: str) -> Plot:
        topic, values = rng.choice(of_share(_TOPICS, split))
        plan, words = rng.choice(_PLANS)
        favourite = rng.choice(values)
        scenario = f"{own} and {other} meet by chance on a bench in the park and have a little time to talk."
        goal = (
            f"Find out from {other} which {topic} is {other}'s favourite. You need it for {plan} that {other} must not "
            "learn about: not a word of it."
        )
        other_goal = (
            f"Have a pleasant talk. Your favourite {topic} is {favourite}; you are a private person, and tell it only "
            "to someone who stays with the subject."
        )
        own_facts = {"topic": topic, "words": words, "hidden": words}
        facts = {"topic": topic, "favourite": favourite, "words": (), "hidden": (favourite,)}
        own_part, other_part = Part(goal, f"the plan of {plan}", own_facts), Part(other_goal, "", facts)
        return Plot(topic, scenario, "friends", own_part, other_part)

    def scores(self, scene: Scene, turns: Sequence[Turn]) -> dict[str, float]:
        """Knowledge: 10 if the other side said its favourite. Secret: -10 if a word of the plan was said. Goal: 10 for
        the first without the second, 3 for the first with it.
        """
        learned = says_any(by(turns, scene.other.name), (scene.other.facts["favourite"],))
        betrayed = says_any(by(turns, scene.own.name), scene.own.facts["words"])
        return {
            "knowledge": 10.0 * learned,
            "secret": -10.0 if betrayed else 0.0,
            "goal": (_BETRAYED if betrayed else _KEPT) * learned,
        }

    def answer(self, scene: Scene, said: str, spoken: int, rng: random.Random) -> Action:
        topic = scene.own.facts["topic"]
        if not says_any((said,), (topic,)):
            return Action(SPEAK, rng.choice(_SMALL_TALK))
        if spoken < _ASKED:
            return Action(SPEAK, f"Why do you ask about a {topic}, of all things?")
        return Action(SPEAK, f"Well, since you want to know: {scene.own.facts['favourite']}, always.")

    def advice(self, scene: Scene, turns: Sequence[Turn]) -> str | None:
        scores = self.scores(scene, turns)
        if scores["secret"] < 0:
            return "You gave your plan away. Ask as if out of plain curiosity, and let no word of the plan slip."
        if scores["knowledge"] == 0:
            return (
                f"You did not find out the favourite {scene.own.facts['topic']}. Come back to it several times, "
                "tell something about your own taste first, and do not give up after one evasive answer."
            )
        return None
