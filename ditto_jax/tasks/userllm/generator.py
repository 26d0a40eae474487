"""Seed → user turns of the three subtasks from own words: a stand-in for question lists and for chats of real people.

In: split, count and seed. Out: first, later and last turns of small chats in which the assistant asks back for one
detail after the other, and question turns of the two templated subtasks. Turn k of a seed is the same whatever the
count; no question and no goal is in two splits.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from ditto_jax.keys import derive
from ditto_jax.tasks.option_checks import check_choice
from ditto_jax.tasks.splits import SPLITS, group_name, split_of
from ditto_jax.tasks.userllm.turns import AI, CSQA, END, NQ, PRISM, USER, UserTurn, chat_text, csqa_turn, nq_turn
from ditto_jax.types import Example

_MAX_ATTEMPTS = 1000
_SOURCE = "generated stand-in"
_SHARES = {CSQA: 22, NQ: 15, PRISM: 63}  # of a hundred rows, as in the reported figures
_EXCHANGES_BEFORE = (0, 0, 0, 1, 1, 2, 2, 3, 3)  # drawn from; after all three the person has got everything


@dataclasses.dataclass(frozen=True)
class Scene:
    """A wish with three details. `goal` and `answer` have {0} {1} {2}; `asks[i]` asks for detail i + 1."""

    goal: str
    opening: str
    asks: tuple[str, str]
    answer: str
    details: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


SCENES: Sequence[Scene] = (
    Scene(
        goal="a plan for a short trip to {0}, going by {1}, and above all seeing {2}",
        opening="thinking of going to {0} for a few days",
        asks=("Sounds good. How do you want to get there?", "And what would you most like to see?"),
        answer="Here is the plan. Go to {0} by {1} on Friday, keep Saturday for {2}, and be back on Sunday evening.",
        details=(
            ("Lisbon", "Ghent", "Bergen", "Trieste", "Porto", "Riga", "Cork", "Utrecht"),
            ("train", "bus", "car", "bike", "boat", "night train"),
            ("old bookshops", "the harbour", "small museums", "street markets", "the gardens", "live music"),
        ),
    ),
    Scene(
        goal="a dinner to cook with {0} for {1}, one that {2}",
        opening="got lots of {0}, what can i cook",
        asks=("Happy to help. How many people is it for?", "Anything the dish has to be?"),
        answer="Try a one-pan bake with {0}. The amounts I list are for {1}, and it is a dish that {2}.",
        details=(
            ("leeks", "chickpeas", "pumpkin", "mushrooms", "lentils", "cabbage", "salmon", "beetroot"),
            ("two people", "a family of five", "eight guests", "just one person", "three children"),
            ("takes half an hour", "has no dairy", "tastes good cold", "costs little", "needs no oven"),
        ),
    ),
    Scene(
        goal="a short message to {0} about {1}, in a tone that is {2}",
        opening="need to write to {0}, no idea how to start",
        asks=("I can draft it. What is the message about?", "Which tone should it have?"),
        answer="Here is the message to {0}. It speaks of {1} in four sentences and is {2} throughout: Dear …",
        details=(
            ("my landlord", "my old teacher", "a neighbour", "my team", "the choir", "an aunt", "the school"),
            ("the broken heating", "moving the meeting", "a birthday", "a lost parcel", "the noise at night"),
            ("firm but polite", "warm", "funny", "very formal", "short and dry"),
        ),
    ),
    Scene(
        goal="a way to learn {0} in {1}, practising {2}",
        opening="i want to learn {0}",
        asks=("Great choice. How much time do you have in all?", "And how often can you practise?"),
        answer="Here is a course in {0} for {1}: new material at first, then review. It works with practice {2}.",
        details=(
            ("chess openings", "the ukulele", "basic Finnish", "touch typing", "bookbinding", "juggling"),
            ("six weeks", "three months", "one summer", "a year"),
            ("every morning", "twice a week", "at weekends", "ten minutes a day", "on the train"),
        ),
    ),
    Scene(
        goal="advice on buying {0} that costs {1} and suits {2}",
        opening="which kind should i get, its about {0}",
        asks=("There are many. What may it cost?", "Who or what is it for?"),
        answer="Look for a used one: {0} with a two-year warranty that costs {1}. It suits {2} well.",
        details=(
            ("a laptop", "a bicycle", "a tent", "a camera", "a coffee grinder", "a backpack", "a desk lamp"),
            ("under fifty euros", "no more than three hundred", "about a thousand", "very little"),
            ("a student", "rainy weather", "a small flat", "long trips", "someone with back pain"),
        ),
    ),
)
# A wording, and what fits each thing; the other choices are what fits the others.
_EVERYDAY = (
    (
        "Where would you most likely keep {0}?",
        {
            "a snow shovel": "garage",
            "a passport": "desk drawer",
            "old letters": "attic",
            "a soup bowl": "kitchen cupboard",
            "a rake": "garden shed",
            "winter coats": "wardrobe",
            "potatoes": "cellar",
            "a novel": "bookshelf",
        },
    ),
    (
        "How does someone most likely feel after {0}?",
        {
            "a long hike": "tired",
            "winning a prize": "proud",
            "losing a race": "disappointed",
            "a good joke": "amused",
            "passing an exam": "relieved",
            "a day without food": "hungry",
            "a long speech": "bored",
        },
    ),
    (
        "Where do you usually find {0}?",
        {
            "a lighthouse": "coast",
            "a microscope": "laboratory",
            "a ticket machine": "railway station",
            "a hymn book": "church",
            "a parking meter": "street",
            "a stage curtain": "theatre",
            "a milking stool": "farm",
        },
    ),
)
_ASKED = (
    "who designed the {0}",
    "when was the {0} opened",
    "how much did the {0} cost to build",
    "how long did it take to build the {0}",
    "which company built the {0}",
)
_BUILT = (
    "Forth Bridge", "Gotthard tunnel", "Atomium", "Sydney Opera House", "Suez Canal", "Hoover Dam", "London Eye",
    "Space Needle", "Kiel Canal", "Itaipu Dam", "Golden Gate Bridge", "Corinth Canal", "Oresund Bridge", "Semperoper",
    "Aswan High Dam", "Bosphorus Bridge",
)  # fmt: skip


def generate_userllm(split: str, count: int, seed: int, subtasks: Sequence[str]) -> list[Example]:
    """Returns `count` turns, ids "userllm-generated-<split>-<seed>-<k>", the subtasks in the shares of the benchmark.

    Raises ConfigError for unknown splits.
    """
    check_choice("split", split, SPLITS)
    return [_turn(split, seed, k, subtasks).example(f"userllm-generated-{split}-{seed}-{k}") for k in range(count)]


def _turn(split: str, seed: int, k: int, subtasks: Sequence[str]) -> UserTurn:
    rng = random.Random(derive(seed, "userllm", split, k))
    subtask = rng.choices(subtasks, [_SHARES[name] for name in subtasks])[0]
    for _ in range(_MAX_ATTEMPTS):
        turn = _DRAW[subtask](rng)
        offered = group_name("question", turn.suggestion) if turn.suggestion else turn.group
        if split_of(turn.group) == split_of(offered) == split:
            return turn
    raise RuntimeError(f"no {subtask} turn of split {split} in many attempts")


def _csqa(rng: random.Random) -> UserTurn:
    wording, fitting = rng.choice(_EVERYDAY)
    thing = rng.choice(list(fitting))
    options = [fitting[thing], *rng.sample([place for other, place in fitting.items() if other != thing], 4)]
    rng.shuffle(options)
    question = wording.format(thing)
    return csqa_turn(question, tuple(options), source=_SOURCE, group=group_name("question", question))


def _nq(rng: random.Random) -> UserTurn:
    asked, offered = rng.sample(_ASKED, 2)
    built = rng.choice(_BUILT)
    question = f"{asked.format(built)}?"
    return nq_turn(question, f"{offered.format(built)}?", source=_SOURCE, group=group_name("question", question))


def _scene(rng: random.Random) -> UserTurn:
    scene = rng.choice(SCENES)
    details = [rng.choice(values) for values in scene.details]
    before = rng.choice(_EXCHANGES_BEFORE)
    chat = [(USER, scene.opening.format(*details))]
    for ask, detail in zip(scene.asks, details[1:], strict=True):
        chat += [(AI, ask), (USER, detail)]
    chat.append((AI, scene.answer.format(*details)))
    is_last = before == len(details)
    goal = scene.goal.format(*details)
    return UserTurn(
        subtask=PRISM,
        intent=goal,
        history=chat_text(chat[: 2 * before]),
        source=_SOURCE,
        group=group_name("intent", goal),
        is_last=is_last,
        gold=END if is_last else chat[2 * before][1],
    )


_DRAW = {CSQA: _csqa, NQ: _nq, PRISM: _scene}
