"""Candidate answers of a ToMi story: every container and place that it names, in the order of first mention.

In: the story's text, in official or paraphrased wording, and the gold answer. Out: candidate names as the story spells
them. Two rules find them: the positions where official sentences name a place ("entered the X", "is in the X", "to the
X"), and the closed vocabulary of the ToMi generator, which paraphrases leave untouched (13 containers, 30 rooms).
"""

from __future__ import annotations

import re

_CONTAINERS = (
    "basket", "bathtub", "bottle", "box", "bucket", "container", "crate", "cupboard", "drawer", "envelope", "pantry",
    "suitcase", "treasure_chest",
)  # fmt: skip
_ROOMS = (
    "TV_room", "attic", "back_yard", "basement", "bathroom", "bedroom", "cellar", "closet", "crawlspace", "den",
    "dining_room", "front_yard", "garage", "garden", "hall", "hallway", "kitchen", "laundry", "living_room", "lounge",
    "master_bedroom", "office", "pantry", "patio", "playroom", "porch", "staircase", "study", "sunroom", "workshop",
)  # fmt: skip


def _vocabulary() -> re.Pattern[str]:
    names = sorted({*_CONTAINERS, *_ROOMS}, key=len, reverse=True)
    anyhow = "|".join(name.replace("_", "[_ ]") for name in names)
    # "box-aholic" and "box's" differ: the first is a person, the second still names the box.
    return re.compile(rf"(?<![\w-])(?:(?:red|green|blue)[_ ])?(?:{anyhow})(?![\w-])", re.IGNORECASE)


_VOCABULARY = _vocabulary()
_OFFICIAL = re.compile(
    r"(?:(?:entered|exited)|(?<=\bThe )[\w' -]+ is in|moved the [\w' -]+ to) the ([\w' -]*\w)\.?$", re.MULTILINE
)


def story_candidates(story: str, gold: str) -> list[str]:
    """Returns the containers and places that `story` names, in the order of first mention; [] if it never names `gold`.

    A gold answer that the story names in some other way than the two rules see is added at its place.
    """
    found = [(match.start(1), match[1]) for match in _OFFICIAL.finditer(story)]
    found += [(match.start(), match[0]) for match in _VOCABULARY.finditer(story)]
    own_words = re.escape(_plain(gold)).replace(r"\ ", "[_ -]")
    named = re.search(rf"(?<![\w-]){own_words}(?![\w-])", story, re.IGNORECASE)
    if named is None:
        return []
    names: dict[str, str] = {}
    for _, name in sorted([*found, (named.start(), named[0])]):
        names.setdefault(_plain(name), name)
    return list(names.values())


def same_name(one: str, other: str) -> bool:
    """Returns True if two names differ at most in case and in underscores, hyphens or spaces between words."""
    return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold()))
