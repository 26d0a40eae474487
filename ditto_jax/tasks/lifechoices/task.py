"""The task `lifechoices`: which way a character of a novel decides, as a choice between four letters.

In: the authors' file or released parquet rows. Out: prompts in which the memory stands before the instructions, so that
a cut memory never takes them away, and is cut alike with and without words. Strict scoring is that of every lettered
choice; the released code's extraction, which finds a letter in almost any reply, is the variant `release`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ditto_jax.tasks.answers import visible_text
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.choice_task import ChoiceTask, lettered
from ditto_jax.tasks.dialogue import cut_middle
from ditto_jax.tasks.lifechoices.files import book_group, lifechoices_row, read_lifechoices
from ditto_jax.tasks.soul_task import SoulOptions
from ditto_jax.tasks.splits import SPLITS
from ditto_jax.types import Example, Message

_INSTRUCTIONS = (
    "You are {character}, at this point of your life. What you remember and what you are like count, not what would be "
    "wise or kind in general, and nothing of what may happen later. Think step by step about which option is yours, "
    "then give its letter alone, as <answer>letter</answer>."
)
# Tried in this order on the reply in upper case, as the released code does.
_RELEASE = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\A\s*([A-D])\s*\Z",
        r"<ANSWER>\s*([A-D])\s*</ANSWER>",
        r"\A\s*([A-D])[.,:;)]",
        r"\b(?:CHOICE|ANSWER)\b\W*(?:IS\W+)?([A-D])\b",
        r"\(([A-D])\)",
        r"\b([A-D])[.\s]*\Z",
        r"([A-D])",
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LifeChoicesOptions(SoulOptions):
    """Options of the task `lifechoices`: those of every task (max_words: of the memory that prompts show)."""


class LifeChoices(ChoiceTask[LifeChoicesOptions]):
    """Accuracy of predicting characters' decisions."""

    name = "lifechoices"
    version = "1"
    options_type = LifeChoicesOptions
    sources: ClassVar = {"files": SPLITS, "parquet": SPLITS}

    def read_files(self, path: Path, source: Source) -> list[Example]:
        return read_lifechoices(path, source.split, source.rows)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return lifechoices_row(file, where, example_id, info)

    def prompt(self, example: Example) -> tuple[Message, ...]:
        instructions = _INSTRUCTIONS.format(character=example.payload["character"])
        return (Message("user", f"{self.question_text(example)}\n\n## What to do\n{instructions}"),)

    def question_text(self, example: Example) -> str:
        payload = example.payload
        sections = (
            f"## Character\n{payload['character']}, of the novel “{payload['book']}”",
            f"## Memory\n{cut_middle(str(payload['memory']), self.options.max_words)}",
            f"## Scene\n{payload['scenario']}",
            f"## Decision\n{payload['question']}\n{lettered(tuple(payload['options']))}",
        )
        return "\n\n".join(sections)

    @property
    def coaching(self) -> str:
        return (
            "You coach someone who plays a character of a novel and decides as the character would. Their decision was "
            "not the character's. In one sentence, name the trait, the value or the memory that they overlooked, from "
            "the text above the scene. Describe no option, and name neither the decision nor its letter."
        )

    def chosen(self, example: Example, reply: str) -> str | None:
        if self.options.reward != "release":
            return super().chosen(example, reply)
        text = visible_text(reply).upper()
        return next((match[1] for pattern in _RELEASE if (match := pattern.search(text))), None)

    def groups(self, example: Example) -> frozenset[str]:
        return frozenset({book_group(example)})

    def breakdown(self, example: Example) -> Mapping[str, str]:
        return {"target": str(example.payload["gold_letter"])}
