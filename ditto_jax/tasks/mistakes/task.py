"""The task `mistakes`: which wrong option a pupil with a named misconception picks, as a lettered choice.

In: generated arithmetic with buggy rules (a stand-in), the open misconception examples (a substitute with options
made from answers), or released parquet rows. Out: prompts, a 0/1 score, and words that show the misconception's step on
other numbers.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ditto_jax.tasks.base import Source
from ditto_jax.tasks.choice_task import ChoiceTask, lettered
from ditto_jax.tasks.dialogue import cut_middle
from ditto_jax.tasks.mistakes.files import mistakes_released, read_mistakes
from ditto_jax.tasks.mistakes.generator import BUGS, generate_mistakes
from ditto_jax.tasks.soul_task import SoulOptions
from ditto_jax.tasks.splits import SPLITS
from ditto_jax.types import Conversation, Example, Message, Verdict

_SYSTEM = (
    "You play a pupil who holds a misconception. Given a problem and the misconception, find what this pupil would "
    "answer. That is not the correct answer: apply the misconception as the pupil does. If no option fits exactly, "
    "take the closest one. Think briefly, then give the letter of one option, and nothing else, as "
    "<answer>letter</answer>."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistakesOptions(SoulOptions):
    """Options of the task `mistakes`: those of every task (gold_in_prompt: feedback may name the pupil's answer)."""


class Mistakes(ChoiceTask[MistakesOptions]):
    """Accuracy of predicting a pupil's wrong option, by target option and misconception."""

    name = "mistakes"
    version = "1"
    options_type = MistakesOptions
    sources: ClassVar = {"generated": SPLITS, "files": SPLITS, "parquet": SPLITS}

    def generate(self, split: str, count: int, seed: int) -> list[Example]:
        return generate_mistakes(split, count, seed)

    def read_files(self, path: Path, source: Source) -> list[Example]:
        return read_mistakes(path, source.split, source.rows)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return mistakes_released(file, where, example_id, info)

    def prompt(self, example: Example) -> tuple[Message, ...]:
        return (Message("system", _SYSTEM), Message("user", self.question_text(example)))

    def question_text(self, example: Example) -> str:
        payload = example.payload
        question = cut_middle(str(payload["question"]), self.options.max_words)
        sections = (
            f"Problem:\n{question}",
            f"Options:\n{lettered(tuple(payload['options']))}",
            f"The pupil's misconception:\n{payload['misconception']}",
        )
        return "\n\n".join(sections)

    @property
    def coaching(self) -> str:
        if self.options.gold_in_prompt:
            return (
                "Write, as the pupil, the wrong reasoning that leads to the referenced answer, in one or two sentences."
            )
        return (
            "You coach someone who predicts what a pupil with a misconception answers. Their prediction was wrong. In "
            "one or two sentences, describe the step that the misconception makes the pupil take, and show it on other "
            "numbers than those of the problem. Never name the option, its letter or its value."
        )

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns the pupil's step on other numbers, for generated problems; about a missing answer, for all."""
        words = super().rule_feedback(example, conversation, verdict, rng)
        bug = BUGS.get(str(example.payload.get("bug") or ""))
        if words is not None or bug is None or verdict.score is None or verdict.score >= 1.0:
            return words
        return f"Think as this pupil does. {bug.shown_elsewhere(example.payload['numbers'], rng)}"

    def groups(self, example: Example) -> frozenset[str]:
        return frozenset({str(example.payload["group"])})

    def breakdown(self, example: Example) -> Mapping[str, str]:
        return {"target": str(example.payload["gold_letter"]), "source": str(example.payload["source"])}
