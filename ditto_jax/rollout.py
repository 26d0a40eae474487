"""Draft rollouts, their verdicts and feedback, and the refined rollouts: prompts in, judged rollouts out.

prompt → draft rollout → judge → feedback → refined rollout. A draft is judged as soon as its episode ends; a draft
below the gate is asked about in words, and words that pass the leak filter give one refined rollout in the context
(x, h). Failed calls stay typed outcomes: no number and no prompt is made of them. Pools and updates come later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from ditto_jax.chat import ChatFormat, common_prefix
from ditto_jax.engine import Abandoned, Attempt, Played
from ditto_jax.judge.base import Judge
from ditto_jax.keys import SampleId
from ditto_jax.prompt_lengths import Room
from ditto_jax.prompts import Prompt
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Rollout, RolloutRole, Verdict
from model.llama import Params
from model.sampling import SamplingParams

# In the place of a judge's name: nobody was asked, or a filter of ours decided.
_NOBODY, _FILTER = "none", "filter"


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

    room: None where prompts are not measured before they are sent.
    """

    engine: Player
    params: Params
    settings: SamplingParams
    seed: int
    step: int
    room: Room | None


async def draft_rollouts(
    sampling: Sampling,
    judge: Judge,
    prompts: Sequence[Prompt],
    samples: int,
    feedback_below: float | None,
    slots: Sequence[tuple[int, int]] | None = None,
    judged: Callable[[Rollout], None] = lambda rollout: None,
) -> list[Rollout]:
    """Returns `samples` judged drafts per prompt, in (prompt, sample) order; of `slots` only those, if given.

    feedback_below: drafts that score below it are asked about in words, unless the gate of their task says otherwise;
    None asks for none at all. A draft whose score failed is not asked about: there is nothing to say about an
    unjudged draft. judged: told of every draft as soon as it is judged.
    """
    if slots is None:
        slots = [(p, s) for p in range(len(prompts)) for s in range(samples)]
    attempts = [_attempt(sampling, prompts[p], p, s, RolloutRole.DRAFT) for p, s in slots]

    async def assess(index: int, played: Played | Abandoned) -> Rollout:
        rollout = await draft(index, played)
        judged(rollout)
        return rollout

    async def draft(index: int, played: Played | Abandoned) -> Rollout:
        p, s = slots[index]
        task, example = prompts[p].task, prompts[p].example
        if isinstance(played, Abandoned):
            return _unplayed(example, RolloutRole.DRAFT, p, s, played)
        key = attempts[index].sample
        verdict = await judge.score(task, example, played.conversation, key)
        feedback = None
        if feedback_below is not None and _is_asked_about(
            prompts[p], played.conversation, verdict, feedback_below, sampling.step
        ):
            feedback = await words_about(sampling, judge, prompts[p], played.conversation, verdict, key)
        return Rollout(
            example,
            RolloutRole.DRAFT,
            p,
            s,
            played.transcripts,
            played.conversation,
            verdict,
            feedback,
            partners=played.partners,
        )

    return await sampling.engine.play(sampling.params, sampling.settings, attempts, assess)


def _is_asked_about(
    prompt: Prompt, conversation: Conversation, verdict: Verdict, feedback_below: float, step: int
) -> bool:
    gate = prompt.gate
    below = feedback_below if gate.below is None else gate.below
    if gate.by == "nobody" or (gate.until_step is not None and step > gate.until_step):
        return False
    if verdict.score is None or verdict.score >= below:
        return False
    return prompt.task.wants_feedback(prompt.example, conversation, verdict)


async def words_about(
    sampling: Sampling, judge: Judge, prompt: Prompt, conversation: Conversation, verdict: Verdict, key: SampleId
) -> Feedback:
    """Returns the judge's words about a draft; words without room in the prompt become the outcome OVER_BUDGET."""
    task, example = prompt.task, prompt.example
    feedback = await judge.feedback(task, example, conversation, verdict, key)
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

    async def judged(index: int, played: Played | Abandoned) -> Rollout:
        parent = parents[index]
        task = prompts[parent.prompt_index].task
        example, p, s = parent.example, parent.prompt_index, parent.sample_index
        if isinstance(played, Abandoned):
            return _unplayed(example, RolloutRole.REFINED, p, s, played, parent.feedback)
        if task.self_reference(example, played.conversation):
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
    return Attempt(prompt.task, prompt.example, group, identity, feedback)


def was_abandoned(rollout: Rollout) -> bool:
    """True for an episode that could not go on: a partner failed, or a prompt had no room."""
    return rollout.verdict.outcome is not Outcome.OK and rollout.verdict.judge == _NOBODY


def refers_to_guidance(rollout: Rollout) -> bool:
    """True for a refined rollout that was discarded because it speaks of the guidance it was given."""
    return rollout.verdict.outcome is Outcome.REJECTED and rollout.verdict.judge == _FILTER


def outcome_counts(rollouts: Sequence[Rollout]) -> dict[str, int]:
    """Returns how often each score and feedback outcome occurred, and how much a filter or a partner cost.

    Abandoned episodes and refined rollouts that speak of the guidance are among the score outcomes too.
    """
    counts = {f"judge/score_{outcome.value}_count": 0 for outcome in Outcome}
    counts |= {f"judge/feedback_{outcome.value}_count": 0 for outcome in Outcome}
    counts["judge/feedback_leaked_count"] = 0
    counts["feedback/self_reference_count"] = sum(map(refers_to_guidance, rollouts))
    counts["episodes/abandoned_count"] = sum(map(was_abandoned, rollouts))
    for rollout in rollouts:
        counts[f"judge/score_{rollout.verdict.outcome.value}_count"] += 1
        if rollout.feedback is not None:
            counts[f"judge/feedback_{rollout.feedback.outcome.value}_count"] += 1
            counts["judge/feedback_leaked_count"] += bool(rollout.feedback.leak)
    return counts
