"""Outcomes of a judge → cumulative counts, under fixed names so that every step logs the same columns.

In: each Verdict and Feedback as it is returned. Out: `score/<outcome>`, `feedback/<outcome>` and `feedback/leaked`.
Costs of calls are counted where they arise, in the client.
"""

from __future__ import annotations

from ditto_jax.types import Feedback, Outcome, Verdict


class OutcomeCounts:
    """Counts what a judge returned since it was made."""

    def __init__(self):
        self._counts = {f"{area}/{outcome}": 0 for area in ("score", "feedback") for outcome in Outcome}
        self._counts["feedback/leaked"] = 0

    def verdict(self, verdict: Verdict) -> Verdict:
        """Returns `verdict`, counted."""
        self._counts[f"score/{verdict.outcome}"] += 1
        return verdict

    def feedback(self, feedback: Feedback) -> Feedback:
        """Returns `feedback`, counted."""
        self._counts[f"feedback/{feedback.outcome}"] += 1
        self._counts["feedback/leaked"] += bool(feedback.leak)
        return feedback

    def as_dict(self) -> dict[str, float]:
        """Returns all counts, zeros included."""
        return dict(self._counts)
