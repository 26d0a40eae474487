"""A run's numbers → what the report says about them: headlines, outcome table, and what is missing.

In: metrics rows, evaluation pairs and the reading of the rollouts. Out: short records of text for the page. Every
sentence follows from numbers in the run directory; none is stronger than its interval. Draws and writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ditto_jax.evaluation.comparison import (
    Control,
    Pair,
    reading_controls,
    show_interval,
    show_value,
    verdict_on_change,
)
from ditto_jax.objective import OBJECTIVES
from ditto_jax.report.rollout_reading import RolloutReading
from ditto_jax.rollouts.judge_failures import failure_rates, outcome_totals
from ditto_jax.runs.readings import Row, ends, number, reward_gap, transfer


@dataclasses.dataclass(frozen=True)
class Headline:
    """One of the three numbers at the top: what it is, the number, and the words that belong to it."""

    name: str
    value: str
    words: str


def headlines(pairs: Sequence[Pair], rows: Sequence[Row]) -> list[Headline]:
    """Returns accuracy without feedback, the teacher-student gap, and whether feedback is read; three, always."""
    return [_accuracy(pairs), _gap(rows), _reads(pairs)]


def _accuracy(pairs: Sequence[Pair]) -> Headline:
    name = "Accuracy without feedback"
    own = [pair for pair in pairs if pair.whole.before or pair.whole.after]
    if not own:
        return Headline(name, "not measured", "This run has no evaluation.")
    pair, unit = own[0], own[0].in_unit
    values = [m for m in (pair.whole.before, pair.whole.after) if m is not None]
    value = " → ".join(show_value(m.value, unit) for m in values)
    intervals = " → ".join(show_interval(m, unit) for m in values)
    counts = " and ".join(dict.fromkeys(str(m.n) for m in values))
    verdict = verdict_on_change(pair.whole) if len(values) == 2 else "Measured once: nothing to compare with."
    return Headline(f"{name}: {pair.label}", value, f"Intervals {intervals}, n\u00a0=\u00a0{counts}. {verdict}")


def _gap(rows: Sequence[Row]) -> Headline:
    name = "Teacher–student gap"
    values = [gap for gap in map(reward_gap, rows) if gap is not None]
    if not values:
        return Headline(name, "none", "This run has no refined rollouts, so there is no gap to close.")
    both = ends(values)
    meaning = "Mean reward with feedback minus mean reward without"
    if both is None:
        return Headline(name, f"{values[0]:+.2f}", f"{meaning}, in the only step that has both.")
    first, last, size = both
    span = "the first and the last step" if size == 1 else f"the first and the last {size} steps"
    moved = transfer(rows)
    words = "" if moved is None else f" Reward without feedback moved by {moved:+.2f} (transfer)."
    return Headline(name, f"{first:+.2f} → {last:+.2f}", f"{meaning}, in {span} that have both.{words}")


def _reads(pairs: Sequence[Pair]) -> Headline:
    name = "Wrong drafts fixed: judge’s words vs content-free words"
    controls = [control for pair in pairs for control in reading_controls(pair)]
    if not controls:
        return Headline(name, "not measured", "Set evaluation.with_feedback to see whether the policy reads feedback.")
    control = controls[0]
    unit = all(m is None or m.in_unit for m in (control.feedback, control.content_free))
    shown = ["–" if m is None else show_value(m.value, unit) for m in (control.feedback, control.content_free)]
    where = f"{control.label}, step {control.step}"
    return Headline(name, " vs ".join(shown), f"{where}: {control.finding}")


def controls(pairs: Sequence[Pair]) -> list[Control]:
    """Returns the reading control of every evaluation that measured it."""
    return [control for pair in pairs for control in reading_controls(pair)]


@dataclasses.dataclass(frozen=True)
class OutcomeLine:
    """One line of the outcome table: what happened, how often, out of how many, and what was done about it."""

    what: str
    count: int
    total: int
    effect: str

    @property
    def share(self) -> str:
        percent = f" ({100 * self.count / self.total:.2f}\u00a0%)" if self.total else ""
        return f"{self.count:,} of {self.total:,}{percent}"


_WHY = {
    "ok": "given",
    "rejected": "spoke of the guidance it was given",
    "refused": "refused by the judge",
    "unparsable": "unreadable reply of the judge",
    "timed_out": "out of time",
    "unavailable": "judge not reachable",
    "over_budget": "budget used up",
}
_REFLECTED = {
    "ok": "words that may be used",
    "leaked": "gives the answer away",
    "unparsable": "says nothing visible",
    "over_budget": "cut off, or without room",
}
_NO_SCORE = "Masked: no reward, in no pool, no gradient; no feedback was asked for."
_NO_WORDS = "No refined rollout was sampled; the draft itself counts."
_LEAKED = "The words told too much and were withheld; no refined rollout was sampled."
_TRUNCATED = {
    "drop": "Left out of statistics and loss (objective.truncated: drop).",
    "keep": "Kept in statistics and loss (objective.truncated: keep).",
    "penalise": "Kept in statistics and loss, at a lower reward (objective.truncated: penalise).",
}


def _truncation_rule(objective: Mapping[str, Any]) -> str:
    """The rule as set, or that of the entry of the table which the run trained with."""
    rule = objective.get("truncated", "preset")
    if rule != "preset":
        return str(rule)
    entry = OBJECTIVES.get(str(objective.get("name")))
    return entry.truncated if entry else "drop"


def outcome_lines(rows: Sequence[Row], reading: RolloutReading, config: Mapping[str, Any]) -> list[OutcomeLine]:
    """Returns what became of all calls to the judge and of cut-off rollouts. Outcomes that never occurred are left out.

    Judge outcomes are summed over all metrics rows, or taken from the rollouts that were read if the metrics have none.
    """
    scores = outcome_totals(rows, "score") or dict(reading.score_outcomes)
    words = outcome_totals(rows, "feedback") or dict(reading.feedback_outcomes)
    leaked = sum(int(number(row, "judge/feedback_leaked_count") or 0) for row in rows) or reading.leaked
    lines = []
    for area, counts, usual, otherwise in (
        ("Score", scores, "Used.", _NO_SCORE),
        ("Feedback", words, "Used, unless it leaked (below).", _NO_WORDS),
    ):
        for outcome, count in sorted(counts.items(), key=lambda item: item[0] != "ok"):
            if count:
                effect = usual if outcome == "ok" else otherwise
                lines.append(OutcomeLine(f"{area}: {_WHY.get(outcome, outcome)}", count, sum(counts.values()), effect))
    if words:
        lines.append(OutcomeLine("Feedback: leaked", leaked, sum(words.values()), _LEAKED))
    reflected = reading.reflections.total()
    for outcome, count in sorted(reading.reflections.items(), key=lambda item: item[0] != "ok"):
        what = f"Reflection: {_REFLECTED.get(outcome, _WHY.get(outcome, outcome))}"
        effect = "Used as feedback." if outcome == "ok" else _NO_WORDS
        lines.append(OutcomeLine(what, count, reflected, effect))
    lines += _failures_by_bucket(rows)
    rule = _truncation_rule(config.get("objective") or {})
    for role, total in sorted(reading.total.items()):
        cut = reading.truncated[role]
        lines.append(OutcomeLine(f"Rollouts truncated: {role}", cut, total, _TRUNCATED.get(rule, str(rule))))
    return lines


def _failures_by_bucket(rows: Sequence[Row]) -> list[OutcomeLine]:
    """Where failures fell, if there were any: whether they spare some lengths or scores can then be seen."""
    rates = failure_rates(rows)
    failing = {rate.area for rate in rates if rate.failed}
    return [
        OutcomeLine(
            f"{rate.area.capitalize()} failed: {rate.bucket}",
            rate.failed,
            rate.asked,
            _NO_SCORE if rate.area == "score" else _NO_WORDS,
        )
        for rate in rates
        if rate.area in failing
    ]


def outcome_source(rows: Sequence[Row], reading: RolloutReading) -> str:
    """Returns where the outcome counts come from."""
    metrics = outcome_totals(rows, "score") or outcome_totals(rows, "feedback")
    parts = [f"Judge outcomes: all {len(rows)} steps of metrics.jsonl."] if metrics else []
    if reading.steps_read:
        whole = reading.steps_read == reading.steps_written
        steps = f"all {reading.steps_read}" if whole else f"{reading.steps_read} of {reading.steps_written}"
        parts.append(f"{'Truncation' if metrics else 'Everything'}: rollouts of {steps} steps.")
    return " ".join(parts)


def missing(
    rows: Sequence[Row], pairs: Sequence[Pair], reading: RolloutReading, config: Mapping[str, Any]
) -> list[str]:
    """Returns what this run does not have and the report therefore cannot show."""
    found = []
    if not config:
        found.append("no config.yaml: objective, judge and settings are unknown")
    if not rows:
        found.append("no metrics: no training step has finished")
    elif not any(number(row, "feedback/revised_reward") is not None for row in rows):
        found.append("no refined rollouts, as in objectives without feedback: no gap and no examples")
    if not pairs:
        found.append("no evaluation: accuracy before and after is unknown")
    for pair in pairs:
        if pair.before is None:
            found.append(f"{pair.label}: no evaluation before training")
        if pair.after is None:
            found.append(f"{pair.label}: no evaluation after training")
    absent = [label for label in configured_labels(config) if label not in {pair.label for pair in pairs}]
    if absent and pairs:
        found.append(f"{', '.join(absent)}: configured but not measured (optional data that is absent is skipped)")
    if rows and not reading.steps_written:
        found.append("no rollouts were written (log_completions: false), so there are no examples")
    return found


def configured_labels(config: Mapping[str, Any]) -> list[str]:
    """Returns the evaluation labels of a config in its order."""
    tasks = (config.get("evaluation") or {}).get("tasks") or []
    return [str(task.get("label") or task.get("name")) for task in tasks if isinstance(task, Mapping)]
