"""The task `hitom`: nested beliefs about an object's place, as a lettered choice (Hi-ToM).

In: generated stories, the official file, or released parquet rows. Out: prompts that state the assumptions of the
benchmark, and how a letter names a container. Scoring, feedback and demonstrations are those of every belief task.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ditto_jax.reply_form import ReplyForm, tagged, tagged_words
from ditto_jax.tasks.answers import answer_letter, answer_text, plain_name
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.belief.oracle import HITOM
from ditto_jax.tasks.belief.task import BeliefTask
from ditto_jax.tasks.hitom.files import hitom_released, read_choices, read_hitom
from ditto_jax.tasks.hitom.generator import HiToMOptions, generate_hitom
from ditto_jax.tasks.splits import SPLITS
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
_INSTRUCTIONS = {
    "letter": "Reason step by step. Then give only the letter of your choice as <answer>letter</answer>.",
    "text": "Reason step by step. Then give only the words of your choice as <answer>words</answer>.",
}


@functools.lru_cache(maxsize=4096)
def _options_of(choices: str) -> Mapping[str, str]:
    return read_choices(choices) or {}


class HiToM(BeliefTask[HiToMOptions]):
    """Belief questions of order 0 to 4 with lettered options; accuracy by deception, length and order."""

    name = "hitom"
    version = "1"
    options_type = HiToMOptions
    sources: ClassVar = {"generated": SPLITS, "files": ("test",), "parquet": SPLITS}
    rules = HITOM
    rules_in_brief = " ".join(_ASSUMPTIONS)

    @property
    def answer_thing(self) -> str:
        return "letter" if self.options.answer_format == "letter" else "place"

    def generate(self, split: str, count: int, seed: int) -> list[Example]:
        return generate_hitom(self.options, split, count, seed)

    def read_files(self, path: Path, source: Source) -> list[Example]:
        return read_hitom(path, source.split, source.rows)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return hitom_released(file, where, example_id, info)

    @property
    def instructions(self) -> str:
        assumptions = "\n".join(f"{i}. {text}" for i, text in enumerate(_ASSUMPTIONS, start=1))
        return f"{_TASK}\n{assumptions}\n{_INSTRUCTIONS[self.options.answer_format]}"

    def question_section(self, example: Example) -> str:
        question, choices = str(example.payload["question"]), str(example.payload["choices"])
        if self.options.prompt_style == "full":
            return f"{question}\n{choices}"
        return question if self.options.answer_format == "text" else f"{question}\n{choices}"

    def reply_form(self, example: Example, role: str, turn: int) -> ReplyForm | None:
        """Returns reasoning, then a letter or the words of an option in the tag; words of one's own where the prompt
        lists no options.
        """
        options = _options_of(str(example.payload["choices"]))
        if self.options.answer_format == "letter":
            return tagged(options) if options else None
        return tagged(options.values()) if options and self.options.prompt_style == "full" else tagged_words()

    def answered_container(self, example: Example, reply: str) -> str | None:
        options = _options_of(str(example.payload["choices"]))
        if self.options.answer_format == "letter":
            letter = answer_letter(reply)
            return None if letter is None else options.get(letter)
        answer = plain_name(answer_text(reply) or "")
        return next((text for text in options.values() if plain_name(text) == answer), None)

    def answer_for(self, example: Example, container: str) -> str:
        if self.options.answer_format == "text":
            return container
        options = _options_of(str(example.payload["choices"]))
        return next(letter for letter, text in options.items() if text == container)

    def breakdown(self, example: Example) -> Mapping[str, str]:
        payload = example.payload
        return {
            "order": str(payload["question_order"]),
            "deception": str(payload["deception"]),
            "length": str(payload["story_length"]),
        }
