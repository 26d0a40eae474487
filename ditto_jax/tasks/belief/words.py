"""Word lists of the story generators, split so that training and held-out stories share no content word.

In: the name of a vocabulary ("full" or "small") and of a split. Out: names, objects, containers and rooms. The "small"
vocabulary serves a tiny policy with word-level knowledge: both theory-of-mind tasks share it. No text is written here.
"""

from __future__ import annotations

import dataclasses
import functools

from ditto_jax.errors import ConfigError

VOCABULARIES = ("full", "small")
SPLITS = ("train", "validation", "test")

WAITING_ROOM = "waiting_room"
ANIMALS = ("cat", "dog", "mouse", "monkey")
BELONGINGS = ("phone", "watch", "gloves")


@dataclasses.dataclass(frozen=True)
class Words:
    """Content words of one split; every tuple is free of repeats and disjoint from its twin of the other split."""

    names: tuple[str, ...]
    objects: tuple[str, ...]
    containers: tuple[str, ...]
    rooms: tuple[str, ...]


def _words(names: str, objects: str, containers: tuple[str, ...], rooms: str) -> Words:
    return Words(tuple(names.split()), tuple(objects.split()), containers, tuple(rooms.split()))


def _painted(colours: str, nouns: str) -> tuple[str, ...]:
    return tuple(f"{colour}_{noun}" for colour in colours.split() for noun in nouns.split())


_SMALL_TRAIN = _words(
    names="Ann Bob Cid Dee Eve Finn Gus Hal Ivy Jon",
    objects="apple lemon peach onion ball ring coin scarf",
    containers=("crate", "drawer", "hamper", "basket", "bucket", "trunk", "pouch", "shelf", "barrel"),
    rooms="den attic porch",
)
_SMALL_HELD_OUT = _words(
    names="Kit Lou Max Ned Ola Pia",
    objects="plum melon key doll",
    containers=("cabinet", "satchel", "locker", "carton", "tub"),
    rooms="cellar loft",
)
_FULL_TRAIN = _words(
    names="""
        Agnes Albert Anita Anton Arthur Beatrice Bernard Bianca Boris Bruno Camille Carlos Cecilia Cedric Clara Conrad
        Daphne Dario Diana Dominic Edgar Edith Elena Emil Esther Fabian Felix Fiona Flora Frank Gabriel Gemma George
        Gloria Gregor Greta Hector Helen Henrik Hugo Ingrid Irene Ivan Jasper Joanna Julian Karin Kenji Lars Laura Leon
        Lydia Marcel Marina Martin Miriam Nadia Naomi Nestor Nora Oscar Otto Pablo Paula Petra Philip Rafael Ramona
        Rita Robin
    """,
    objects="""
        almond anchor apricot artichoke avocado badge balloon bandage bracelet brush button camera candle carrot cashew
        celery cherry compass cookie cork cranberry crayon date eggplant eraser feather fig flute garlic ginger glove
        guava hammer harmonica hazelnut kettle kiwi ladle lantern leek magnet mango marble medal mirror mushroom
    """,
    containers=_painted(
        "red blue green yellow",
        """
        basket bottle box bucket cabinet cooler crate cupboard drawer envelope hamper jar pouch safe suitcase
        trunk
        """,
    ),
    rooms="""
        attic balcony barn basement bedroom boathouse cabin chapel conservatory corridor den foyer gallery garage
        gym hall hallway
    """,
)
_FULL_HELD_OUT = _words(
    names="""
        Selma Simon Sonia Stefan Stella Sven Tamara Theo Thora Tobias Ulla Ursula Valerie Vera Victor Viola Walter Wanda
        Wilma Xenia Yannick Yusuf Zelda Zora
    """,
    objects="""
        needle nutmeg oatmeal olive papaya parsley peanut pebble pencil pepper pistachio pretzel puzzle quince raisin
        ribbon saffron spoon stamp thimble violin walnut whistle zucchini
    """,
    containers=_painted("purple orange white black", "backpack barrel bin carton chest dresser locker sack tin tub"),
    rooms="kitchen laundry library nursery office pantry parlour pavilion studio study",
)
_LISTS = {
    ("full", False): _FULL_TRAIN,
    ("full", True): _FULL_HELD_OUT,
    ("small", False): _SMALL_TRAIN,
    ("small", True): _SMALL_HELD_OUT,
}


@functools.cache
def words_for(vocabulary: str, split: str) -> Words:
    """Returns the words of a split: training words for "train", held-out words for "validation" and "test".

    Raises ConfigError for an unknown vocabulary or split.
    """
    if vocabulary not in VOCABULARIES:
        raise ConfigError(f"vocabulary={vocabulary!r}: must be one of {', '.join(VOCABULARIES)}; for example 'small'")
    if split not in SPLITS:
        raise ConfigError(f"split={split!r}: must be one of {', '.join(SPLITS)}; for example 'train'")
    return _LISTS[vocabulary, split != "train"]
