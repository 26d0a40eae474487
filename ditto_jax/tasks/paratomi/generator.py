"""Seed → ToMi examples: two characters, one moved object, exits and returns, and questions of order 0 to 2.

In: options, split, count and seed. Out: examples whose gold comes from the belief oracle; optionally with every
sentence paraphrased. The order of actions follows the grammar of the official stories; the words are the project's
own. Example k of a seed is the same whatever the count. It writes no prompts.
"""

from __future__ import annotations

import dataclasses
import random

from ditto_jax.rollouts.feedback import PLACEMENTS
from ditto_jax.tasks.belief.oracle import TOMI, trace_belief
from ditto_jax.tasks.belief.paraphrase import paraphrase
from ditto_jax.tasks.belief.story import Event, Kind, Question, render_story, renumber
from ditto_jax.tasks.belief.words import Words, words_for
from ditto_jax.tasks.generation import PROMPT_STYLES, belongs_to, story_digest
from ditto_jax.tasks.option_checks import check_choice, check_members, check_probability
from ditto_jax.types import Example

_MAX_ATTEMPTS = 200
_FEELINGS = ("likes", "dislikes", "loves", "hates")
# Question kinds of one story, in the official order: (order, kind, which of the two characters is asked first).
_SLOTS = (
    (0, "memory", 0),
    (1, "first_order", 0),
    (2, "second_order", 0),
    (0, "reality", 0),
    (1, "first_order", 1),
    (2, "second_order", 1),
)


@dataclasses.dataclass(frozen=True)
class ParaToMiOptions:
    """Options of the task `paratomi`. The defaults give stories of the official shape.

    orders: question orders (0: memory and reality, 1, 2). noise: probability of each of two irrelevant sentences.
    distractor: probability that a third character enters. paraphrase: vary the wording of every sentence.
    list_candidates: name the candidate answers in the prompt. false_belief_bias: probability that a belief question is
    redrawn, with a new story, until belief differs from reality. prompt_style: "full" or "compact" (terse story and
    question only). feedback_placement: "end_of_user" or "system".
    """

    vocabulary: str = "full"
    prompt_style: str = "full"
    feedback_placement: str = "end_of_user"
    orders: tuple[int, ...] = (0, 1, 2)
    noise: float = 0.5
    distractor: float = 2 / 3
    paraphrase: bool = False
    list_candidates: bool = True
    false_belief_bias: float = 0.0

    def __post_init__(self):
        check_members("orders", self.orders, (0, 1, 2))
        for name in ("noise", "distractor", "false_belief_bias"):
            check_probability(name, getattr(self, name))
        check_choice("prompt_style", self.prompt_style, PROMPT_STYLES)
        check_choice("feedback_placement", self.feedback_placement, PLACEMENTS)
        words_for(self.vocabulary, "train")


@dataclasses.dataclass(frozen=True)
class ToMiStory:
    """A generated story. `agents` are the mover and the other character whose beliefs are asked for."""

    events: tuple[Event, ...]
    agents: tuple[str, str]
    object: str
    story_type: str


def generate_paratomi(options: ParaToMiOptions, split: str, count: int, seed: int = 0) -> list[Example]:
    """Returns `count` examples; consecutive ones ask about one story in turn unless redrawn for belief bias."""
    slots = [slot for slot in _SLOTS if slot[0] in options.orders]
    return [_example(options, split, seed, index, slots) for index in range(count)]


def _example(options: ParaToMiOptions, split: str, seed: int, index: int, slots: list[tuple[int, str, int]]) -> Example:
    order, kind, who = slots[index % len(slots)]
    own = random.Random(f"paratomi/{split}/{seed}/question/{index}")
    biased = order > 0 and own.random() < options.false_belief_bias
    shared = random.Random(f"paratomi/{split}/{seed}/story/{index // len(slots)}")
    story = draw_story(options, split, shared)
    question, gold, real = _ask(story, order, kind, who)
    attempts = 0
    while biased and gold == real and attempts < _MAX_ATTEMPTS:
        # The mover always knows: without a free choice of the character no first-order question could differ.
        who = own.randrange(2)
        story = draw_story(options, split, own)
        question, gold, real = _ask(story, order, kind, who)
        attempts += 1
    label = kind if order == 0 else f"{kind}_{who}_{'no_tom' if gold == real else 'tom'}"
    return _as_example(options, story, question, gold, label, order, own, f"paratomi-{split}-{seed}-{index}")


def _ask(story: ToMiStory, order: int, kind: str, who: int) -> tuple[Question, str, str]:
    chain = (story.agents[who], story.agents[1 - who])[:order]
    question = Question(story.object, chain, memory=kind == "memory")
    gold = trace_belief(story.events, question, TOMI).answer
    real = trace_belief(story.events, Question(story.object), TOMI).answer
    if gold is None or real is None:
        raise AssertionError("both characters see the object before anything happens")
    return question, gold, real


def question_text(question: Question) -> str:
    """Returns the official wording of a ToMi question."""
    if question.memory:
        return f"Where was the {question.object} at the beginning?"
    if not question.chain:
        return f"Where is the {question.object} really?"
    if len(question.chain) == 1:
        return f"Where will {question.chain[0]} look for the {question.object}?"
    first, second = question.chain
    return f"Where does {first} think that {second} searches for the {question.object}?"


def _as_example(
    options: ParaToMiOptions,
    story: ToMiStory,
    question: Question,
    gold: str,
    label: str,
    order: int,
    rng: random.Random,
    example_id: str,
) -> Example:
    plain = render_story(story.events)
    candidates = sorted({e.place for e in story.events if e.place})
    payload = {
        "story": paraphrase(story.events, random.Random(f"paraphrase/{plain}")) if options.paraphrase else plain,
        "question": question_text(question),
        "cands": tuple(rng.sample(candidates, len(candidates))),
        "question_type": label,
        "question_order": order,
        "story_type": story.story_type,
        "set_id": story_digest(plain),
    }
    if options.paraphrase:
        payload["events"] = plain
    return Example(task="paratomi", id=example_id, payload=payload, gold=gold)


def draw_story(options: ParaToMiOptions, split: str, rng: random.Random) -> ToMiStory:
    """Returns the next story of `rng` that belongs to the split."""
    words = words_for(options.vocabulary, split)
    while True:
        story = _draw(options, words, rng)
        if belongs_to(split, render_story(story.events)):
            return story


def _draw(options: ParaToMiOptions, words: Words, rng: random.Random) -> ToMiStory:
    """One story. The mover moves the object once; the other leaves, and may return, before or after the move."""
    mover, other, third = rng.sample(words.names, 3)
    room, elsewhere = rng.sample(words.rooms, 2)
    obj = rng.choice(words.objects)
    before, after = rng.sample(words.containers, 2)
    events = [_event(Kind.ENTER, name, place=room) for name in rng.sample((mover, other), 2)]
    events.append(Event(Kind.PLACE, 0, (), obj, before))
    actions = ["move", *["walk"] * rng.randint(1, 2)]
    rng.shuffle(actions)
    story_type = "false_belief" if actions[1] == "move" else "true_belief"
    is_there = True
    for i, action in enumerate(actions):
        if action == "move":
            events.append(_event(Kind.MOVE, mover, obj, after))
        elif is_there:
            events.append(_event(Kind.EXIT, other, place=room))
            is_there = False
        else:
            if i == len(actions) - 1 and rng.random() < 0.5:
                events.append(_event(Kind.EXIT, mover, place=room))
                story_type = "second_order_false_belief"
            events.append(_event(Kind.ENTER, other, place=rng.choice((room, elsewhere))))
    _add_third(events, third, (room, elsewhere), options, rng)
    _add_noise(events, (mover, other, third), words, options, rng)
    return ToMiStory(renumber(events), (mover, other), obj, story_type)


def _event(kind: Kind, agent: str, obj: str = "", place: str = "") -> Event:
    return Event(kind, 0, (agent,), obj, place)


def _add_third(
    events: list[Event], name: str, rooms: tuple[str, str], options: ParaToMiOptions, rng: random.Random
) -> None:
    if rng.random() >= options.distractor:
        return
    place = rng.choice(rooms)
    start, end = sorted(rng.sample(range(len(events) + 1), 2))
    if rng.random() < 0.5:
        events.insert(end, _event(Kind.EXIT, name, place=place))
    events.insert(start, _event(Kind.ENTER, name, place=place))


def _add_noise(
    events: list[Event], names: tuple[str, ...], words: Words, options: ParaToMiOptions, rng: random.Random
) -> None:
    for _ in range(2):
        if rng.random() < options.noise:
            text = f"{rng.choice(_FEELINGS)} the {rng.choice(words.objects)}"
            events.insert(rng.randrange(len(events) + 1), _event(Kind.NOISE, rng.choice(names), text))
