"""All checks over one run → its findings, corrected for how many were tested, the gravest first.

records of a run → checks → **findings** → terminal, JSON, report

The one list that the verb and the report show. A finding that another one explains says so and comes after it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ditto_jax.diagnosis import ending, judging, rewards, sampling, updates, words
from ditto_jax.diagnosis.evidence import Evidence, read_evidence
from ditto_jax.diagnosis.finding import SEVERITIES, Finding, Severity, Suspicion
from ditto_jax.evaluation.statistics import below_chance

SCHEMA_VERSION = 1
CHECKS = (
    *ending.CHECKS,
    *updates.CHECKS,
    *rewards.CHECKS,
    *sampling.CHECKS,
    *judging.CHECKS,
    *words.CHECKS,
)
_LEVEL = 0.01  # of all tests of a run together
# What one cause brings with it: the first name that is found explains the others.
_EXPLAINS = {
    "nan_updates": (
        *("evaluation_worse", "reward_falls", "constant_reward", "dead_pools", "no_gradient", "truncation"),
        *(
            "low_diversity",
            "entropy_collapse",
            "sampler_drift",
            "feedback_not_read",
            "refined_worse",
            "task_without_signal",
        ),
    ),
    "constant_reward": ("dead_pools", "no_gradient", "task_without_signal", "policy_unchanged", "gate_never_opens"),
    "low_diversity": ("dead_pools", "no_gradient", "feedback_not_read"),
    "dead_pools": ("no_gradient", "policy_unchanged"),
    "no_gradient": ("policy_unchanged",),
    "leak_filter": ("no_refined_rollouts",),
    "judge_fails_feedback": ("no_refined_rollouts",),
    "judge_declines": ("no_refined_rollouts",),
    "no_room_for_feedback": ("no_refined_rollouts",),
    "feedback_always_same": ("feedback_not_read", "no_better_than_control"),
    "reward_falls": ("evaluation_worse",),
}


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """findings: the gravest first. steps: rows of metrics. rollouts: how many were read. checks: how many were made."""

    run: str
    findings: tuple[Finding, ...]
    steps: int
    rollouts: int
    checks: int

    def at_least(self, severity: Severity) -> list[Finding]:
        """Returns the findings of that severity and graver."""
        return [f for f in self.findings if SEVERITIES.index(f.severity) >= SEVERITIES.index(severity)]

    def as_json(self) -> str:
        """Returns the diagnosis as JSON text with its schema version."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}, indent=1) + "\n"


def diagnose_run(path: Path, control: Path | None = None) -> Diagnosis:
    """Returns what is wrong with the run in a directory. control: of the same setting, whose words have no content.

    Raises MissingInputError if one of the two is no folder.
    """
    return diagnose(read_evidence(path, control))


def diagnose(evidence: Evidence) -> Diagnosis:
    """Returns what the checks find in the records of a run."""
    suspicions = [suspicion for check in CHECKS for suspicion in check(evidence)]
    findings = _explained(_standing(suspicions))
    ordered = sorted(findings, key=lambda f: (bool(f.follows_from), -SEVERITIES.index(f.severity)))
    return Diagnosis(str(evidence.run.path), tuple(ordered), len(evidence.rows), len(evidence.facts), len(CHECKS))


def _standing(suspicions: Sequence[Suspicion]) -> list[Finding]:
    """Findings of tests that stand after the correction for all tests made, and those that are no tests."""
    tested = [one for one in suspicions if one.p_value is not None]
    stands: dict[int, Any] = dict(
        zip(map(id, tested), below_chance([one.p_value or 0.0 for one in tested], _LEVEL), strict=True)
    )
    return [one.finding for one in suspicions if one.finding is not None and stands.get(id(one), True)]


def _explained(findings: Sequence[Finding]) -> list[Finding]:
    names = {finding.name for finding in findings}
    causes = {effect: cause for cause in reversed(_EXPLAINS) if cause in names for effect in _EXPLAINS[cause]}
    return [dataclasses.replace(f, follows_from=causes.get(f.name, "")) for f in findings]
