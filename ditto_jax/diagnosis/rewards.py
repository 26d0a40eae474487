"""Checks of what there is to learn from: rewards that never differ, pools without a spread, a gate that stays shut.

records of a run → **checks** → findings
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ditto_jax.diagnosis.association import rate, trend
from ditto_jax.diagnosis.evidence import Evidence, groups, late, places, series, span, span_of, total
from ditto_jax.diagnosis.finding import Advice, Finding, Suspicion
from ditto_jax.objective import OBJECTIVES
from ditto_jax.runs.readings import number

_LEAST_SCORED = 16
_LEAST_POOLS = 10
_DEAD = 0.8  # share of pools without a gradient from which a run mostly samples in vain
_LEAST_OF_TASK = 48
_POOL = re.compile(r"pool/(.+)_live_count")


def constant_reward(evidence: Evidence) -> Iterator[Suspicion]:
    """All rollouts of the run have one and the same score."""
    scored = [fact for fact in evidence.facts if fact.score is not None and fact.role != "reflection"]
    if len(scored) < _LEAST_SCORED or len({fact.score for fact in scored}) > 1:
        return
    score = scored[0].score
    solved = score is not None and score >= evidence.setting("rollout.feedback_below", 1.0) >= 1.0
    cause = "everything is solved" if solved else "the judge says the same of every reply, or no reply deserves better"
    yield Suspicion(
        Finding(
            "constant_reward",
            "error",
            f"all {len(scored):,} scored rollouts have the reward {score:g}: {cause}, and nothing can be learned",
            {"rollouts": len(scored), "reward": float(score or 0.0)},
            span(fact.step for fact in scored),
            places(scored),
            (
                Advice("tasks", "harder ones" if solved else "easier ones", "rewards have to differ within a prompt"),
                Advice(
                    "judge", "another one", "score a good and a bad reply by hand: `ditto-jax judge` repeats verdicts"
                ),
            ),
        )
    )


def dead_pools(evidence: Evidence) -> Iterator[Suspicion]:
    """Most pools of the second half of the run had no spread of rewards, too few rows, or none that counts."""
    rows = late(evidence.rows)
    names = sorted({found.group(1) for row in rows for key in row if (found := _POOL.fullmatch(key))})
    pools, live = (sum(total(rows, f"pool/{name}{what}_count") for name in names) for what in ("", "_live"))
    dead = rate(pools - live, pools)
    if pools < _LEAST_POOLS or dead.low <= _DEAD:
        return
    causes = {
        c: sum(total(rows, f"pool/{name}_{c}_count") for name in names) for c in ("all_equal", "too_small", "invalid")
    }
    main = max(causes, key=lambda cause: causes[cause])
    generations = int(evidence.setting("rollout.num_generations", 8))
    advice = {
        "all_equal": (
            Advice("rollout.num_generations", str(2 * generations), "more drafts of a prompt differ more often"),
            Advice("tasks", "of another difficulty", "prompts that are always or never solved teach nothing"),
            *_warmer(evidence),
        ),
        "too_small": (
            Advice("objective.truncated", "keep", "rollouts that are cut off leave their pool"),
            Advice("rollout.num_generations", str(2 * generations), "pools need at least two scored rollouts"),
        ),
        "invalid": (Advice("judge", "one that answers", "rollouts without a score are in no pool"),),
    }[main]
    shown = [members for members in groups(evidence.drafts).values() if len({m.score for m in members}) == 1]
    yield Suspicion(
        Finding(
            "dead_pools",
            "error" if dead.low > 0.95 else "warning",
            f"{dead} pools of the second half gave no gradient, mostly for being {main.replace('_', ' ')}",
            {f"pools {cause.replace('_', ' ')}": count for cause, count in causes.items()} | {"pools live": live},
            span_of(rows),
            places(fact for members in shown for fact in members),
            advice,
        )
    )


def _warmer(evidence: Evidence) -> tuple[Advice, ...]:
    if evidence.setting("rollout.temperature", 1.0) >= 1.0:
        return ()
    return (Advice("rollout.temperature", "1.0", "drafts that are alike are scored alike"),)


def task_without_signal(evidence: Evidence) -> Iterator[Suspicion]:
    """One task of several has the same score throughout: its prompts cost samples and teach nothing."""
    scored = [fact for fact in evidence.drafts if fact.score is not None]
    tasks = sorted({fact.task for fact in scored})
    for task in tasks if len(tasks) > 1 else ():
        own = [fact for fact in scored if fact.task == task]
        if len(own) < _LEAST_OF_TASK or len({fact.score for fact in own}) > 1:
            continue
        yield Suspicion(
            Finding(
                "task_without_signal",
                "warning",
                f"all {len(own):,} drafts of the task {task} have the reward {own[0].score:g}",
                {"task": task, "drafts": len(own)},
                span(fact.step for fact in own),
                places(own),
                (
                    Advice("tasks", f"{task} easier, harder or left out", "its pools never have a gradient"),
                    Advice("tasks.judge", "another one for this task", "its scores may not depend on the reply"),
                ),
            )
        )


def gate_never_opens(evidence: Evidence) -> Iterator[Suspicion]:
    """An objective that learns from words asked for none, or never had a refined rollout."""
    entry = OBJECTIVES.get(str(evidence.setting("objective.name")))
    rows = [row for row in evidence.rows if "feedback/refined_count" in row and "feedback/gate_rate" in row]
    rewards = series(rows, "reward")
    if entry is None or not entry.refined_rollouts or not rewards or total(rows, "feedback/refined_count"):
        return
    asked = any(number(row, "feedback/gate_rate") for row in rows)
    below = evidence.setting("rollout.feedback_below", 1.0)
    mean = sum(value for _, value in rewards) / len(rewards)
    figures = {"mean reward": mean, "rollout.feedback_below": below, "steps": len(rows)}
    if asked:
        yield Suspicion(
            Finding(
                "no_refined_rollouts",
                "error",
                f"words were asked for, but none of {len(rows)} steps had a refined rollout: no words could be used",
                figures,
                span_of(rows),
                places(fact for fact in evidence.drafts if fact.words_outcome is not None),
                (Advice("judge", "see the outcomes of feedback", "refused, unreadable or leaking words are not used"),),
            )
        )
        return
    yield Suspicion(
        Finding(
            "gate_never_opens",
            "error",
            f"{entry.name} learns from words, but no draft of {len(rows)} steps was asked about: "
            f"the mean reward is {mean:.3g} and feedback is given below {below:g}",
            figures,
            span_of(rows),
            places(evidence.drafts),
            (
                Advice(
                    "rollout.feedback_below",
                    "the best score of the judge, for example 1.0",
                    "drafts below it are refined",
                ),
                Advice("tasks.feedback.by", "judge", "a task may ask nobody"),
            ),
        )
    )


def reward_falls(evidence: Evidence) -> Iterator[Suspicion]:
    """The mean reward of drafts goes down over the run."""
    found = trend(series(evidence.rows, "reward"))
    if found is None:
        return
    drop, unit = found.first - found.last, evidence.score_spread
    is_large = found.tau < -0.3 and drop > 0.3 * unit > 0
    finding = Finding(
        "reward_falls",
        "warning",
        f"the mean reward of drafts fell from {found.first:.3g} in the first third of the run to {found.last:.3g}",
        {
            "Kendall's tau": found.tau,
            "p": found.p_value,
            "fall in standard deviations of scores": drop / unit if unit else 0.0,
        },
        span_of(evidence.rows),
        places(fact for fact in evidence.drafts if fact.score is not None),
        (
            evidence.other_rate(1 / 3, "too large steps undo what was learned"),
            Advice("rollout.num_generations", "twice as many", "noisy advantages of small groups drift"),
        ),
    )
    yield Suspicion(finding if is_large else None, found.p_value)


CHECKS = (constant_reward, dead_pools, task_without_signal, gate_never_opens, reward_falls)
