"""The task `hitom`: nested beliefs about an object's place, as a lettered choice (Hi-ToM).

In: generated stories, the official file, or released parquet rows. Out: prompts that state the assumptions of the
benchmark, and how a letter names a container. Scoring, feedback and demonstrations are those of every belief task.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from ditto_jax.tasks.answers import answer_letter
from ditto_jax.tasks.belief import HITOM
from ditto_jax.tasks.belief_task import BeliefTask
from ditto_jax.tasks.hitom_files import read_choices, read_hitom
from ditto_jax.tasks.hitom_generator import HiToMOptions, generate_hitom
from ditto_jax.types import Example

_TASK = (
    "Below is a story, told in the order in which things happened, and a multiple-choice question about it. Work out "
    "the answer under the assumptions listed here."
)
_ASSUMPTIONS = (
    "Whoever is in a place notices everything that happens there until leaving it.",
    "One person can work out what another thinks only if the two were in one place together or talked to each other.",
    "Everyone is inclined to lie. What someone says does not change what the speaker thinks. A listener believes a "
    "speaker who left the room later than the listener did, and everybody knows who left in which order.",
    "A private talk is known to be heard by nobody else; a public claim is known to be heard by everyone.",
)
_INSTRUCTION = "Reason step by step. Then give only the letter of your choice as <answer>letter</answer>."


@functools.lru_cache(maxsize=4096)
def _options_of(choices: str) -> Mapping[str, str]:
    return read_choices(choices) or {}


class HiToM(BeliefTask[HiToMOptions]):
    """Belief questions of order 0 to 4 with lettered options; accuracy by deception, length and order."""

    name = "hitom"
    version = "1"
    options_type = HiToMOptions
    rules = HITOM
    answer_thing = "letter"
    rules_in_brief = " ".join(_ASSUMPTIONS)

    def generate(self, split: str, count: int, seed: int) -> list[Example]:
        return generate_hitom(self.options, split, count, seed)

    def read_files(self, path: Path, split: str, limit: int | None) -> list[Example]:
        return read_hitom(path, split, limit)

    def prompt(self, example: Example) -> str:
        if self.options.prompt_style == "compact":
            return f"{self.story_text(example)}\n{self.question_section(example)}"
        assumptions = "\n".join(f"{i}. {text}" for i, text in enumerate(_ASSUMPTIONS, start=1))
        extra = str(example.payload.get("extra_info") or "")
        sections = [
            f"{_TASK}\n{assumptions}\n{_INSTRUCTION}",
            f"## Story\n{self.story_text(example)}",
            *([f"## Further information\n{extra}"] if extra else []),
            f"## Question\n{self.question_section(example)}",
        ]
        return "\n\n".join(sections)

    def question_section(self, example: Example) -> str:
        choices = str(example.payload["choices"])
        if self.options.prompt_style == "compact":
            # Text before letter, as in the worked replies: a small policy copies what followed a word before.
            choices = ", ".join(f"{text} {letter}" for letter, text in _options_of(choices).items()) or choices
            return f"{example.payload['question']} {choices}"
        return f"{example.payload['question']}\n{choices}"

    def answered_container(self, example: Example, reply: str) -> str | None:
        letter = answer_letter(reply)
        return None if letter is None else _options_of(str(example.payload["choices"])).get(letter)

    def answer_for(self, example: Example, container: str) -> str:
        options = _options_of(str(example.payload["choices"]))
        return next(letter for letter, text in options.items() if text == container)

    def breakdown(self, example: Example) -> Mapping[str, str]:
        payload = example.payload
        return {
            "order": str(payload["question_order"]),
            "deception": str(payload["deception"]),
            "length": str(payload["story_length"]),
        }
