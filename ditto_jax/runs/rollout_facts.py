"""Records of rollouts → the few facts about each that counting needs: scores, outcomes, lengths, digests of texts.

In: rows of rollouts/step_<n>.jsonl.gz. Out: `RolloutFact`s, small enough to keep for a whole run. Texts themselves stay
in the files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ditto_jax.rollouts.judge_failures import is_call
from ditto_jax.rollouts.rollout import POLICY
from ditto_jax.types import Author


@dataclasses.dataclass(frozen=True, slots=True)
class RolloutFact:
    """What is counted of one rollout.

    reply: number that is equal in this process for equal replies. length: characters of everything that the policy
    said. asked: whether a judge was called for the score; asked_words: for words about it. words: like `reply`, of
    words that may be used, else None. is_finite: whether the log-probs of all that was sampled are. second: score of
    the shadow judge.
    """

    step: int
    prompt_index: int
    prompt_id: str
    sample: int
    role: str
    task: str
    reply: int
    length: int
    score: float | None
    outcome: str
    asked: bool
    asked_words: bool
    words_outcome: str | None
    words: int | None
    is_leaked: bool
    is_truncated: bool
    is_finite: bool
    second: float | None

    @property
    def group(self) -> tuple[int, int]:
        """The group of drafts that it belongs to."""
        return self.step, self.prompt_index

    @property
    def slot(self) -> tuple[int, int, int]:
        """The draft that it is, or was made of."""
        return self.step, self.prompt_index, self.sample


def fact_of(step: int, row: Mapping[str, Any]) -> RolloutFact:
    """Returns the facts of one record; what it lacks is empty, zero or None."""
    feedback = row.get("feedback") or {}
    by_judge = bool(feedback) and feedback.get("judge") != POLICY
    reply = str(row.get("reply", ""))
    said = [str(turn.get("text", "")) for turn in row.get("turns") or [] if turn.get("author") == Author.POLICY] or [
        reply
    ]
    usable = feedback.get("text") if feedback.get("outcome") == "ok" and not feedback.get("leak") else None
    return RolloutFact(
        step=step,
        prompt_index=int(row.get("prompt_index") or 0),
        prompt_id=str(row.get("prompt_id", "")),
        sample=int(row.get("sample") or 0),
        role=str(row.get("role", "")),
        task=str(row.get("task", "")),
        reply=hash(reply),
        length=sum(map(len, said)),
        score=row.get("score"),
        outcome=str(row.get("outcome", "")),
        asked=row.get("role") != "reflection" and is_call(str(row.get("judge", ""))),
        asked_words=by_judge and is_call(str(feedback.get("judge", ""))),
        words_outcome=str(feedback["outcome"]) if by_judge and "outcome" in feedback else None,
        words=None if usable is None else hash(usable),
        is_leaked=bool(feedback.get("leak")),
        is_truncated=bool(row.get("truncated")),
        is_finite=all(math.isfinite(sum(values)) for values in (row.get("logprobs") or {}).values()),
        second=(row.get("shadow") or {}).get("score"),
    )
