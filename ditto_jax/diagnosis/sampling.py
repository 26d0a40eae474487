"""Checks of what the policy samples: cut off, all alike, ever surer of itself, abandoned, speaking of its guidance.

records of a run → **checks** → findings
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator

from ditto_jax.diagnosis.association import mean_in_groups, rate, trend
from ditto_jax.diagnosis.evidence import Evidence, groups, late_facts, places, series, span, span_of, total
from ditto_jax.diagnosis.finding import Advice, Finding, Suspicion
from ditto_jax.runs.rollout_facts import RolloutFact

_CUT = 1 / 3  # share of rollouts
_ALIKE = 0.9  # chance that two drafts of a prompt are the same text
_LEAST_GROUPS = 8
_LEAST_STEPS = 3  # a policy may begin surer of itself than it stays
_COLLAPSED = 0.2  # of the entropy that a run began with
_ABANDONED = 0.2
_SPEAKS = 0.3


def truncation(evidence: Evidence) -> Iterator[Suspicion]:
    """Many rollouts of the second half of the run are cut by the token budget."""
    facts = [fact for fact in late_facts(evidence.facts) if fact.role != "reflection"]
    cut = [fact for fact in facts if fact.is_truncated]
    found = rate(len(cut), len(facts))
    if not facts or found.low <= _CUT:
        return
    longest = int(evidence.setting("rollout.max_completion_length", 0))
    rule = str(evidence.setting("objective.truncated", "preset"))
    yield Suspicion(
        Finding(
            "truncation",
            "error" if found.low > 2 * _CUT else "warning",
            f"{found} rollouts of the second half were cut at {longest} tokens",
            {"rollout.max_completion_length": longest, "objective.truncated": rule},
            span(fact.step for fact in facts),
            places(cut),
            (
                Advice("rollout.max_completion_length", str(2 * longest), "replies do not end before the budget does"),
                Advice("objective.truncated", "keep", "dropping them leaves a sample of short replies to learn from"),
            ),
        )
    )


def entropy_collapse(evidence: Evidence) -> Iterator[Suspicion]:
    """The entropy of the policy on its drafts falls to a fraction of what it was."""
    found = trend(series(evidence.rows, "entropy"))
    if found is None:
        return
    is_large = found.tau < -0.4 and found.last < _COLLAPSED * found.first
    drafts = late_facts(evidence.drafts)
    finding = Finding(
        "entropy_collapse",
        "warning",
        f"entropy fell from {found.first:.3g} to {found.last:.3g} nats a token: drafts explore less and less",
        {
            "Kendall's tau": found.tau,
            "p": found.p_value,
            "chance that two drafts of a prompt are equal": _alike(drafts),
        },
        span_of(evidence.rows),
        places(_repeated(drafts)),
        (
            Advice("objective.epsilon_high", "0.28", "room for unlikely tokens to become likelier"),
            evidence.other_rate(1 / 3, "a policy that moves slower stays wider"),
            Advice("rollout.temperature", "1.0", "sampling below it narrows what is learned from"),
        ),
    )
    yield Suspicion(finding if is_large else None, found.p_value)


def low_diversity(evidence: Evidence) -> Iterator[Suspicion]:
    """Drafts of one prompt are the same text, in nearly all groups of the second half of the run."""
    drafts = late_facts(evidence.drafts)
    found = mean_in_groups(_pairs_alike(drafts))
    steps = sorted({fact.step for fact in evidence.drafts})
    if found is None or found.n < _LEAST_GROUPS or len(steps) < _LEAST_STEPS or found.low <= _ALIKE:
        return
    early = [fact for fact in evidence.drafts if fact.step < steps[len(steps) // 2]]
    temperature = evidence.setting("rollout.temperature", 1.0)
    advice = (Advice("rollout.temperature", "1.0", f"it is {temperature:g}"),) if temperature < 1.0 else ()
    yield Suspicion(
        Finding(
            "low_diversity",
            "error" if found.low > 0.98 else "warning",
            f"two drafts of a prompt are the same text with a chance of {found.value:.0%} over {found.n} groups of the "
            "second half: alike drafts have no advantages",
            {"first half": _alike(early), "second half": found.value, "rollout.temperature": temperature},
            span(fact.step for fact in drafts),
            places(_repeated(drafts)),
            (
                *advice,
                Advice(
                    "model_name_or_path", "a policy that is less sure", "a policy trained on few texts repeats them"
                ),
            ),
        )
    )


def _pairs_alike(drafts: Iterable[RolloutFact]) -> list[tuple[tuple[int, int], float]]:
    """(group, share of pairs of its drafts that are equal texts)."""
    found = []
    for group, members in groups(drafts).items():
        counts = collections.Counter(member.reply for member in members)
        pairs = len(members) * (len(members) - 1)
        if pairs:
            found.append((group, sum(count * (count - 1) for count in counts.values()) / pairs))
    return found


def _alike(drafts: Iterable[RolloutFact]) -> float:
    shares = [share for _, share in _pairs_alike(drafts)]
    return sum(shares) / len(shares) if shares else 0.0


def _repeated(drafts: Iterable[RolloutFact]) -> list[RolloutFact]:
    """Drafts whose text another draft of the prompt has too."""
    found = []
    for members in groups(drafts).values():
        counts = collections.Counter(member.reply for member in members)
        found += [member for member in members if counts[member.reply] > 1]
    return found


def episodes_abandoned(evidence: Evidence) -> Iterator[Suspicion]:
    """Many episodes end without a reply to judge: no room, or a partner that fails."""
    rows = [row for row in evidence.rows if "episodes/abandoned_count" in row and "completions/count" in row]
    found = rate(total(rows, "episodes/abandoned_count"), total(rows, "completions/count"))
    if not rows or found.low <= _ABANDONED:
        return
    yield Suspicion(
        Finding(
            "episodes_abandoned",
            "error" if found.low > 0.5 else "warning",
            f"{found} episodes were given up before there was a reply to judge",
            {"partner failures": total(rows[-1:], "partner/failed")},
            span_of(rows),
            places(fact for fact in evidence.facts if fact.score is None and not fact.asked),
            (
                Advice("train.prefix, sampler.prefix", "longer ones", "prompts without room are not sampled"),
                Advice("partner", "one that answers", "episodes with a partner that fails are given up"),
            ),
        )
    )


def speaks_of_guidance(evidence: Evidence) -> Iterator[Suspicion]:
    """Many refined rollouts are discarded because they speak of the guidance that they were given."""
    found = rate(total(evidence.rows, "feedback/self_reference_count"), total(evidence.rows, "feedback/refined_count"))
    if found.low <= _SPEAKS:
        return
    yield Suspicion(
        Finding(
            "speaks_of_guidance",
            "warning",
            f"{found} refined rollouts speak of the guidance that they were given and were discarded",
            {},
            span_of(evidence.rows),
            places(fact for fact in evidence.refined if fact.outcome == "rejected"),
            (
                Advice("judge", "words that name no judge", "words that refer to themselves are referred to"),
                Advice(
                    "model_name_or_path", "a policy tuned to follow instructions", "the hint asks for silence about it"
                ),
            ),
        )
    )


CHECKS = (truncation, entropy_collapse, low_diversity, episodes_abandoned, speaks_of_guidance)
