"""The task `twinvoice`: which of four replies a person wrote, as a lettered choice.

In: TwinBench's public items (a test set) or released parquet rows. Out: prompts with what the person wrote before, a
0/1 score, and a request for words about a habit of tone or wording that was overlooked. There is no generator: made-up
persons would teach nothing about real ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ditto_jax.reply_form import ReplyForm, tagged
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.choice_task import LETTERS, ChoiceTask, lettered
from ditto_jax.tasks.dialogue import cut_middle
from ditto_jax.tasks.leak import reference_ngram
from ditto_jax.tasks.option_checks import check_at_least
from ditto_jax.tasks.soul_task import SoulOptions
from ditto_jax.tasks.splits import SPLITS
from ditto_jax.tasks.twinvoice.files import read_twinvoice, twinvoice_released
from ditto_jax.types import Example, Message

_TASK = (
    "Below are things that one person wrote or said, then a situation and four replies to it. One reply is this "
    "person's own; the others are by other people. Find it by how the person speaks: tone, choice of words, length, "
    "punctuation, habits and concerns. That a reply is sensible says nothing, as all of them are."
)
_FORM = (
    "Reason briefly inside <reasoning></reasoning>, then give one letter, and nothing else, as <answer>letter</answer>."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwinVoiceOptions(SoulOptions):
    """Options of the task `twinvoice`, beside those of every task.

    max_history: how many of the person's earlier words are shown, the latest ones.
    """

    max_history: int = 30

    def __post_init__(self):
        super().__post_init__()
        check_at_least("tasks.twinvoice.options.max_history", self.max_history, 1, example=30)


class TwinVoice(ChoiceTask[TwinVoiceOptions]):
    """Accuracy of knowing a person by their words, by dimension and by whether the situation quotes the reply."""

    name = "twinvoice"
    version = "1"
    options_type = TwinVoiceOptions
    sources: ClassVar = {"files": ("test",), "parquet": SPLITS}

    def read_files(self, path: Path, source: Source) -> list[Example]:
        return read_twinvoice(path, source.split, source.rows)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return twinvoice_released(file, where, example_id, info)

    def evaluation_only(self, source: Source) -> str:
        return "the public TwinBench items are its test set" if source.kind == "files" else ""

    def prompt(self, example: Example) -> tuple[Message, ...]:
        return (Message("user", f"{_TASK}\n\n{self.question_text(example)}\n\n{_FORM}"),)

    def reply_form(self, example: Example, role: str, turn: int) -> ReplyForm | None:
        letters = (letter for letter, text in zip(LETTERS, example.payload["options"], strict=False) if text)
        return tagged(letters, before="<reasoning>", after="</reasoning>")

    def question_text(self, example: Example) -> str:
        payload = example.payload
        words = "\n".join(f"- {' '.join(text.split())}" for text in self._shown_history(example))
        sections = (
            f"What the person wrote before:\n{cut_middle(words, self.options.max_words)}",
            f"The situation:\n{cut_middle(str(payload['anchor']), self.options.max_words)}",
            f"The replies:\n{lettered(tuple(payload['options']))}",
        )
        return "\n\n".join(sections)

    def _shown_history(self, example: Example) -> tuple[str, ...]:
        return tuple(example.payload["history"])[-self.options.max_history :]

    @property
    def coaching(self) -> str:
        if self.options.gold_in_prompt:
            return "In one sentence, say what in the person's earlier words shows that the referenced reply is theirs."
        return (
            "You coach someone who was to find the reply that a certain person wrote, and chose another one. In one "
            "sentence, point at one concrete habit of this person that they overlooked: of tone, wording, length, "
            "punctuation or concern, as it shows in the person's earlier words. Speak of these earlier words alone: "
            "never name, quote, describe or rule out any of the four replies."
        )

    def leak(self, example: Example, feedback: str) -> str:
        """Names the broken rule of the common filter, or "reference_ngram" for eight words in a row of the reply."""
        if self.options.gold_in_prompt:
            return ""
        return super().leak(example, feedback) or reference_ngram(feedback, example.gold)

    def groups(self, example: Example) -> frozenset[str]:
        return frozenset({str(example.payload["group"])})

    def breakdown(self, example: Example) -> Mapping[str, str]:
        payload = example.payload
        quoted = _plain(example.gold) in _plain(str(payload["anchor"]))
        return {
            "dimension": str(payload["dimension"]),
            "gold": str(payload["gold_letter"]),
            "situation": "quotes the reply" if quoted else "does not quote it",
        }


def _plain(text: str) -> str:
    """Words alone, between spaces, so that a word is only found as a whole."""
    return f" {' '.join(''.join(c if c.isalnum() else ' ' for c in text.casefold()).split())} "
