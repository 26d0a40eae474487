"""What one step did, as named numbers: rewards, gap, outcomes, lengths, time split.

Names follow TRL where TRL has one; ours are `area/what_unit`. Learning metrics are a pure function of the step's
rollouts and update; times and rates are kept apart under `time/` and `..._per_s`, because a resumed run repeats the
former bit for bit and never the latter.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ditto_jax.rollouts.judge_failures import failure_counts
from ditto_jax.rollouts.rollout import (
    judges_verdicts,
    outcome_counts,
    refers_to_guidance,
    reflection_counts,
    was_abandoned,
)
from ditto_jax.types import Rollout, RolloutRole


def is_timing(name: str) -> bool:
    """True for metrics that depend on the machine, the network or an earlier run and not on what was learned."""
    by_luck = ("_per_s", "/cache_hits", "/hedges", "/cost", "/waited_s")
    return name.startswith("time/") or name.endswith(by_luck) or "latency" in name


class Stopwatch:
    """Seconds by phase of one step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the enclosed block to `time/<name>_s`."""
        started = time.monotonic()
        try:
            yield
        finally:
            key = f"time/{name}_s"
            self.seconds[key] = self.seconds.get(key, 0.0) + time.monotonic() - started

    def include(self, other: Stopwatch) -> None:
        """Adds the phases of another watch, which ran before this one."""
        for key, seconds in other.seconds.items():
            self.seconds[key] = self.seconds.get(key, 0.0) + seconds

    def split(self) -> dict[str, float]:
        """Returns all phases and the whole step."""
        return {**self.seconds, "time/step_s": time.monotonic() - self._started}


def _scores(rollouts: Sequence[Rollout], role: RolloutRole) -> np.ndarray:
    values = [r.verdict.score for r in rollouts if r.role is role and r.verdict.score is not None]
    return np.asarray(values, dtype=np.float64)


def sampled_tokens(rollouts: Sequence[Rollout]) -> int:
    """Returns how many tokens the policy sampled for these rollouts."""
    return sum(int(t.loss_mask.sum()) for r in rollouts for t in r.transcripts.values())


def rollout_metrics(rollouts: Sequence[Rollout], labels: Sequence[str]) -> dict[str, float]:
    """Returns rewards by role and task, the teacher-student gap, lengths and outcome counts of one step's rollouts.

    labels: of the tasks of the step's prompts, in their order; names metrics `rewards/<label>/…` and `tasks/<label>/…`.
    """
    drafts, refined = _scores(rollouts, RolloutRole.DRAFT), _scores(rollouts, RolloutRole.REFINED)
    lengths = np.array([sampled_tokens([r]) for r in rollouts] or [0])
    drafted = [r for r in rollouts if r.role is RolloutRole.DRAFT]
    refined_from = [r for r in rollouts if r.role is RolloutRole.REFINED]
    metrics: dict[str, Any] = {
        "completions/count": len(rollouts),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": int(lengths.max()),
        "completions/clipped_ratio": float(np.mean([r.truncated for r in rollouts])) if rollouts else 0.0,
        "feedback/gate_rate": sum(r.feedback is not None for r in drafted) / max(1, len(drafted)),
        "feedback/refined_count": len(refined_from),
        **outcome_counts(rollouts),
        **reflection_counts(rollouts),
        **failure_counts(rollouts),
    }
    if len(reflected := _scores(rollouts, RolloutRole.REFLECTION)):
        metrics["reflections/reward"] = float(reflected.mean())
    if len(drafts):
        metrics["reward"] = float(drafts.mean())
        metrics["reward_std"] = float(drafts.std())
    for label in sorted(set(labels)):
        metrics |= _of_task(label, [r for r in rollouts if labels[r.prompt_index] == label])
    if len(refined):
        metrics["feedback/revised_reward"] = float(refined.mean())
        parents = {(r.prompt_index, r.sample_index): r for r in drafted}
        pairs = [(r, parents[r.prompt_index, r.sample_index]) for r in refined_from if r.verdict.score is not None]
        before = [p.verdict.score for _, p in pairs if p.verdict.score is not None]
        # Uptake: over drafts with a scored refinement alone, for only weak drafts are hinted.
        metrics["feedback/uplift"] = float(refined.mean() - np.mean(before))
        metrics["feedback/unchanged_fraction"] = float(np.mean([_same_reply(r, p) for r, p in pairs]))
    if any(r.feedback is not None for r in drafted) and len(drafts):
        metrics["feedback/with_feedback_reward"] = _with_feedback(drafted, refined_from)
    return metrics


def _of_task(label: str, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What the rollouts of one task came to; means are absent where nothing was scored."""
    drafted = [r for r in rollouts if r.role is RolloutRole.DRAFT]
    drafts, refined = _scores(rollouts, RolloutRole.DRAFT), _scores(rollouts, RolloutRole.REFINED)
    metrics: dict[str, float] = {
        f"tasks/{label}/drafts_count": len(drafted),
        f"tasks/{label}/refined_count": sum(r.role is RolloutRole.REFINED for r in rollouts),
        f"tasks/{label}/unscored_count": sum(verdict.score is None for verdict in judges_verdicts(rollouts)),
        f"tasks/{label}/abandoned_count": sum(map(was_abandoned, rollouts)),
        f"tasks/{label}/feedback_count": sum(r.feedback is not None for r in drafted),
        f"tasks/{label}/leaked_count": sum(bool(r.feedback and r.feedback.leak) for r in drafted),
        f"tasks/{label}/self_reference_count": sum(map(refers_to_guidance, rollouts)),
    }
    if len(drafts):
        metrics[f"rewards/{label}/mean"] = float(drafts.mean())
    if len(refined):
        metrics[f"tasks/{label}/revised_reward"] = float(refined.mean())
    return {**metrics, **_dimensions(label, drafted)}


def _dimensions(label: str, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means of the dimensions of one task's scores, where there is more than the score itself."""
    verdicts = [r.verdict.dimensions for r in rollouts if r.verdict.score is not None and len(r.verdict.dimensions) > 1]
    names = sorted({name for dimensions in verdicts for name in dimensions})
    return {f"rewards/{label}/{name}": float(np.mean([d[name] for d in verdicts if name in d])) for name in names}


def _with_feedback(drafted: Sequence[Rollout], refined: Sequence[Rollout]) -> float:
    """Mean over scored drafts of the refined score where there is one, else the draft's own.

    The mean of the refined alone would be of weak drafts only, and could not be compared with the drafts' mean.
    """
    scores = {(r.prompt_index, r.sample_index): r.verdict.score for r in drafted if r.verdict.score is not None}
    scores |= {(r.prompt_index, r.sample_index): r.verdict.score for r in refined if r.verdict.score is not None}
    return float(np.mean([score for score in scores.values() if score is not None]))


def _same_reply(refined: Rollout, draft: Rollout) -> bool:
    return refined.conversation.reply == draft.conversation.reply
