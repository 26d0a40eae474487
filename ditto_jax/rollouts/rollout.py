"""Draft rollouts, their verdicts and feedback, and the refined rollouts: prompts in, judged rollouts out.

prompt → draft rollout → judge → feedback → refined rollout. A draft is judged as soon as its episode ends; a draft
below the gate is asked about in words, and words that pass the leak filter give one refined rollout in the context
(x, h). Failed calls stay typed outcomes: no number and no prompt is made of them. Pools and updates come later.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from ditto_jax.judge.base import GroupJudge, Judge
from ditto_jax.keys import SampleId
from ditto_jax.rollouts.episodes import Abandoned, Attempt, Played
from ditto_jax.rollouts.prompt_lengths import Room
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.text.chat import ChatFormat, common_prefix
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Rollout, RolloutRole, Verdict
from model.llama import Params
from model.sampling import SamplingParams

# In the place of a judge's name: nobody was asked, or a filter of ours decided.
_NOBODY, _FILTER = "none", "filter"
POLICY = "policy"  # wrote words about its own draft
_OBJECTIVE = "objective"  # fixed the words that drafts are sampled under


ResultT = TypeVar("ResultT")


class Player(Protocol):
    """Whoever plays episodes: the engine with weights at hand, or a policy behind an endpoint."""

    @property
    def chat_format(self) -> ChatFormat | None:
        """How chats become tokens; None where that is an endpoint's business."""
        ...

    async def play(
        self,
        params: Params,
        sampling: SamplingParams,
        attempts: Sequence[Attempt],
        judged: Callable[[int, Played | Abandoned], Awaitable[ResultT]],
    ) -> list[ResultT]:
        """Returns `judged(index, played)` for every attempt, in order; each starts as soon as its episode ends."""
        ...


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Who samples with what: the player, the weights of this step, how tokens are drawn, and what a prompt may hold.

    room: None where prompts are not measured before they are sent. constrained: replies keep to their tasks' forms.
    """

    engine: Player
    params: Params
    settings: SamplingParams
    seed: int
    step: int
    room: Room | None
    constrained: bool = False


async def draft_rollouts(
    sampling: Sampling,
    judge: Judge,
    prompts: Sequence[Prompt],
    samples: int,
    feedback_below: float | None,
    under: str = "",
    slots: Sequence[tuple[int, int]] | None = None,
    judged: Callable[[Rollout], None] = lambda rollout: None,
) -> list[Rollout]:
    """Returns `samples` judged drafts per prompt, in (prompt, sample) order; of `slots` only those, if given.

    feedback_below: drafts that score below it are asked about in words, unless the gate of their task says otherwise;
    None asks for none at all. A draft whose score failed is not asked about: there is nothing to say about an
    unjudged draft. under: words in the place of h that all drafts are sampled under; "" samples them under x. judged:
    told of every draft as soon as it is judged.
    """
    if slots is None:
        slots = [(p, s) for p in range(len(prompts)) for s in range(samples)]
    attempts = {(p, s): _attempt(sampling, prompts[p], p, s, RolloutRole.DRAFT, under or None) for p, s in slots}
    fixed = Feedback(Outcome.OK, text=under, judge=_OBJECTIVE) if under else None
    _announce(judge, list(attempts.values()))

    async def assess(index: int, played: Played | Abandoned) -> Rollout:
        rollout = await assessed(slots[index], played)
        judged(rollout)
        return rollout

    async def assessed(slot: tuple[int, int], played: Played | Abandoned) -> Rollout:
        (p, s), attempt = slot, attempts[slot]
        task, example = prompts[p].task, prompts[p].example
        if isinstance(played, Abandoned):
            _withdraw(judge, attempt)
            return _unplayed(example, RolloutRole.DRAFT, p, s, played, fixed)
        verdict = await judge.score(task, example, played.conversation, attempt.sample)
        draft = Rollout(
            example,
            RolloutRole.DRAFT,
            p,
            s,
            played.transcripts,
            played.conversation,
            verdict,
            used_feedback=fixed,
            partners=played.partners,
        )
        if feedback_below is None or prompts[p].gate.all_failed:
            return draft
        return await told(draft) if _is_below(prompts[p], draft, feedback_below, sampling.step) else draft

    async def told(draft: Rollout) -> Rollout:
        prompt = prompts[draft.prompt_index]
        key = attempts[draft.prompt_index, draft.sample_index].sample
        words = await words_about(sampling, judge, prompt, draft.conversation, draft.verdict, key)
        return dataclasses.replace(draft, feedback=words)

    drafts = await sampling.engine.play(sampling.params, sampling.settings, list(attempts.values()), assess)
    if feedback_below is None:
        return drafts
    # Whether all drafts of a prompt failed is known only now.
    late = [d for d in wanted_words(prompts, drafts, feedback_below, sampling.step) if d.feedback is None]
    said = {(d.prompt_index, d.sample_index): d for d in await asyncio.gather(*map(told, late))}
    return [said.get((d.prompt_index, d.sample_index), d) for d in drafts]


def wanted_words(
    prompts: Sequence[Prompt], drafts: Sequence[Rollout], feedback_below: float, step: int
) -> list[Rollout]:
    """Returns the drafts that the gates of their tasks let be asked about, in their order."""
    passed = {
        draft.prompt_index
        for draft in drafts
        if draft.verdict.score is not None
        and draft.verdict.score >= _threshold(prompts[draft.prompt_index], feedback_below)
    }
    return [
        draft
        for draft in drafts
        if _is_below(prompts[draft.prompt_index], draft, feedback_below, step)
        and not (prompts[draft.prompt_index].gate.all_failed and draft.prompt_index in passed)
    ]


def _threshold(prompt: Prompt, feedback_below: float) -> float:
    everything = feedback_below == math.inf  # the objective wants words about every draft
    return feedback_below if everything or prompt.gate.below is None else prompt.gate.below


def _is_below(prompt: Prompt, draft: Rollout, feedback_below: float, step: int) -> bool:
    gate, score = prompt.gate, draft.verdict.score
    if gate.by == "nobody" or (gate.until_step is not None and step > gate.until_step):
        return False
    if score is None or score >= _threshold(prompt, feedback_below):
        return False
    return prompt.task.wants_feedback(prompt.example, draft.conversation, draft.verdict)


async def words_about(
    sampling: Sampling, judge: Judge, prompt: Prompt, conversation: Conversation, verdict: Verdict, key: SampleId
) -> Feedback:
    """Returns the judge's words about a draft; words without room in the prompt become the outcome OVER_BUDGET."""
    return with_room(sampling, prompt, await judge.feedback(prompt.task, prompt.example, conversation, verdict, key))


def with_room(sampling: Sampling, prompt: Prompt, feedback: Feedback) -> Feedback:
    """Returns the words; usable ones without room in the prompt become the outcome OVER_BUDGET."""
    if not feedback.usable:
        return feedback
    task, example = prompt.task, prompt.example
    chat_format = sampling.engine.chat_format
    if not feedback.usable or sampling.room is None or chat_format is None:
        return feedback
    plain_openings = task.openings(example)
    for role, opening in task.openings(example, feedback.text).items():
        plain, hinted = chat_format.open(plain_openings[role]), chat_format.open(opening)
        lack = sampling.room.lack(len(hinted), common_prefix(plain, hinted), task.many_turns)
        if lack:
            detail = f"with these words the prompt of example {prompt.id} has {len(hinted)} tokens: {lack}"
            return Feedback(Outcome.OVER_BUDGET, judge=feedback.judge, detail=detail)
    return feedback


async def refined_rollouts(
    sampling: Sampling, judge: Judge, prompts: Sequence[Prompt], drafts: Sequence[Rollout]
) -> list[Rollout]:
    """Returns one judged refined rollout for every draft with usable feedback, in draft order.

    Those that speak of the guidance they were given would make no sense under x alone: rejected unjudged, and masked.
    """
    parents = [draft for draft in drafts if draft.feedback is not None and draft.feedback.usable]
    attempts = [
        _attempt(
            sampling, prompts[d.prompt_index], d.prompt_index, d.sample_index, RolloutRole.REFINED, d.feedback.text
        )
        for d in parents
        if d.feedback is not None
    ]
    _announce(judge, attempts)

    async def judged(index: int, played: Played | Abandoned) -> Rollout:
        parent = parents[index]
        task = prompts[parent.prompt_index].task
        example, p, s = parent.example, parent.prompt_index, parent.sample_index
        if isinstance(played, Abandoned):
            _withdraw(judge, attempts[index])
            return _unplayed(example, RolloutRole.REFINED, p, s, played, parent.feedback)
        if task.self_reference(example, played.conversation):
            _withdraw(judge, attempts[index])
            verdict = Verdict(Outcome.REJECTED, judge=_FILTER, detail="the reply speaks of the guidance it was given")
        else:
            verdict = await judge.score(task, example, played.conversation, attempts[index].sample)
        return Rollout(
            example,
            RolloutRole.REFINED,
            p,
            s,
            played.transcripts,
            played.conversation,
            verdict,
            used_feedback=parent.feedback,
            partners=played.partners,
        )

    return await sampling.engine.play(sampling.params, sampling.settings, attempts, judged)


def _announce(judge: Judge, attempts: Sequence[Attempt]) -> None:
    """Tells a judge of whole groups what it will be asked about."""
    if isinstance(judge, GroupJudge):
        for attempt in attempts:
            judge.expect(attempt.task, attempt.sample)


def _withdraw(judge: Judge, attempt: Attempt) -> None:
    if isinstance(judge, GroupJudge):
        judge.withdraw(attempt.task, attempt.sample)


def _unplayed(
    example: Example, role: RolloutRole, p: int, s: int, episode: Abandoned, words: Feedback | None = None
) -> Rollout:
    """An episode that could not go on: its outcome is counted, nothing of it is scored."""
    verdict = Verdict(episode.outcome, judge=_NOBODY, detail=f"the episode could not go on: {episode.reason}")
    nothing = Conversation((), "")
    return Rollout(
        example, role, p, s, episode.transcripts, nothing, verdict, used_feedback=words, partners=episode.partners
    )


def _attempt(
    sampling: Sampling, prompt: Prompt, group: int, sample: int, role: RolloutRole, feedback: str | None = None
) -> Attempt:
    identity = SampleId(sampling.seed, sampling.step, prompt.id, sample, role.value)
    return Attempt(prompt.task, prompt.example, group, identity, feedback, constrained=sampling.constrained)


def was_abandoned(rollout: Rollout) -> bool:
    """True for an episode that could not go on: a partner failed, or a prompt had no room."""
    return rollout.verdict.outcome is not Outcome.OK and rollout.verdict.judge == _NOBODY


def refers_to_guidance(rollout: Rollout) -> bool:
    """True for a refined rollout that was discarded because it speaks of the guidance it was given."""
    return rollout.verdict.outcome is Outcome.REJECTED and rollout.verdict.judge == _FILTER


def judges_words(rollouts: Sequence[Rollout]) -> list[Feedback]:
    """Returns all feedback that a judge was asked for."""
    return [r.feedback for r in rollouts if r.feedback is not None and r.feedback.judge != POLICY]


def judges_verdicts(rollouts: Sequence[Rollout]) -> list[Verdict]:
    """Returns the verdicts of all rollouts that are for a judge to score: reflections are not."""
    return [r.verdict for r in rollouts if r.role is not RolloutRole.REFLECTION]


def reflection_counts(rollouts: Sequence[Rollout]) -> dict[str, int]:
    """Returns how many reflections there were, how each came out as words, and how many leaked or were cut off.

    Nothing if there was none.
    """
    reflections = [r for r in rollouts if r.role is RolloutRole.REFLECTION]
    if not reflections:
        return {}
    words = [r.feedback for r in rollouts if r.feedback is not None and r.feedback.judge == POLICY]
    return {
        "reflections/count": len(reflections),
        **{f"reflections/{outcome.value}_count": sum(w.outcome is outcome for w in words) for outcome in Outcome},
        "reflections/leaked_count": sum(bool(w.leak) for w in words),
        "reflections/truncated_count": sum(r.truncated for r in reflections),
    }


def outcome_counts(rollouts: Sequence[Rollout]) -> dict[str, int]:
    """Returns how often each score and feedback outcome occurred, and how much a filter or a partner cost.

    Abandoned episodes and refined rollouts that speak of the guidance are among the score outcomes too.
    """
    counts = {f"judge/score_{outcome.value}_count": 0 for outcome in Outcome}
    counts |= {f"judge/feedback_{outcome.value}_count": 0 for outcome in Outcome}
    counts["judge/feedback_leaked_count"] = 0
    counts["feedback/self_reference_count"] = sum(map(refers_to_guidance, rollouts))
    counts["episodes/abandoned_count"] = sum(map(was_abandoned, rollouts))
    for verdict in judges_verdicts(rollouts):
        counts[f"judge/score_{verdict.outcome.value}_count"] += 1
    for words in judges_words(rollouts):
        counts[f"judge/feedback_{words.outcome.value}_count"] += 1
        counts["judge/feedback_leaked_count"] += bool(words.leak)
    return counts
