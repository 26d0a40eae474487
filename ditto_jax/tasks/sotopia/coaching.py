"""Words about a draft of the task `sotopia`: the question to a coach, and which words may not reach the player.

In: a scene, a dialogue, its verdict. Out: a request for a private brief, and the name of the leak rule that a brief
breaks. What the other side keeps to itself stays there: by default the coach is not told, and words that hold it are
refused.
"""

from __future__ import annotations

import re

from ditto_jax.judge.fence import fence
from ditto_jax.tasks.leak import leak_rule, reference_ngram
from ditto_jax.tasks.sotopia.scene import Scene
from ditto_jax.tasks.sotopia.scoring import MEANING
from ditto_jax.types import Verdict

_IMPORTANCE = {2.0: "most important", 1.0: "important", 0.5: "less important"}  # by weight
_SENTENCE = re.compile(r"(?<=[.!?])\s+")

_SYSTEM = (
    "You coach {name}, who will live through the same scene once more, from its start and with nobody remembering this "
    "try. Write a private brief to {name} of about {words} words. For each dimension below say (1) what was assessed, "
    "(2) which turn decided it, (3) what to do differently, and (4) give at least one line that {name} could say word "
    "for word. Go deepest into goal and relationship, less deep into knowledge and believability, and keep the others "
    "short. End with a takeaway of three or four sentences that names two priorities. Praise only what should stay. "
    "{private} Never tell {name} to speak of scores, dimensions, this brief, or an assessment."
)
_PRIVATE = (
    "{name} may use only what {name} knew or heard: do not tell what {other} hides, neither goals nor limits nor times "
    "nor facts that {other} did not say, even if the assessment mentions them."
)
_PRIVILEGED = "You may use what is said below about {other}."


def brief_question(
    scene: Scene, dialogue: str, verdict: Verdict, words: int, *, privileged: bool = False
) -> tuple[str, str]:
    """Returns system and user text of the question for a brief to the side that looks at the scene.

    privileged: the coach is told the other side's background and goal, as in the release.
    """
    own, other = scene.own, scene.other
    private = (_PRIVILEGED if privileged else _PRIVATE).format(name=own.name, other=other.name)
    system = _SYSTEM.format(name=own.name, words=words, private=private)
    parts = [
        f"Scene: {scene.scenario}",
        f"How they stand to each other: {scene.relationship}",
        f"{own.name}: {own.background}\nGoal of {own.name}: {own.goal}",
    ]
    if privileged:
        parts.append(f"{other.name}: {other.background}\nGoal of {other.name}: {other.goal}")
    parts += [
        f"The conversation:\n{fence(dialogue)}",
        f"Scores of {own.name}:\n{_score_lines(verdict)}",
        f"Assessment:\n{fence(verdict.critique or verdict.detail)}",
    ]
    return system, "\n\n".join(parts)


def private_leak(scene: Scene, feedback: str) -> str:
    """Returns "private_fact", "reference_ngram" or "": what of the other side's secrets `feedback` holds.

    Facts are those of generated scenes. Texts count by eight words in a row (shorter sentences as a whole), unless
    the player was told the same sentence.
    """
    other = scene.other
    for fact in other.facts.get("hidden", ()):
        if leak_rule(feedback, gold_text=fact, gold_letter=None):
            return "private_fact"
    for sentence in _SENTENCE.split("\n".join((other.goal, other.background, other.secret))):
        if sentence and sentence not in scene.known and reference_ngram(feedback, sentence):
            return "reference_ngram"
    return ""


def _score_lines(verdict: Verdict) -> str:
    lines = []
    for name, score in verdict.dimensions.items():
        if (dimension := MEANING.get(name)) is not None:
            part = (score - dimension.low) / (dimension.high - dimension.low)
            lines.append(
                f"- {name} ({_IMPORTANCE[dimension.weight]}): {score:g} in {dimension.low:g} … {dimension.high:g}, "
                f"{part:.0%} of the range. {dimension.meaning}"
            )
    return "\n".join(lines)
