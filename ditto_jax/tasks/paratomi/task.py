"""The task `paratomi`: where people look for a moved object, answered by naming the place (ToMi, ParaToMi).

In: generated stories, the public ToMi files, or released parquet rows. Out: prompts, and how an answer names a
container: exactly one candidate, as whole words. Scoring, feedback and demonstrations are those of every belief task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ditto_jax.reply_form import ReplyForm, tagged, tagged_words
from ditto_jax.tasks.answers import answer_text, named_candidates
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.belief.oracle import TOMI
from ditto_jax.tasks.belief.task import BeliefTask
from ditto_jax.tasks.paratomi.candidates import story_candidates
from ditto_jax.tasks.paratomi.files import paratomi_released, read_paratomi
from ditto_jax.tasks.paratomi.generator import ParaToMiOptions, generate_paratomi
from ditto_jax.tasks.splits import SPLITS
from ditto_jax.types import Example

_TASK = (
    "You watch a story from the outside and answer a question about it. People notice only what happens in the place "
    "where they are. An object that was moved is no longer where it was before. Answer with the most exact place: if "
    "the object is in A and A is in B, the answer is A."
)
_INSTRUCTION = "Give the place, and nothing else, as <answer>place</answer>."


class ParaToMi(BeliefTask[ParaToMiOptions]):
    """Reality, memory and belief questions of order 1 and 2 with open short answers; accuracy by question type."""

    name = "paratomi"
    version = "1"
    options_type = ParaToMiOptions
    sources: ClassVar = {"generated": SPLITS, "files": SPLITS, "parquet": SPLITS}
    rules = TOMI
    rules_in_brief = (
        "People notice only what happens in the place where they are. Who enters a place sees where everything in it "
        "is. An object that was moved is no longer where it was before."
    )

    @property
    def answer_thing(self) -> str:
        return "place"

    def generate(self, split: str, count: int, seed: int) -> list[Example]:
        return generate_paratomi(self.options, split, count, seed)

    def read_files(self, path: Path, source: Source) -> list[Example]:
        return read_paratomi(path, source.split, source.rows)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return paratomi_released(file, where, example_id, info)

    @property
    def instructions(self) -> str:
        return f"{_TASK} {_INSTRUCTION}"

    def full_story(self, example: Example) -> str:
        """Returns the story as one paragraph, without the numbers of its lines."""
        return " ".join(re.sub(r"^\d+\s+", "", line) for line in self.story_text(example).splitlines() if line.strip())

    def question_section(self, example: Example) -> str:
        question = str(example.payload["question"])
        candidates = example.payload.get("cands") or ()
        if not self.options.list_candidates or not candidates:
            return question
        listed = ", ".join(candidates)
        return f"{question}\n{listed}" if self.options.prompt_style == "compact" else f"{question}\nOne of: {listed}"

    def reply_form(self, example: Example, role: str, turn: int) -> ReplyForm | None:
        """Returns reasoning, then a place in the tag: one of the candidates where the prompt lists them."""
        candidates = example.payload.get("cands") or ()
        return tagged(candidates) if self.options.list_candidates and candidates else tagged_words()

    def answered_container(self, example: Example, reply: str) -> str | None:
        """Returns the plain name of the one candidate that the answer tag names.

        Without `cands` in the row, the candidates are all containers and places that the story names.
        """
        text = answer_text(reply)
        if not text:
            return None
        candidates = example.payload.get("cands") or story_candidates(str(example.payload["story"]), example.gold)
        named = named_candidates(text, [*candidates, example.gold])
        return named.pop() if len(named) == 1 else None

    def answer_for(self, example: Example, container: str) -> str:
        return container

    def breakdown(self, example: Example) -> Mapping[str, str]:
        """Question type without the running number of the character asked first, and the order."""
        kind = re.sub(r"_[01]_", "_", str(example.payload["question_type"])) or "unknown"
        return {"order": str(example.payload["question_order"]), "type": kind}
