"""Every prompt of the task `coser`, for characters, narrator, director, judge and coach.

In: a scene (payload), and texts already cut to length. Out: chats and instructions in our own words. What the policy
wrote appears in judge and coach prompts inside a fence only. Decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ditto_jax.judge.fence import FENCE_NOTE, fence
from ditto_jax.tasks.coser.lines import END, ENVIRONMENT
from ditto_jax.tasks.coser.rubrics import ASPECTS, DIMENSIONS, FLAW_RULES, LEVEL_RULES, LEVELS, REMINDERS
from ditto_jax.types import Message

Scene = Mapping[str, Any]
Cut = Callable[[str], str]

START = "The scene begins."

_TURN = (
    "Write the next turn of {name}, and nothing but that: never speak or act for anybody else. {thoughts}Actions stand "
    "in (round brackets) and everybody sees them; the rest is said aloud. Be as brief as people are: at most {words} "
    "words in all. Always write English."
)
_THOUGHTS = "Inner thoughts stand in [square brackets] and nobody else learns of them. "
_NO_THOUGHTS = "Write no inner thoughts. "

_NARRATOR = (
    "You narrate the surroundings of a scene from {book}. When it is your turn, tell in one to three sentences what "
    "changes around the people there: light, sounds, weather, things, what bystanders and minor figures do. Answer to "
    "what was just said or done, and keep to the tone and the time of the book. Never let any of these act or speak: "
    "{major}.\n\nThe scene:\n{scenario}"
)
_DIRECTOR = (
    "You direct a scene from {book}: after each turn you say whose turn is next. On stage are: {names}. {environment} "
    "stands for the surroundings. Choose who would answer, interrupt or be affected now. When the scene has come to "
    "its end, say {end}; if it could be anybody, say random.\n\nThe scene:\n{scenario}"
)
CUE = (
    "Whose turn is next? One of: {names}; or random; or {end}.\nWrite two lines:\nReasoning: one short sentence\n"
    "Next speaker: one name"
)
DRAWN = "(You named nobody who could go on, so the turn fell to {name}.)"

_CRITIC = (
    "You are a literary critic. Actors improvised a scene from a book without having read its dialogue; you judge what "
    "they played against the book.\n\n{scene}\n\nThe book's own dialogue, for comparison:\n{reference}\n\n{rubric}\n"
    "{rules}\n{note}\nReply as JSON: {shape}"
)
_COACH = (
    "You coach actors who improvise a scene from a book and will play it once more from the start. Compare what they "
    "played with the book's dialogue and the critic's remarks. In two to four sentences say which characters, by name, "
    "are off and how; which turn of events is missing; and what to change in tone or manner. Never quote the book's "
    "lines and never hand out lines to say."
)


def character_system(scene: Scene, name: str, turn_words: int, cut: Cut) -> str:
    """Returns the system message of one character."""
    profiles, others = scene["profiles"], [one for one in scene["characters"] if one != name]
    sections = [f"You are {name}, in a scene from {scene['book']}. Be {name} from the first word to the last."]
    if name in profiles:
        sections.append(f"Who you are:\n{cut(profiles[name])}")
    if scene["summary"]:
        sections.append(f"What happens in this part of the book:\n{cut(scene['summary'])}")
    sections.append(f"The scene:\n{cut(scene['scenario'])}")
    known = [f"{one}: {cut(profiles[one])}" for one in others if one in profiles]
    if others:
        sections.append("Who else is here:\n" + ("\n\n".join(known) or ", ".join(others)))
    if name in scene["motivations"]:
        sections.append(f"What is on your mind:\n{cut(scene['motivations'][name])}")
    thoughts = _NO_THOUGHTS if scene["wo_thought"] else _THOUGHTS
    sections.append(_TURN.format(name=name, thoughts=thoughts, words=turn_words))
    return "\n\n".join(sections)


def guidance(name: str, feedback: str) -> str:
    """Returns the private words for one character before the scene is played again."""
    reminders = " ".join(REMINDERS.values())
    return f"The last time this scene was played, a coach said: {feedback}\n{reminders} You are {name} alone."


def narrator_opening(scene: Scene, cut: Cut) -> tuple[Message, ...]:
    """Returns the narrator's chat before the scene."""
    text = _NARRATOR.format(book=scene["book"], major=", ".join(scene["characters"]), scenario=cut(scene["scenario"]))
    return (Message("system", text),)


def director_opening(scene: Scene, names: Sequence[str], cut: Cut) -> tuple[Message, ...]:
    """Returns the chat, before the scene, of whoever names the next speaker."""
    text = _DIRECTOR.format(
        book=scene["book"],
        names=", ".join(names),
        environment=ENVIRONMENT,
        end=END,
        scenario=cut(scene["scenario"]),
    )
    return (Message("system", text),)


def judge_messages(scene: Scene, reference: str, played: str, listed_flaws: bool, cut: Cut) -> tuple[Message, ...]:
    """Returns the question for a score of `played`: levels of four dimensions, or their flaws."""
    signs = "\n".join(f"- {aspect.name}: {aspect.signs}" for aspect in ASPECTS)
    part: Any = [{"flaw": "…", "severity": 1}] if listed_flaws else {"reasoning": "…", "score": 5}
    system = _CRITIC.format(
        scene=_background(scene, cut),
        reference=reference,
        rubric=signs if listed_flaws else LEVELS.instructions,
        rules=FLAW_RULES if listed_flaws else LEVEL_RULES,
        note=FENCE_NOTE,
        shape=json.dumps(dict.fromkeys(DIMENSIONS, part), ensure_ascii=False),
    )
    return (Message("system", system), Message("user", f"The scene as it was played:\n{fence(played)}"))


def _background(scene: Scene, cut: Cut) -> str:
    people = "\n\n".join(f"{name}: {cut(text)}" for name, text in scene["profiles"].items())
    sections = (
        f"Book: {scene['book']}",
        f"This part of the book: {cut(scene['summary'])}" if scene["summary"] else "",
        f"The scene: {cut(scene['scenario'])}",
        f"Main characters: {', '.join(scene['major'])}",
        f"Profiles:\n{people}" if people else "",
    )
    return "\n\n".join(section for section in sections if section)


def coach_messages(reference: str, played: str, remarks: str) -> tuple[str, str]:
    """Returns system and user text of the question for words. `remarks` may quote the actors, so it is fenced too."""
    user = (
        f"The book's dialogue:\n{reference}\n\nThe scene as it was played:\n{fence(played)}\n\n"
        f"The critic on its weakest sides:\n{fence(remarks)}"
    )
    return _COACH, user
