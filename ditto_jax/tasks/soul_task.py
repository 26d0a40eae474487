"""What every task of the suite shares: where rows come from, the options that all have, and where words stand.

In: a source. Out: examples through the task's own generator, public-file reader or released-row reader. A task supplies
those three (or says that it lacks one), prompts, score and words. It plays no episode and scores nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ditto_jax.errors import ConfigError
from ditto_jax.rollouts.feedback import PLACEMENTS, with_feedback
from ditto_jax.tasks.base import FeedbackReply, JudgeRequest, Source, Task
from ditto_jax.tasks.data_files import take
from ditto_jax.tasks.option_checks import check_at_least, check_choice
from ditto_jax.tasks.source import needed_limit, needed_path
from ditto_jax.types import Chat, Example, Message

REWARDS = ("recommended", "release")


class HasPlacement(Protocol):
    """Options say where words stand in the prompt."""

    @property
    def feedback_placement(self) -> str: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoulOptions:
    """Options of every task that has no reason for others.

    reward: "recommended", or "release" for the variant that the released code computes (where the two differ).
    gold_in_prompt: the release's variants in which feedback or the refined prompt shows the reference; leaks are then
    let through. Figures made with it say so. feedback_placement: "end_of_user" or "system".
    max_words: the longest text of a row that prompts show, in words; longer ones lose their middle, under x and (x, h)
    alike.
    """

    reward: str = "recommended"
    gold_in_prompt: bool = False
    feedback_placement: str = "end_of_user"
    max_words: int = 4000

    def __post_init__(self):
        check_choice("options.reward", self.reward, REWARDS)
        check_choice("options.feedback_placement", self.feedback_placement, PLACEMENTS)
        check_at_least("options.max_words", self.max_words, 2, example=4000)


OptionsT = TypeVar("OptionsT", bound=HasPlacement)


class SoulTask(Task[OptionsT], Generic[OptionsT]):
    """A task of the suite: `sources` says which of the three ways to load it has, and the splits of each."""

    def load(self, source: Source) -> Sequence[Example]:
        """Returns examples of a source. Raises ConfigError, MissingInputError or DataError saying what to change."""
        if source.kind not in ("generated", "files", "parquet"):
            raise ConfigError(
                f"source.kind={source.kind!r}: must be generated, files or parquet; for example 'generated'"
            )
        if source.kind not in self.sources:
            kinds = ", ".join(self.sources)
            raise ConfigError(f"source.kind={source.kind!r}: task {self.name!r} has no such source; it has {kinds}")
        if source.kind == "generated":
            examples = self.generate(source.split, needed_limit(source), source.seed)
            source.rows.found += len(examples)
            return examples
        path = needed_path(source, self.name)
        if source.kind == "files":
            return take(self.read_files(path, source), source.limit)
        # Imported here: reading parquet needs pyarrow, which nothing else does.
        from ditto_jax.tasks.parquet import read_parquet

        return read_parquet(path, self, source)

    def generate(self, split: str, count: int, seed: int) -> list[Example]:
        """Returns `count` generated examples of a split; the same seed gives the same, splits share no story."""
        raise NotImplementedError(f"task {self.name} lists 'generated' in `sources` but generates nothing")

    def read_files(self, path: Path, source: Source) -> list[Example]:
        """Returns all examples of `source.split` in the public file or folder at `path`; rows go through
        `source.rows`.
        """
        raise NotImplementedError(f"task {self.name} lists 'files' in `sources` but reads none")

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        """Returns the example of one `extra_info` of a released parquet file. Raises DataError (file, row, field)."""
        raise NotImplementedError(f"task {self.name} lists 'parquet' in `sources` but reads no row")

    def placed(self, chat: Chat, feedback: str | None) -> tuple[Message, ...]:
        """Returns x, or (x, h) with h where the options say."""
        return tuple(chat) if feedback is None else with_feedback(chat, feedback, self.options.feedback_placement)

    def leak(self, example: Example, feedback: str) -> str:
        if getattr(self.options, "gold_in_prompt", False):
            return ""
        return super().leak(example, feedback)

    def words_request(self, system: str, user: str) -> JudgeRequest:
        """Returns the question for words about a draft; `user` holds policy text only inside `fence`."""
        from ditto_jax.judge.fence import FENCE_NOTE

        ending = f'{FENCE_NOTE}\nReply as JSON: {{"feedback": "..."}}.'
        messages = (Message("system", f"{system}\n{ending}"), Message("user", user))
        return JudgeRequest(messages, FeedbackReply, prompt_version=f"{self.name}-feedback-{self.version}")
