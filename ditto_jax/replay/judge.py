"""The judge of a replay: says about a rollout what the record says was said about it. Asks nobody.

draft rollout → **recorded verdict and words** → refined rollout. In: the recorded rollouts of a step. Out: a judge like
any other, whatever the run's own was. What was said about other words than those at hand is never passed on: the
outcome is then "unavailable", and says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ditto_jax.keys import SampleId
from ditto_jax.replay.past import Row
from ditto_jax.rollouts.rollout import POLICY
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Verdict

_RECORD = "record"  # in the place of a judge's name


class RecordedJudge:
    """rows_of: step → its recorded rollouts, in the form of `records.rollout_rows`."""

    def __init__(self, rows_of: Callable[[int], Sequence[Row]]):
        self._rows_of = rows_of
        self._step = -1
        self._rows: dict[tuple[str, str, int], list[Row]] = {}

    @property
    def identity(self) -> str:
        return _RECORD

    async def check(self) -> None:
        """Returns at once: the records are there."""

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        """Returns the recorded verdict, that of the judge who gave it."""
        row = self._find(key, conversation)
        if row is None:
            return Verdict(Outcome.UNAVAILABLE, judge=_RECORD, detail=_why(key))
        return Verdict(
            Outcome(row["outcome"]), row["score"], row["dimensions"], row["critique"], row["judge"], row["detail"]
        )

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        """Returns the recorded words: as they were used, so after shuffling and after the leak filter."""
        row = self._find(key, conversation)
        said = None if row is None else row["feedback"]
        if said is not None and said["judge"] == POLICY:  # what a judge had said stands at the policy's reflection
            said = next((found["feedback"] for found in self._at(key, "reflection")), None)
        if said is None:
            return Feedback(Outcome.UNAVAILABLE, judge=_RECORD, detail=_why(key))
        return Feedback(Outcome(said["outcome"]), said["text"], said["judge"], said["leak"], said["detail"])

    def counters(self) -> Mapping[str, float]:
        """Nothing: nobody was asked."""
        return {}

    async def aclose(self) -> None:
        """Returns at once: nothing is open."""

    def _find(self, key: SampleId, conversation: Conversation) -> Row | None:
        """The record of this very conversation; of prompts that a step has twice, whichever is equal."""
        return next((row for row in self._at(key, str(key.role)) if _is_about(row, conversation)), None)

    def _at(self, key: SampleId, role: str) -> list[Row]:
        if key.step != self._step:
            self._step, self._rows = key.step, {}
            for row in self._rows_of(key.step):
                self._rows.setdefault((row["prompt_id"], row["role"], row["sample"]), []).append(row)
        return self._rows.get((key.prompt_id, role, key.sample_index), [])


def _is_about(row: Row, conversation: Conversation) -> bool:
    prompt = [dataclasses.asdict(message) for message in conversation.messages[:-1]]
    turns = [dataclasses.asdict(turn) for turn in conversation.turns]
    return row["reply"] == conversation.reply and row["prompt"] == prompt and row["turns"] == turns


def _why(key: SampleId) -> str:
    return f"the run has no record of this {key.role} of {key.prompt_id}: what was said here differs from it"
