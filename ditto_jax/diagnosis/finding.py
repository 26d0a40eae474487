"""The nouns of a diagnosis: a finding with its evidence, where to look, and what to try.

records of a run → checks → **findings** → terminal, JSON, report

A check that tests a hypothesis returns a `Suspicion` with its p-value whether or not it found something, so that the
correction for many tests counts all of them. Plain data; computes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")  # ascending


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    """A rollout that shows a finding: its step, the prompt's place in the step, and the sample."""

    step: int
    prompt_index: int
    sample: int

    def __str__(self) -> str:
        return f"step {self.step}, prompt {self.prompt_index}, sample {self.sample}"


@dataclasses.dataclass(frozen=True)
class Advice:
    """Something to try: a setting, a value that it could have, and why."""

    setting: str
    value: str
    why: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    name: stable, for programs. summary: one sentence with the figures that decide. evidence: further figures by what
    they are. steps: first and last step that the figures are of; None where they are of no step. examples: rollouts
    that show it. follows_from: the name of another finding of the same run that explains this one.
    """

    name: str
    severity: Severity
    summary: str
    evidence: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)
    steps: tuple[int, int] | None = None
    examples: tuple[Place, ...] = ()
    advice: tuple[Advice, ...] = ()
    follows_from: str = ""


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """What a check came to. finding: None if the effect is too small to matter. p_value: None for a check that is no
    test of a hypothesis, such as a count of updates that are not finite.
    """

    finding: Finding | None
    p_value: float | None = None


def figure(value: float | int | str) -> str:
    """Returns a figure of evidence as text, in four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
