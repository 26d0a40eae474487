"""What a judge looks for in a played scene, and how its findings become points.

In: four dimensions, each with a focus, signs for and against, and ten anchored levels. Out: the rubric of whole levels
1 to 10 (one reply scores all four), the alternative of listed flaws with severities, and both conversions to points of
100. The wording is ours; it knows no scene.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pydantic

from ditto_jax.tasks.rubric import Dimension, Rubric


@dataclasses.dataclass(frozen=True)
class Aspect:
    """One dimension in words: the question, where to look, signs for and against, and the ten levels."""

    name: str
    question: str
    focus: str
    good: str
    bad: str
    levels: tuple[str, ...]

    @property
    def signs(self) -> str:
        """The question with its focus and signs."""
        return f"{self.question}\n  Focus: {self.focus}\n  For: {self.good}\n  Against: {self.bad}"

    @property
    def anchored(self) -> str:
        """The same with the ten levels."""
        levels = "; ".join(f"{number} {text}" for number, text in enumerate(self.levels, start=1))
        return f"{self.signs}\n  Levels: {levels}."


ASPECTS = (
    Aspect(
        "Storyline Consistency",
        "does the played scene go where the book's scene goes?",
        "the turning points of the reference, their order, what each character wants and where they end up.",
        "the same conflict is raised; characters react as they do in the reference; the same things come to light.",
        "another conflict takes over; characters know or decide what they could not; nothing happens; it stops early.",
        (
            "another story",
            "only names and place are shared",
            "the situation is shared, but no beat of it",
            "one beat, most reactions off",
            "some beats, thinly or out of order",
            "the main beat and fair reactions, with gaps",
            "most beats, small departures",
            "nearly all beats and motives",
            "every beat, in the reference's spirit",
            "could replace the reference",
        ),
    ),
    Aspect(
        "Character Fidelity",
        "are the main characters who their profiles say they are?",
        "voice, manners, knowledge, values and ties to the others; judge the main characters only.",
        "words and temper of this person; knowledge and rank respected; old ties and grudges felt.",
        "interchangeable voices; words or ideas of another age; facts of the profile contradicted; temper reversed.",
        (
            "contradicts the profiles throughout",
            "only the names fit",
            "stock figures",
            "a trait or two, often dropped",
            "broadly in role, no voice of their own",
            "in role, a voice now and then",
            "clear voices with few slips",
            "steady voices, ties and knowledge right",
            "one would know each speaker without the name",
            "the author's own hand",
        ),
    ),
    Aspect(
        "Anthropomorphism",
        "do the characters behave like people rather than like assistants?",
        "wants of their own, mixed feelings, speech under pressure, thoughts that differ from words.",
        "initiative; evasion, interruption, silence; feelings that change for a reason; words that also hide.",
        "helpful, balanced, explaining talk; feelings said outright; agreeing with everything; echoing; speeches.",
        (
            "an assistant with a name tag",
            "lectures and offers help",
            "polite and passive",
            "names feelings like a list",
            "reacts plausibly, seldom acts",
            "wants something and pursues it plainly",
            "some subtext and initiative",
            "real inner conflict",
            "surprising and yet inevitable",
            "a living person",
        ),
    ),
    Aspect(
        "Storyline Quality",
        "is it good dialogue, the reference aside?",
        "economy, flow from line to line, tension, concrete detail, and a shape to the scene.",
        "every line answers and adds; actions carry meaning; rhythm varies; the scene moves towards something.",
        "repetition; padding; stock phrases; monologues; lines that do not answer each other; broken form.",
        (
            "unreadable",
            "broken or looping",
            "the same thing said again and again",
            "wordy and flat",
            "serviceable",
            "clear and mostly lively",
            "well shaped, few weak lines",
            "tense and precise",
            "memorable",
            "worth printing",
        ),
    ),
)
LEVELS = Rubric("scene", tuple(Dimension(aspect.name, 1, 10, aspect.anchored) for aspect in ASPECTS))
DIMENSIONS = tuple(aspect.name for aspect in ASPECTS)

# One line each, for those who play the scene again.
REMINDERS: Mapping[str, str] = {
    "Storyline Consistency": "Let the scene go where its situation leads.",
    "Character Fidelity": "Sound like this person and nobody else.",
    "Anthropomorphism": "Want something; be a person, not a helper.",
    "Storyline Quality": "Every line answers the last one and adds to it.",
}

LEVEL_RULES = (
    "The dimensions are independent: a scene may be faithful and dull. Use the whole range. 5 or 6 is an adequate "
    "scene; 8 and above is rare and needs proof in the lines. The reference shows the depth that is expected."
)
FLAW_RULES = (
    "For each dimension list every flaw that you find, each with the line it is in and a severity from 1 (slight) to 5 "
    "(ruins the scene). No flaw is an empty list. A flaw belongs to one dimension only."
)


class Flaw(pydantic.BaseModel):
    """One thing that is wrong with a scene."""

    model_config = pydantic.ConfigDict(extra="ignore")
    flaw: str = pydantic.Field(max_length=2000)
    severity: int = pydantic.Field(ge=1, le=5)


class Flaws(pydantic.BaseModel):
    """Reply of the judge that lists flaws, by dimension."""

    model_config = pydantic.ConfigDict(extra="ignore", populate_by_name=True)
    storyline_consistency: list[Flaw] = pydantic.Field(alias="Storyline Consistency", max_length=100)
    character_fidelity: list[Flaw] = pydantic.Field(alias="Character Fidelity", max_length=100)
    anthropomorphism: list[Flaw] = pydantic.Field(alias="Anthropomorphism", max_length=100)
    storyline_quality: list[Flaw] = pydantic.Field(alias="Storyline Quality", max_length=100)

    def of(self, dimension: str) -> list[Flaw]:
        """Returns the flaws of one of DIMENSIONS."""
        return getattr(self, metric_name(dimension))


def metric_name(dimension: str) -> str:
    """Returns a dimension's name as metrics write it."""
    return dimension.lower().replace(" ", "_")


def level_points(level: float) -> float:
    """Returns the points (0 to 100) of a level from 1 to 10, to one decimal as the benchmark reports them."""
    return round((level - 1) * 100 / 9, 1)


def severity_points(severities: Sequence[int], character_turns: int) -> float:
    """Returns the points (0 to 100) of a dimension with these flaws: longer scenes may have more of them.

    Clamps 100 - 5 (sum of severities - 0.3 turns), the formula of the paper.
    """
    return min(100.0, max(0.0, 100.0 - 5.0 * (sum(severities) - 0.3 * character_turns)))
