"""Checks of the judge: how often it fails, whom it fails, what the leak filter keeps, and what a second judge thinks.

records of a run → **checks** → findings

Failures are counted as `judge_failures.py` counts them; that they depend on length or score is tested on the rollouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ditto_jax.diagnosis.association import Trend, rate, separation, trend
from ditto_jax.diagnosis.evidence import Evidence, groups, places, series, span, span_of, total
from ditto_jax.diagnosis.finding import Advice, Finding, Suspicion
from ditto_jax.rollouts.judge_failures import failure_rates, outcome_totals
from ditto_jax.runs.rollout_facts import RolloutFact

_FAILURES = {
    "score": ("refused", "unparsable", "timed_out", "unavailable"),
    "feedback": ("unparsable", "timed_out", "unavailable"),
}
_FAILING = 0.05  # share of calls
_DECLINING = 0.5
_NO_ROOM = 0.2
_LEAKING = 0.5
_ONE_SIDED = 0.65  # chance that a failing rollout is the longer (or better) one of two
_PARTING = 0.3  # standard deviations of scores
_DISAGREEING = 0.5


def judge_fails(evidence: Evidence) -> Iterator[Suspicion]:
    """A share of the calls for scores or for words that matters ends without one."""
    for area, outcomes in _FAILURES.items():
        totals = outcome_totals(evidence.rows, area)
        counts = {outcome: totals.get(outcome, 0) for outcome in outcomes}
        found = rate(sum(counts.values()), sum(totals.values()))
        if not totals or found.low <= _FAILING:
            continue
        worst = max(counts, key=lambda outcome: counts[outcome])
        effect = "their rollouts are masked" if area == "score" else "their drafts were not refined"
        yield Suspicion(
            Finding(
                f"judge_fails_{area}",
                "error" if found.low > 0.25 else "warning",
                f"{found} calls for {'scores' if area == 'score' else 'words'} failed, mostly {worst}: {effect}",
                counts,
                span_of(evidence.rows),
                places(_of_outcomes(evidence.facts, area, outcomes)),
                (_against(evidence, worst),),
            )
        )


def judge_declines(evidence: Evidence) -> Iterator[Suspicion]:
    """The judge has nothing to say about most drafts, or its words do not fit into the prompt."""
    totals = outcome_totals(evidence.rows, "feedback")
    asked = sum(totals.values())
    for name, outcome, limit, what in (
        ("judge_declines", "refused", _DECLINING, "the judge had nothing to say about"),
        ("no_room_for_feedback", "over_budget", _NO_ROOM, "there was no room in the prompt for the words about"),
    ):
        found = rate(totals.get(outcome, 0), asked)
        if asked and found.low > limit:
            shown = places(_of_outcomes(evidence.facts, "feedback", (outcome,)))
            summary = f"{what} {found} drafts, which were not refined"
            yield Suspicion(
                Finding(name, "warning", summary, {}, span_of(evidence.rows), shown, (_against(evidence, outcome),))
            )


def _against(evidence: Evidence, outcome: str) -> Advice:
    """What to try against an outcome of calls to the judge."""
    if outcome == "timed_out":
        seconds = 2 * float(evidence.setting("judge.timeout_s", 120.0))
        return Advice("judge.timeout_s", f"{seconds:g}", "long texts take a judge longer")
    if outcome == "unparsable":
        tokens = 2 * int(evidence.setting("judge.max_tokens", 1024))
        return Advice("judge.max_tokens", str(tokens), "an answer that is cut off cannot be read")
    if outcome == "unavailable":
        calls = max(1, int(evidence.setting("judge.max_concurrent", 16)) // 2)
        return Advice("judge.max_concurrent", str(calls), "a server under less load answers")
    if outcome == "over_budget":
        return Advice("train.prefix, sampler.prefix", "longer ones", "words have to fit into the prompt")
    return Advice("judge.model", "another one", "a judge that refuses what it is shown is of no use")


def judge_is_one_sided(evidence: Evidence) -> Iterator[Suspicion]:
    """Failures and refusals depend on the length of what is judged, or on its score: what is left is no fair sample."""
    of_siblings = _scores_of_siblings(evidence.drafts)
    asked = [fact for fact in evidence.facts if fact.asked]
    worded = [fact for fact in evidence.drafts if fact.asked_words]
    for area, facts, kind, outcomes in (
        ("score", asked, "failures", _FAILURES["score"]),
        ("feedback", worded, "failures", _FAILURES["feedback"]),
        ("feedback", worded, "refusals", ("refused",)),
    ):
        failing = set(_of_outcomes(facts, area, outcomes))
        for measure in ("length", "score"):
            if measure == "length":
                values = [(fact, float(fact.length)) for fact in facts]
            elif area == "feedback":
                values = [(fact, fact.score) for fact in facts if fact.score is not None]
            else:  # what failed has no score: that of the other drafts of the prompt stands in for it
                values = [(fact, of_siblings[fact.slot]) for fact in facts if fact.slot in of_siblings]
            yield from _one_sided(evidence, area, kind, measure, values, failing)


def _one_sided(
    evidence: Evidence,
    area: str,
    kind: str,
    measure: str,
    values: Sequence[tuple[RolloutFact, float]],
    failing: set[RolloutFact],
) -> Iterator[Suspicion]:
    failed = [(fact.group, value) for fact, value in values if fact in failing]
    found = separation(failed, [(fact.group, value) for fact, value in values if fact not in failing])
    if found is None:
        return
    higher = found.auc >= 0.5
    worse = ("long" if higher else "short") if measure == "length" else ("well" if higher else "badly")
    whom = f"{worse} rollouts" if measure == "length" else f"rollouts that score {worse}"
    unit = "characters" if measure == "length" else "reward"
    buckets = [r for r in failure_rates(evidence.rows) if r.area == area and r.asked and r.measure == measure]
    what = "scores" if area == "score" else "words"
    finding = Finding(
        f"judge_{kind}_depend_on_{measure}" if area == "score" else f"feedback_{kind}_depend_on_{measure}",
        "error",
        f"{kind} of the judge when asked for {what} fall on {whom}: median {found.first:.4g} {unit} where there was "
        f"none, {found.second:.4g} where there was one",
        {"chance that a failing one is larger": found.auc, "p": found.p_value, "failing": len(failed)}
        | ({r.bucket: f"{r.failed} of {r.asked} failed" for r in buckets} if kind == "failures" else {}),
        span(fact.step for fact, _ in values),
        places(failing),
        (
            Advice("judge.timeout_s, judge.max_tokens", "twice as much", "long texts need room and time")
            if measure == "length"
            else Advice("judge.model", "another one", "a judge that skips some scores biases what is learned"),
        ),
    )
    yield Suspicion(finding if abs(found.auc - 0.5) >= _ONE_SIDED - 0.5 else None, found.p_value)


def _scores_of_siblings(drafts: Sequence[RolloutFact]) -> dict[tuple[int, int, int], float]:
    """Draft → mean score of the other drafts of its prompt, where they have one."""
    found = {}
    for members in groups(drafts).values():
        for member in members:
            scores = [other.score for other in members if other is not member and other.score is not None]
            if scores:
                found[member.slot] = sum(scores) / len(scores)
    return found


def _of_outcomes(facts: Sequence[RolloutFact], area: str, outcomes: Sequence[str]) -> list[RolloutFact]:
    if area == "score":
        return [fact for fact in facts if fact.outcome in outcomes]
    return [fact for fact in facts if fact.words_outcome in outcomes]


def leak_filter(evidence: Evidence) -> Iterator[Suspicion]:
    """Most words that the judge gave were withheld by the leak filter."""
    given = outcome_totals(evidence.rows, "feedback").get("ok", 0)
    found = rate(total(evidence.rows, "judge/feedback_leaked_count"), given)
    if not given or found.low <= _LEAKING:
        return
    yield Suspicion(
        Finding(
            "leak_filter",
            "error" if found.low > 0.8 else "warning",
            f"{found} pieces of feedback told too much and were withheld: their drafts were not refined",
            {"words given": given},
            span_of(evidence.rows),
            places(fact for fact in evidence.drafts if fact.is_leaked),
            (
                Advice("judge.model", "one that follows instructions", "it is asked not to give the answer away"),
                Advice("tasks.feedback.by", "rules", "words of rules, where the task has them, do not leak"),
            ),
        )
    )


def reward_hacking(evidence: Evidence) -> Iterator[Suspicion]:
    """The scores that are learned from rise away from those of the shadow judge, or are far from them throughout."""
    gaps = [(step, -bias) for step, bias in series(evidence.rows, "shadow/bias")]
    unit = evidence.score_spread
    if len(gaps) < 2 or not unit:
        return
    found = trend(gaps)
    mean = sum(gap for _, gap in gaps) / len(gaps)
    both = [fact for fact in evidence.facts if fact.score is not None and fact.second is not None]
    shown = places(sorted(both, key=lambda fact: (fact.second or 0.0) - (fact.score or 0.0))[:20])
    figures = {"scores compared": total(evidence.rows, "shadow/compared_count"), "mean gap": mean}
    if found is not None:
        grows = found.tau > 0.3 and found.last - found.first > _PARTING * unit
        yield Suspicion(_parting(evidence, found, figures, shown) if grows else None, found.p_value)
        if grows:
            return
    if abs(mean) <= _DISAGREEING * unit:
        return
    yield Suspicion(
        Finding(
            "judges_disagree",
            "warning",
            f"the judge scores {mean:+.3g} from the shadow judge on average, {abs(mean) / unit:.1f} times the "
            "spread of scores",
            figures,
            span(step for step, _ in gaps),
            shown,
            (
                Advice(
                    "judge.model", "the one whose scores you believe", "read both judges' words on the rollouts named"
                ),
            ),
        )
    )


def _parting(evidence: Evidence, found: Trend, figures: dict[str, float], shown) -> Finding:
    reward = trend(series(evidence.rows, "reward"))
    changes = {} if reward is None else {"reward, first third": reward.first, "reward, last third": reward.last}
    return Finding(
        "reward_hacking",
        "error",
        f"the judge scored {found.first:+.3g} from the shadow judge in the first third of the run and "
        f"{found.last:+.3g} in the last: the reward rises by what only the judge sees",
        {**figures, **changes, "Kendall's tau": found.tau, "p": found.p_value},
        span_of(evidence.rows),
        shown,
        (
            Advice("judge.kind", "ensemble, with the shadow judge as a member", "what one judge likes two rarely do"),
            Advice("train.max_steps", "before the two part", "checkpoints up to there are not affected"),
        ),
    )


CHECKS = (judge_fails, judge_declines, judge_is_one_sided, leak_filter, reward_hacking)
