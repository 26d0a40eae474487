"""Results of one step → go on or stop: a judge that fails too often ends the run instead of training on what is left.

In: all verdicts, or all feedback, of a step. Out: nothing, or JudgeUnavailableError with counts and the first reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ditto_jax.errors import JudgeUnavailableError
from ditto_jax.types import Feedback, Outcome, Verdict


def require_healthy(
    results: Sequence[Verdict] | Sequence[Feedback], max_error_rate: float, step: int, least: int = 1
) -> None:
    """Returns nothing; raises JudgeUnavailableError if more than the fraction `max_error_rate` of `results` failed.

    A judge may decline to comment on a draft, so refused feedback is no failure; a refused score is. What a filter of
    ours discarded says nothing about the judge. Fewer than `least` results decide nothing.
    """
    failed = [result for result in results if is_failure(result)]
    if len(results) < max(1, least) or len(failed) <= max_error_rate * len(results):
        return
    counts = ", ".join(f"{outcome} {count}" for outcome, count in Counter(result.outcome for result in failed).items())
    what = "pieces of feedback" if isinstance(failed[0], Feedback) else "verdicts"
    raise JudgeUnavailableError(
        f"judge {failed[0].judge}: {len(failed)} of {len(results)} {what} of step {step} failed ({counts}), more than "
        f"judge.max_error_rate={max_error_rate:g}; first reason: {failed[0].detail or 'none given'}\n"
        "nothing of this step was learned; repair the judge and repeat the command to continue from the last checkpoint"
    )


def is_failure(result: Verdict | Feedback) -> bool:
    """Returns whether a call failed, as `require_healthy` counts."""
    declined = isinstance(result, Feedback) and result.outcome is Outcome.REFUSED
    declined = declined or result.outcome is Outcome.REJECTED  # by a filter of ours
    return result.outcome is not Outcome.OK and not declined
