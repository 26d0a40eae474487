"""Seed → Hi-ToM examples: chapters of moves and exits, optional lies, nested belief questions with lettered options.

In: options, split, count and seed. Out: examples whose gold comes from the belief oracle. The skeleton is that of the
official stories (characters enter a room, an object's place is stated, each in turn moves it or stays, and leaves);
the words are the project's own. Example k of a seed is the same whatever the count. It writes no prompts.
"""

from __future__ import annotations

import dataclasses
import itertools
import random

from ditto_jax.errors import ConfigError
from ditto_jax.rollouts.feedback import PLACEMENTS
from ditto_jax.tasks.belief.oracle import HITOM, trace_belief
from ditto_jax.tasks.belief.story import Event, Kind, Question, render_story, renumber
from ditto_jax.tasks.belief.words import ANIMALS, BELONGINGS, WAITING_ROOM, Words, words_for
from ditto_jax.tasks.generation import PROMPT_STYLES, belongs_to, story_digest
from ditto_jax.tasks.option_checks import check_choice, check_members, check_probability, check_range
from ditto_jax.types import Example

_MAX_ATTEMPTS = 200
_OFFICIAL_COMMUNICATION = {1: (1,), 2: (2,), 3: (1, 3)}  # story length -> chapters that end with two messages


@dataclasses.dataclass(frozen=True)
class HiToMOptions:
    """Options of the task `hitom`. The defaults give stories of the official shape.

    agents_min, agents_max: characters of a story (2-5). containers_min, containers_max: options in all (2-26),
    divided among `rooms`. chapters: allowed story lengths (1-3). communication: probability that a story contains
    messages. noise: probability of an irrelevant sentence after each sentence. move_probability: of moving rather
    than staying. orders: question orders (0-4), in turn. false_belief_bias: probability that a belief question is
    redrawn, with a new story, until belief differs from reality. prompt_style: "full" (all assumptions, step by step)
    or "compact" (terse story and question only). answer_format: "letter" (the benchmark's) or "text": the option in
    words, for policies too small to look up a letter; compact prompts then list no options. feedback_placement:
    "end_of_user" or "system".
    """

    vocabulary: str = "full"
    prompt_style: str = "full"
    answer_format: str = "letter"
    feedback_placement: str = "end_of_user"
    agents_min: int = 5
    agents_max: int = 5
    containers_min: int = 15
    containers_max: int = 15
    rooms: int = 3
    chapters: tuple[int, ...] = (1, 2, 3)
    communication: float = 0.5
    noise: float = 0.1
    move_probability: float = 0.5
    orders: tuple[int, ...] = (0, 1, 2, 3, 4)
    false_belief_bias: float = 0.0

    def __post_init__(self):
        check_range("agents", self.agents_min, self.agents_max, 2, 5)
        check_range("containers", self.containers_min, self.containers_max, 2 * self.rooms, 26)
        check_members("chapters", self.chapters, (1, 2, 3))
        check_members("orders", self.orders, tuple(range(min(self.agents_min, 4) + 1)))
        if not 1 <= self.rooms <= 3:
            raise ConfigError(f"rooms={self.rooms}: must be 1, 2 or 3")
        for name in ("communication", "noise", "move_probability", "false_belief_bias"):
            check_probability(name, getattr(self, name))
        check_choice("prompt_style", self.prompt_style, PROMPT_STYLES)
        check_choice("answer_format", self.answer_format, ("letter", "text"))
        check_choice("feedback_placement", self.feedback_placement, PLACEMENTS)
        for split in ("train", "test"):
            words = words_for(self.vocabulary, split)
            needed = {"names": self.agents_max, "containers": self.containers_max, "rooms": self.rooms}
            for kind, count in (needed | {"objects": 2 * self.rooms}).items():
                if count > len(getattr(words, kind)):
                    raise ConfigError(
                        f"vocabulary={self.vocabulary!r}: has {len(getattr(words, kind))} {kind} for the split "
                        f"{split!r} but these options need {count}; use smaller stories or vocabulary='full'"
                    )


@dataclasses.dataclass(frozen=True)
class HiToMStory:
    """A generated story: events, its cast and all its containers. `object` is the first chapter's."""

    events: tuple[Event, ...]
    agents: tuple[str, ...]
    containers: tuple[str, ...]
    object: str
    length: int
    deception: bool


def generate_hitom(options: HiToMOptions, split: str, count: int, seed: int = 0) -> list[Example]:
    """Returns `count` examples; consecutive ones ask the orders of one story in turn unless redrawn for belief bias."""
    return [_example(options, split, seed, index) for index in range(count)]


def _example(options: HiToMOptions, split: str, seed: int, index: int) -> Example:
    order = options.orders[index % len(options.orders)]
    own = random.Random(f"hitom/{split}/{seed}/question/{index}")
    biased = order > 0 and own.random() < options.false_belief_bias
    shared = random.Random(f"hitom/{split}/{seed}/story/{index // len(options.orders)}")
    story = draw_story(options, split, shared)
    question, gold, real = _ask(story, order, own)
    attempts = 0
    while biased and gold == real and attempts < _MAX_ATTEMPTS:
        story = draw_story(options, split, own)
        question, gold, real = _ask(story, order, own)
        attempts += 1
    return _as_example(story, question, gold, own, f"hitom-{split}-{seed}-{index}")


def _ask(story: HiToMStory, order: int, rng: random.Random) -> tuple[Question, str, str]:
    question = Question(story.object, tuple(rng.sample(story.agents, order)))
    gold = trace_belief(story.events, question, HITOM).answer
    real = trace_belief(story.events, Question(story.object), HITOM).answer
    if gold is None or real is None:
        raise AssertionError("every character sees the first chapter begin")
    return question, gold, real


def question_text(question: Question) -> str:
    """Returns the official wording of a Hi-ToM question."""
    if not question.chain:
        return f"Where is the {question.object} really?"
    first, *others = question.chain
    if not others:
        return f"Where does {first} really think the {question.object} is?"
    return f"Where does {first} think {' '.join(f'{name} thinks' for name in others)} the {question.object} is?"


def _as_example(story: HiToMStory, question: Question, gold: str, rng: random.Random, example_id: str) -> Example:
    options = rng.sample(story.containers, len(story.containers))
    letters = [chr(ord("A") + i) for i in range(len(options))]
    text = render_story(story.events)
    payload = {
        "story": text,
        "question": question_text(question),
        "choices": ", ".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True)),
        "gold_letter": letters[options.index(gold)],
        "deception": story.deception,
        "story_length": story.length,
        "question_order": len(question.chain),
        "set_id": story_digest(text),
    }
    return Example(task="hitom", id=example_id, payload=payload, gold=gold)


def draw_story(options: HiToMOptions, split: str, rng: random.Random) -> HiToMStory:
    """Returns the next story of `rng` that belongs to the split."""
    words = words_for(options.vocabulary, split)
    while True:
        story = _StoryWriter(options, words, rng).write()
        if belongs_to(split, render_story(story.events)):
            return story


class _StoryWriter:
    """Draws one story: a cast, rooms with containers and two objects each, then chapter after chapter."""

    def __init__(self, options: HiToMOptions, words: Words, rng: random.Random):
        self.options, self.words, self.rng = options, words, rng
        self.agents = tuple(rng.sample(words.names, rng.randint(options.agents_min, options.agents_max)))
        containers = rng.sample(words.containers, rng.randint(options.containers_min, options.containers_max))
        objects = rng.sample(words.objects, 2 * options.rooms)
        self.rooms = rng.sample(words.rooms, options.rooms)
        self.containers = tuple(containers)
        self.containers_of = {room: containers[i :: options.rooms] for i, room in enumerate(self.rooms)}
        self.objects_of = {room: objects[2 * i : 2 * i + 2] for i, room in enumerate(self.rooms)}
        self.place = {o: rng.choice(self.containers_of[room]) for room in self.rooms for o in self.objects_of[room]}
        self.events: list[Event] = []

    def write(self) -> HiToMStory:
        length = self.rng.choice(self.options.chapters)
        talks = self.rng.random() < self.options.communication
        first = ""
        for chapter in range(1, length + 1):
            asked = self._chapter(chapter, talks and chapter in _OFFICIAL_COMMUNICATION[length])
            first = first or asked
        return HiToMStory(renumber(self.events), self.agents, self.containers, first, length, talks)

    def _add(self, kind: Kind, agents: tuple[str, ...] = (), obj: str = "", place: str = "") -> None:
        self.events.append(Event(kind, 0, agents, obj, place))

    def _present(self, chapter: int) -> tuple[str, ...]:
        """All characters in chapter 1, then three and four of five (fewer of a smaller cast)."""
        size = {1: len(self.agents), 2: len(self.agents) - 2, 3: len(self.agents) - 1}[chapter]
        return self.agents if chapter == 1 else tuple(self.rng.sample(self.agents, max(2, size)))

    def _chapter(self, chapter: int, talks: bool) -> str:
        """Writes one chapter and returns its object."""
        present = self._present(chapter)
        room = self.rng.choice(self.rooms)
        obj = self.rng.choice(self.objects_of[room])
        self._add(Kind.ENTER, present, place=room)
        self._noise()
        self._add(Kind.PLACE, obj=obj, place=self.place[obj])
        seen, moved_to = [self.place[obj]], set()
        for name in present:
            self._noise()
            free = [c for c in self.containers_of[room] if c not in moved_to and c != self.place[obj]]
            if free and self.rng.random() < self.options.move_probability:
                self.place[obj] = self.rng.choice(free)
                moved_to.add(self.place[obj])
                seen.append(self.place[obj])
                self._add(Kind.MOVE, (name,), obj, self.place[obj])
            else:
                self._add(Kind.STAY, (name,), place=room)
            self._noise()
            self._add(Kind.EXIT, (name,), place=room)
        self._noise()
        self._add(Kind.ENTER, present, place=WAITING_ROOM)
        if talks:
            self._messages(present, obj, seen)
        return obj

    def _messages(self, present: tuple[str, ...], obj: str, seen: list[str]) -> None:
        """A public claim or a private message, then a private one. Half name a place the object has been in."""
        for kind in (self.rng.choice((Kind.CLAIM, Kind.TELL)), Kind.TELL):
            self._noise()
            place = self.rng.choice(seen if self.rng.random() < 0.5 else self.containers)
            speaker = self.rng.choice(present)
            # Mostly someone who was there, as in the official stories: those who were not believe anything.
            circle = present if self.rng.random() < 0.75 else self.agents
            listener = self.rng.choice([name for name in circle if name != speaker])
            self._add(kind, (speaker,) if kind is Kind.CLAIM else (speaker, listener), obj, place)

    def _noise(self) -> None:
        if self.rng.random() >= self.options.noise:
            return
        things = list(itertools.chain(self.containers, self.words.objects))
        text = self.rng.choice(
            (
                f"likes the {self.rng.choice(things)}",
                f"dislikes the {self.rng.choice(things)}",
                f"saw a {self.rng.choice(ANIMALS)}",
                f"lost their {self.rng.choice(BELONGINGS)}",
            )
        )
        self._add(Kind.NOISE, (self.rng.choice(self.agents),), text)
