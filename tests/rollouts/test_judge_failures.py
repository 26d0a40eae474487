"""Failures of a judge are counted by the length of what was judged and by its score, so that an unfair loss is seen."""

from __future__ import annotations

import numpy as np
import pytest

from ditto_jax.report.findings import outcome_lines
from ditto_jax.report.rollout_reading import RolloutReading
from ditto_jax.rollouts.judge_failures import FailureRate, failure_counts, failure_rates
from ditto_jax.types import (
    Author,
    Conversation,
    Example,
    Feedback,
    FinishReason,
    Outcome,
    Rollout,
    RolloutRole,
    Span,
    Transcript,
    Verdict,
)

MODEL = "openai:judge@1"


def rollout(length: int, score: float | None, words: Outcome | None = None, judge: str = MODEL) -> Rollout:
    """A draft of so many tokens, with a score (None: its judge timed out) and feedback of some outcome."""
    spans = (Span(0, 3, Author.CONTEXT), Span(3, 3 + length, Author.POLICY))
    ids = np.zeros(3 + length, np.int32)
    transcript = Transcript(ids, np.zeros(3 + length, np.float32), spans, 3, FinishReason.STOP)
    verdict = Verdict(Outcome.OK if score is not None else Outcome.TIMED_OUT, score=score, judge=judge)
    feedback = None if words is None else Feedback(words, text="why?" if words is Outcome.OK else None, judge=judge)
    example = Example("quiz", "1", {}, "")
    transcripts = {"policy": transcript}
    return Rollout(example, RolloutRole.DRAFT, 0, 0, transcripts, Conversation((), "x"), verdict, feedback)


def test_counts_go_to_the_bucket_that_the_length_or_score_fits_into():
    rollouts = [
        rollout(5, 0.25, Outcome.OK),
        rollout(16, 0.2, Outcome.UNPARSABLE),
        rollout(17, 0.9, Outcome.REFUSED),  # declining to comment is no failure
        rollout(300, None),
    ]
    assert failure_counts(rollouts) == {
        "judge/score_by_length/16/asked_count": 2,
        "judge/score_by_length/16/failed_count": 0,
        "judge/score_by_length/32/asked_count": 1,
        "judge/score_by_length/32/failed_count": 0,
        "judge/score_by_length/512/asked_count": 1,
        "judge/score_by_length/512/failed_count": 1,
        "judge/feedback_by_length/16/asked_count": 2,
        "judge/feedback_by_length/16/failed_count": 1,
        "judge/feedback_by_length/32/asked_count": 1,
        "judge/feedback_by_length/32/failed_count": 0,
        "judge/feedback_by_score/0.25/asked_count": 2,
        "judge/feedback_by_score/0.25/failed_count": 1,
        "judge/feedback_by_score/1.0/asked_count": 1,
        "judge/feedback_by_score/1.0/failed_count": 0,
    }


@pytest.mark.parametrize("judge", ["rules@quiz-1", "proxy@quiz-1", "filter", "none", "content_free"])
def test_who_cannot_fail_is_not_counted(judge: str):
    assert failure_counts([rollout(5, 0.0, Outcome.OK, judge)]) == {}


def test_steps_add_up_in_the_order_of_their_buckets_and_stand_in_the_report():
    rows = [failure_counts([rollout(5, 0.0), rollout(300, None)]), failure_counts([rollout(1000, None), rollout(9, 1)])]
    assert failure_rates(rows) == [
        FailureRate("score", "up to 16 tokens", 2, 0),
        FailureRate("score", "up to 512 tokens", 1, 1),
        FailureRate("score", "up to 1024 tokens", 1, 1),
    ]
    lines = [line for line in outcome_lines(rows, RolloutReading(), {}) if "tokens" in line.what]
    assert [(line.count, line.total) for line in lines] == [(0, 2), (1, 1), (1, 1)]
    healthy = [failure_counts([rollout(5, 0.0)])]
    assert not [line for line in outcome_lines(healthy, RolloutReading(), {}) if "tokens" in line.what]
