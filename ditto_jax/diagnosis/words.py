"""Checks of the words: whether the policy reads them, whether they say anything, and what content-free ones do.

records of a run → **checks** → findings

A refined rollout of a weak draft scores higher than it for no other reason than being another sample. What words add
is measured against the other drafts of the same prompt instead: their mean is what one more sample would score.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from ditto_jax.diagnosis.association import Mean, mean_in_groups, rate
from ditto_jax.diagnosis.evidence import Evidence, groups, places, series, span
from ditto_jax.diagnosis.finding import Advice, Finding, Suspicion
from ditto_jax.judge.words import CONTENT_FREE, SHUFFLED
from ditto_jax.runs.rollout_facts import RolloutFact

_LEAST_GROUPS = 16
_NOT_READ = 0.15  # standard deviations of scores that words add at most, where they are not read
_READ = 0.5  # what is ruled out then; runs that read begin above it
_BEGINNING = 4  # steps at least, else the first third
_HARM = -0.2
_LEAST_WORDS = 24
_SAME_WORDS = 0.8

Gains = list[tuple[tuple[int, int], float]]


def feedback_not_read(evidence: Evidence) -> Iterator[Suspicion]:
    """At the beginning of the run, refined rollouts score no better than another draft of the prompt does."""
    pairs = _beginning(evidence.refined)
    unit = evidence.score_spread
    found = mean_in_groups(gains(pairs, evidence.drafts))
    if not unit or found is None or found.n < _LEAST_GROUPS:
        return
    if found.value >= _NOT_READ * unit or found.high >= _READ * unit:
        return
    content = str(evidence.setting("judge.feedback_content", "full"))
    is_control = content in (CONTENT_FREE, SHUFFLED)
    known = f" (the words are {content.replace('_', '-')} by judge.feedback_content)" if is_control else ""
    yield Suspicion(
        Finding(
            "feedback_not_read",
            "note" if is_control else "warning",
            f"refined rollouts score {found.value:+.3f} from the other drafts of their prompts, like one more draft: "
            f"the words change nothing{known}",
            _figures(evidence, found),
            span(fact.step for fact in pairs),
            places(_unchanged(pairs, evidence.drafts) or pairs),
            (
                Advice("judge.feedback_content", "full", "words without content are for controls"),
                Advice(
                    "model_name_or_path",
                    "a policy that follows instructions",
                    "one that cannot read learns from scores alone",
                ),
                Advice(
                    "evaluation.with_feedback", "true", "measures words against content-free ones on the same drafts"
                ),
            ),
        )
    )


def refined_worse(evidence: Evidence) -> Iterator[Suspicion]:
    """Over the whole run, refined rollouts score clearly below the other drafts of their prompts."""
    values = gains(evidence.refined, evidence.drafts)
    found, unit = mean_in_groups(values), evidence.score_spread
    if not unit or found is None or found.n < _LEAST_GROUPS or found.high >= _HARM * unit:
        return
    yield Suspicion(
        Finding(
            "refined_worse",
            "warning",
            f"refined rollouts score {found.value:+.3f} from the other drafts of their prompts: the words do harm",
            _figures(evidence, found),
            span(fact.step for fact in evidence.refined),
            places(_fallen(evidence.refined, evidence.drafts)),
            (
                Advice("judge.model", "a better one", "wrong words lead away from right replies"),
                Advice("objective.name", "ditto_no_fb", "does not train replies under the words"),
            ),
        )
    )


def no_better_than_control(evidence: Evidence) -> Iterator[Suspicion]:
    """The words add no more than those of a control run without content do."""
    control, unit = evidence.control, evidence.score_spread
    if control is None or not unit:
        return
    mine = gains(_beginning(evidence.refined), evidence.drafts)
    theirs = gains(_beginning(control.refined), control.drafts)
    a, b = mean_in_groups(mine), mean_in_groups(theirs)
    if a is None or b is None or min(a.n, b.n) < _LEAST_GROUPS:
        return
    more, reach = a.value - b.value, ((a.high - a.value) ** 2 + (b.high - b.value) ** 2) ** 0.5
    if more >= _NOT_READ * unit or more + reach >= _READ * unit:
        return
    yield Suspicion(
        Finding(
            "no_better_than_control",
            "warning",
            f"the words add {a.value:+.3f} to the reward of a prompt, those of the control run {b.value:+.3f}: their "
            "content makes no difference",
            {"difference": more, "± (95 %)": reach, "groups": a.n, "groups of the control": b.n},
            span(fact.step for fact in _beginning(evidence.refined)),
            places(_beginning(evidence.refined)),
            (Advice("judge.model", "one that says what is wrong", "words have to tell more than that the draft is"),),
        )
    )


def feedback_always_same(evidence: Evidence) -> Iterator[Suspicion]:
    """Nearly all words of the judge are one text."""
    worded = [fact for fact in evidence.drafts if fact.words is not None]
    if len(worded) < _LEAST_WORDS or evidence.setting("judge.feedback_content", "full") == CONTENT_FREE:
        return
    (most, count), *_ = collections.Counter(fact.words for fact in worded).most_common(1)
    found = rate(count, len(worded))
    if found.low <= _SAME_WORDS:
        return
    yield Suspicion(
        Finding(
            "feedback_always_same",
            "warning",
            f"{found} pieces of feedback are the same text: it cannot say what is wrong with each draft",
            {},
            span(fact.step for fact in worded),
            places(fact for fact in worded if fact.words == most),
            (Advice("judge.model", "another one", "its words do not depend on what it is shown"),),
        )
    )


def gains(refined: Sequence[RolloutFact], drafts: Sequence[RolloutFact]) -> Gains:
    """Returns (group, score of a refined rollout minus the mean score of the drafts of its prompt but its own)."""
    by_group = groups(fact for fact in drafts if fact.score is not None)
    found = []
    for fact in refined:
        others = [d.score for d in by_group.get(fact.group, []) if d.sample != fact.sample and d.score is not None]
        if others and fact.score is not None:
            found.append((fact.group, fact.score - sum(others) / len(others)))
    return found


def _beginning(refined: Sequence[RolloutFact]) -> list[RolloutFact]:
    """Those of the first third of the steps: later, a policy that learns knows what the words would say."""
    steps = sorted({fact.step for fact in refined})
    first = set(steps[: max(_BEGINNING, len(steps) // 3)])
    return [fact for fact in refined if fact.step in first]


def _figures(evidence: Evidence, found: Mean) -> dict[str, float | int | str]:
    figures: dict[str, float | int | str] = {
        "gain over other drafts": found.value,
        "95 % interval": f"{found.low:+.3f} to {found.high:+.3f}",
        "groups": found.n,
    }
    for key, name in (
        ("policy/context_gap_mean", "context gap, nats a token"),
        ("feedback/uplift", "gain over the own draft"),
        ("feedback/unchanged_fraction", "share left unchanged"),
    ):
        values = [value for _, value in series(evidence.rows, key)]
        if values:
            figures[name] = sum(values) / len(values)
    return figures


def _unchanged(refined: Sequence[RolloutFact], drafts: Sequence[RolloutFact]) -> list[RolloutFact]:
    own = {fact.slot: fact.reply for fact in drafts}
    return [fact for fact in refined if own.get(fact.slot) == fact.reply]


def _fallen(refined: Sequence[RolloutFact], drafts: Sequence[RolloutFact]) -> list[RolloutFact]:
    own = {fact.slot: fact.score for fact in drafts}
    return [f for f in refined if f.score is not None and (before := own.get(f.slot)) is not None and f.score <= before]


CHECKS = (feedback_not_read, refined_worse, no_better_than_control, feedback_always_same)
