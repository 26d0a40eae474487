"""Rollout → verdict and feedback by rule: the embedded judge, which needs no network and no key.

In: an example and what the policy said. Out: the task's own rule score, and words from its symbolic trace. The same
call key gives the same words. Tasks that have no rules
are scored by their labelled stand-in, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.counters import OutcomeCounts
from ditto_jax.judge.scoring import rule_verdict, rules_identity
from ditto_jax.judge.words import CONTENT_FREE, call_rng, content_free_control, named, screened_feedback
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Verdict


class RulesJudge:
    """Scores and comments by the task's own rules."""

    def __init__(self, config: JudgeConfig):
        self._content = config.feedback_content
        self._outcomes = OutcomeCounts()

    @property
    def identity(self) -> str:
        """ "rules", with the control arm if that is what writes the feedback; verdicts carry the task's version."""
        return named("rules", self._content)

    async def check(self) -> None:
        """Returns at once: rules are always there."""

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        """Returns the task's rule score or labelled stand-in; raises ConfigError if the task has neither."""
        return self._outcomes.verdict(rule_verdict(task, example, conversation))

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        """Returns words from the task's symbolic trace, screened for leaks; refused if the rules have nothing to say.

        The control arm replaces words exactly where usable ones exist, so that both arms refine under the same
        conditions.
        """
        feedback = self._rule_feedback(task, example, conversation, verdict, key)
        if self._content == CONTENT_FREE and feedback.usable:
            feedback = content_free_control(task, example, key)
        return self._outcomes.feedback(feedback)

    def counters(self) -> Mapping[str, float]:
        """Counts of outcomes since the start."""
        return self._outcomes.as_dict()

    async def aclose(self) -> None:
        """Returns at once: nothing is open."""

    def _rule_feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        identity = rules_identity(task)
        text = task.rule_feedback(example, conversation, verdict, call_rng(key, "rule_feedback"))
        if not text or not text.strip():
            detail = f"the rules of task {task.name} have nothing to say about this rollout"
            return Feedback(Outcome.REFUSED, judge=identity, detail=detail)
        return screened_feedback(task, example, text, judge=identity)
