"""Seed → chats that people join and leave, with questions on who knows what: a stand-in for FANToM, not a copy of it.

In: split, count and seed. Out: examples of every form of question. Lines come from templates and gold from a record of
who was there at every telling: one knows what was told in one's presence, and takes another to know what was told while
both were there. The chats of splits differ; their words do not.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.keys import derive
from ditto_jax.tasks.fantom.rows import fantom_row, with_options
from ditto_jax.tasks.option_checks import check_choice
from ditto_jax.tasks.splits import SPLITS, group_name, split_of
from ditto_jax.types import Example

_MAX_ATTEMPTS = 1000
_NAMES = (
    *("Abena", "Bruno", "Chiara", "Dmitri", "Esra", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kavya", "Luca"),
    *("Mina", "Niels", "Oksana", "Pablo", "Qing", "Rosa", "Stefan", "Tomas", "Ursula", "Viktor", "Wanda", "Yusuf"),
)
_SMALL_TALK = (
    "It is warm in here today.",
    "I could do with another coffee.",
    "The buses were late again this morning.",
    "Nice to have a quiet hour for once.",
    "These chairs are better than the old ones.",
    "Did it rain where you live? It did not here.",
    "I like what they did with the lights.",
    "Somebody should water that plant.",
    "I am glad we found a table.",
    "The week went by so quickly.",
)
_LEAVE = ("I have to take a call, excuse me.", "I need to run now, bye all.", "My parcel is here, I must go.")
_GOODBYE = ("See you!", "Take care, {0}.", "All right, {0}, until later.")
_JOIN = ("Hello, may I sit with you?", "Hi everyone, sorry I am late.", "Good day, is there room for one more?")
_RETURN = ("I am back.", "There I am again.", "Sorry for that, here I am again.")
_WELCOME = ("Hi {0}!", "Have a seat, {0}.", "Good to see you, {0}.")


@dataclasses.dataclass(frozen=True)
class Topic:
    """Something a person may tell: what it is called ({0}: the person), how it is told ({0}: the value), values."""

    thing: str
    told: str
    values: tuple[str, ...]


_TOPICS = (
    Topic("the name of {0}'s dog", "My dog is called {0}.", ("Biscuit", "Comet", "Pepper", "Waffles", "Tango")),
    Topic("the city where {0} grew up", "I grew up in {0}.", ("Lisbon", "Tampere", "Lagos", "Kyoto", "Quito")),
    Topic("the instrument that {0} plays", "I play {0}.", ("the cello", "the trumpet", "the oboe", "the harp")),
    Topic("the dish that {0} cooks best", "What I cook best is {0}.", ("lentil soup", "paella", "dumplings", "pie")),
    Topic("the job that {0} had first", "I started out as {0}.", ("a lifeguard", "a baker", "a gardener", "a courier")),
    Topic("the colour of {0}'s bicycle", "My bicycle is {0}.", ("orange", "turquoise", "violet", "silver", "brown")),
    Topic("the month when {0} married", "I married in {0}.", ("February", "April", "August", "October", "December")),
    Topic("the sport that {0} took up", "I took up {0} this year.", ("fencing", "rowing", "judo", "archery")),
    Topic("the language that {0} is learning", "I am learning {0}.", ("Welsh", "Korean", "Swahili", "Basque")),
    Topic("the tea that {0} likes best", "The tea I like best is {0}.", ("rooibos", "sencha", "mint", "chamomile")),
)


@dataclasses.dataclass
class Fact:
    """One piece of information: whose, what, and who was there at each telling."""

    owner: str
    topic: Topic
    value: str
    tellings: list[frozenset[str]]

    @property
    def thing(self) -> str:
        return self.topic.thing.format(self.owner)

    def knows(self, person: str, seen_by: str | None = None) -> bool:
        """Whether a person knows it; with `seen_by`, whether that other person takes them to know it."""
        return any(person in there and (seen_by is None or seen_by in there) for there in self.tellings)


@dataclasses.dataclass
class Chat:
    """A chat while it is written: its lines, who takes part, who is there now and who has been."""

    people: tuple[str, ...]
    rng: random.Random
    present: list[str]
    lines: list[str] = dataclasses.field(default_factory=list)
    facts: list[Fact] = dataclasses.field(default_factory=list)
    been: set[str] = dataclasses.field(default_factory=set)

    def say(self, speaker: str, text: str) -> None:
        self.lines.append(f"{speaker}: {text}")

    def small_talk(self, speaker: str | None = None) -> None:
        unused = [text for text in _SMALL_TALK if not any(text in line for line in self.lines)]
        self.say(speaker or self.rng.choice(self.present), self.rng.choice(unused or _SMALL_TALK))

    def leave(self) -> None:
        person = self.rng.choice(self.present)
        self.say(person, self.rng.choice(_LEAVE))
        self.present.remove(person)
        self.say(self.rng.choice(self.present), self.rng.choice(_GOODBYE).format(person))

    def join(self) -> None:
        person = self.rng.choice([name for name in self.people if name not in self.present])
        host = self.rng.choice(self.present)
        self.present.append(person)
        self.say(person, self.rng.choice(_RETURN if person in self.been else _JOIN))
        self.been.add(person)
        self.say(host, self.rng.choice(_WELCOME).format(person))

    def tell(self) -> None:
        topic = self.rng.choice([t for t in _TOPICS if t not in [fact.topic for fact in self.facts]])
        owner = self.rng.choice(self.present)
        fact = Fact(owner, topic, self.rng.choice(topic.values), [frozenset(self.present)])
        self.facts.append(fact)
        self.say(owner, topic.told.format(fact.value))

    def repeat(self) -> None:
        fact = self.rng.choice(self.facts)
        tellers = [name for name in self.present if fact.knows(name)]
        if tellers:
            fact.tellings.append(frozenset(self.present))
            self.say(self.rng.choice(tellers), f"As we said before, {fact.thing} is {fact.value}.")


def generate_fantom(
    split: str, count: int, seed: int, whole_sets: bool = True, open_belief: bool = False, facts: bool = False
) -> list[Example]:
    """Returns `count` examples, ids "fantom-generated-<split>-<seed>-<chat>-<set>-<question>".

    whole_sets: all questions of a chat in a row, as the scores over sets need them; otherwise one of each chat.
    Raises ConfigError for an unknown split.
    """
    check_choice("split", split, SPLITS)
    examples: list[Example] = []
    number = 0
    while len(examples) < count:
        made = list(_examples(split, seed, number, open_belief, facts))
        if not whole_sets:
            rng = random.Random(derive(seed, "fantom-question", split, number))
            kind = rng.choice(sorted({e.payload["question_type"] for e in made}))
            made = [rng.choice([e for e in made if e.payload["question_type"] == kind])]
            made = [dataclasses.replace(e, payload={**e.payload, "set_size": 0}) for e in made]
        examples += made
        number += 1
    return examples[:count]


def _examples(split: str, seed: int, number: int, open_belief: bool, facts: bool) -> Iterator[Example]:
    rng = random.Random(derive(seed, "fantom", split, number))
    chat = _chat(split, rng)
    context = "\n".join(chat.lines)
    for which, fact in enumerate(chat.facts):
        rows = list(_questions(fact, chat, rng, open_belief))
        size = len(rows)
        if facts:
            rows.append({"question_type": "fact", "question": f"What is {fact.thing}?", "correct_answer": fact.value})
        everybody = all(fact.knows(person) for person in chat.people)
        shared = {
            "context": context,
            "full_context": context,
            "fact_question": f"What is {fact.thing}?",
            "missed_info_accessibility": "accessible" if everybody else "inaccessible",
            "set_id": f"generated {split} {seed} {number}-0-{which}",
            "set_size": size,
            "source": "generated stand-in",
        }
        for k, row in enumerate(rows):
            example_id = f"fantom-generated-{split}-{seed}-{number}-{which}-{k}"
            example = fantom_row(Path("generated"), example_id, example_id, {**shared, **row})
            conversation = group_name("chat", context)
            yield dataclasses.replace(example, payload={**example.payload, "conversation": conversation})


def _chat(split: str, rng: random.Random) -> Chat:
    """A chat of three to five people in which somebody missed something and everybody was there."""
    for _ in range(_MAX_ATTEMPTS):
        people = tuple(rng.sample(_NAMES, rng.randint(3, 5)))
        first = rng.sample(people, rng.randint(2, len(people)))
        chat = Chat(people, rng, list(first), been=set(first))
        for name in first:
            chat.small_talk(name)
        _play(chat)
        missed = any(not fact.knows(person) for fact in chat.facts for person in people)
        if chat.been == set(people) and missed and split_of(group_name("chat", "\n".join(chat.lines))) == split:
            return chat
    raise RuntimeError("no chat in which somebody missed something, in many attempts")


def _play(chat: Chat) -> None:
    """Two tellings between comings and goings; nobody is ever left alone."""
    steps = ["tell", "tell", *chat.rng.choices(("leave", "join", "small_talk", "repeat"), k=chat.rng.randint(4, 7))]
    chat.rng.shuffle(steps)
    for step in steps:
        if step == "leave" and len(chat.present) > 2:
            chat.leave()
        elif step == "join" and len(chat.present) < len(chat.people):
            chat.join()
        elif step == "repeat" and chat.facts:
            chat.repeat()
        elif step == "tell":
            chat.tell()
        else:
            chat.small_talk()


def _questions(fact: Fact, chat: Chat, rng: random.Random, open_belief: bool) -> Iterator[dict[str, Any]]:
    """Questions on minds about one fact: beliefs of the first and second order, lists, and every person in turn."""
    ignorant = [person for person in chat.people if not fact.knows(person)]
    aware = [person for person in chat.people if fact.knows(person) and person != fact.owner]
    asked = [rng.choice(group) for group in (ignorant, aware) if group]
    for belief in [*(_first_order(fact, person) for person in asked), _second_order(fact, chat, asked, rng)]:
        if open_belief:
            yield belief
        options = [belief["correct_answer"], belief["wrong_answer"]]
        rng.shuffle(options)
        yield {
            **belief,
            "question_type": belief["question_type"] + ":multiple-choice",
            "complete_question": with_options(belief["question"], tuple(options)),
            "correct_answer": str(options.index(belief["correct_answer"])),
        }
    right = [person for person in chat.people if fact.knows(person)]
    question = f"What is {fact.thing}?"
    for topic, about, what in (
        ("answerability", f"What there is to answer: {question}", "can answer this question correctly"),
        ("info_accessibility", f"The information: {question} {_capital(fact.value)}.", "know this information"),
    ):
        listed = f"{about}\nWhich of the people in the chat {what}? List all of them."
        names = {"correct_answer": right, "wrong_answer": ignorant}
        yield {"question_type": f"tom:{topic}:list", "question": listed, **names}
        for person in chat.people:
            verb = f"Can {person}" if topic == "answerability" else f"Does {person}"
            single = f"{about}\n{verb} {what.removeprefix('can ')}?"
            answer = "yes" if fact.knows(person) else "no"
            yield {"question_type": f"tom:{topic}:binary", "question": single, "correct_answer": answer}


def _first_order(fact: Fact, person: str) -> dict[str, Any]:
    knowing = f"{person} believes that {fact.thing} is {fact.value}."
    ignorant = f"{person} does not know {fact.thing}, because {person} was not there when it was told."
    return _belief(f"What does {person} believe about {fact.thing}?", fact.knows(person), knowing, ignorant, "first")


def _second_order(fact: Fact, chat: Chat, asked: Sequence[str], rng: random.Random) -> dict[str, Any]:
    """A question on what somebody who knows the fact thinks that another one believes."""
    about = rng.choice(asked)
    mind = rng.choice([person for person in chat.people if fact.knows(person) and person != about])
    knowing = f"{mind} believes that {about} thinks that {fact.thing} is {fact.value}."
    ignorant = (
        f"{mind} believes that {about} does not know {fact.thing}, because {about} was not there when {mind} heard it."
    )
    question = f"What does {mind} think that {about} believes about {fact.thing}?"
    return _belief(question, fact.knows(about, seen_by=mind), knowing, ignorant, "second")


def _belief(question: str, knows: bool, knowing: str, ignorant: str, order: str) -> dict[str, Any]:
    right, wrong = (knowing, ignorant) if knows else (ignorant, knowing)
    return {
        "question": question,
        "question_type": f"tom:belief:{'accessible' if knows else 'inaccessible'}",
        "tom_type": f"{order}-order",
        "correct_answer": right,
        "wrong_answer": wrong,
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
