"""Rollouts of a step → where the judge fails: calls and failures by the length of what was judged, and by its score.

Timeouts hit long drafts, and refusals odd ones, so that what is left to learn from is no fair sample; these counts show
it. Out: named numbers for metrics.jsonl, and the names taken apart again for the report. Rules are no calls.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from ditto_jax.judge.health import is_failure
from ditto_jax.rollouts.rollout import POLICY
from ditto_jax.runs.readings import number
from ditto_jax.types import Feedback, Outcome, Rollout, RolloutRole, Verdict

_LEAST_LENGTH = 16
_NOT_ASKED = ("rules@", "proxy@", "content_free", "filter", "none")
_NAME = re.compile(r"judge/(score|feedback)_by_(length|score)/([^/]+)/(asked|failed)_count")


@dataclasses.dataclass(frozen=True)
class FailureRate:
    """Calls of one kind about rollouts of one bucket. area: "score" or "feedback". bucket: for people. measure: what
    the buckets are of, "length" or "score".
    """

    area: str
    bucket: str
    asked: int
    failed: int
    measure: str = "length"


def failure_counts(rollouts: Sequence[Rollout]) -> dict[str, int]:
    """Returns `judge/<area>_by_<measure>/<bucket>/{asked,failed}_count` for every bucket that occurs.

    Buckets of lengths are named by their largest number of sampled tokens, a power of two; those of scores, which only
    feedback has, by the quarter that they reach up to.
    """
    counts: Counter[str] = Counter()
    for rollout in rollouts:
        if rollout.role is RolloutRole.REFLECTION:  # the refined rollouts score it
            continue
        length = f"length/{_length_bucket(rollout)}"
        if is_call(rollout.verdict.judge):
            _count(counts, f"judge/score_by_{length}", rollout.verdict)
        feedback = rollout.feedback
        if feedback is not None and feedback.judge != POLICY and is_call(feedback.judge):
            _count(counts, f"judge/feedback_by_{length}", feedback)
            _count(counts, f"judge/feedback_by_score/{_score_bucket(rollout.verdict.score or 0.0)}", feedback)
    return dict(sorted(counts.items()))


def failure_rates(rows: Sequence[Mapping[str, object]]) -> list[FailureRate]:
    """Returns what such counts of all rows of metrics.jsonl sum to, lengths first, in ascending order of buckets."""
    sums: Counter[tuple[str, str, float, str]] = Counter()
    for row in rows:
        for name, value in row.items():
            found = _NAME.fullmatch(name)
            if found and isinstance(value, int):
                area, measure, bucket, what = found.groups()
                sums[measure, area, float(bucket), what] += value
    groups = sorted({key[:3] for key in sums})
    return [
        FailureRate(area, _in_words(measure, bucket), sums[measure, area, bucket, "asked"], failed, measure)
        for measure, area, bucket in groups
        for failed in (sums[measure, area, bucket, "failed"],)
    ]


def outcome_totals(rows: Sequence[Mapping[str, object]], area: str) -> dict[str, int]:
    """Returns outcome → how often it occurred over all rows of metrics.jsonl; empty if none was counted.

    area: "score" or "feedback".
    """
    names = {f"judge/{area}_{outcome.value}_count": outcome.value for outcome in Outcome}
    totals: Counter[str] = Counter()
    for row in rows:
        for name in row.keys() & names.keys():
            totals[names[name]] += int(number(row, name) or 0)
    return {outcome.value: totals[outcome.value] for outcome in Outcome} if totals.total() else {}


def _count(counts: Counter[str], name: str, result: Verdict | Feedback) -> None:
    counts[f"{name}/asked_count"] += 1
    counts[f"{name}/failed_count"] += is_failure(result)


def is_call(judge: str) -> bool:
    """Returns whether somebody was asked: scores and words by rules, filters and nobody cannot time out."""
    return not judge.startswith(_NOT_ASKED)


def _length_bucket(rollout: Rollout) -> int:
    length = sum(int(transcript.loss_mask.sum()) for transcript in rollout.transcripts.values())
    bucket = _LEAST_LENGTH
    while bucket < length:
        bucket *= 2
    return bucket


def _score_bucket(score: float) -> str:
    return next((f"{quarter}" for quarter in (0.25, 0.5, 0.75) if score <= quarter), "1.0")


def _in_words(measure: str, bucket: float) -> str:
    return f"up to {bucket:g} tokens" if measure == "length" else f"draft scored up to {bucket:g}"
