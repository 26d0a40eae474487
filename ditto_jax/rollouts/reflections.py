"""Drafts → reflections: the policy reads x, its draft and the outcome, and writes the words h itself.

draft rollout → **reflection** → feedback → refined rollout. A reflection is an episode of one reply through the same
engine, with keys of its own. The words pass the same filters as a judge's; truncated and empty ones are typed outcomes,
never prompts. Scored by the refined rollouts under them (arXiv 2602.13949). Samples no refined rollout.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from ditto_jax.judge.fence import printable
from ditto_jax.judge.words import screened_feedback
from ditto_jax.keys import SampleId
from ditto_jax.rollouts.episodes import Abandoned, Attempt, Played
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.rollouts.questions import reflection_question
from ditto_jax.rollouts.rollout import POLICY, Sampling, with_room
from ditto_jax.tasks.answers import visible_text
from ditto_jax.types import Conversation, Feedback, FinishReason, Outcome, Rollout, RolloutRole, Verdict

_REFINED = "refined"  # in the place of a judge's name: the score is that of refined rollouts


@dataclasses.dataclass(frozen=True)
class Reflection:
    """A reflection on `draft`: its episode, and what it says."""

    draft: Rollout
    played: Played | Abandoned
    words: Feedback

    @property
    def slot(self) -> tuple[int, int]:
        """Prompt and sample, which its draft and the refined rollouts under it have too."""
        return self.draft.prompt_index, self.draft.sample_index


async def reflect(sampling: Sampling, prompts: Sequence[Prompt], drafts: Sequence[Rollout]) -> list[Reflection]:
    """Returns one reflection for each of the drafts, in their order; each draft has a score."""

    def attempt(draft: Rollout) -> Attempt:
        prompt = prompts[draft.prompt_index]
        was = None if draft.used_feedback is None else draft.used_feedback.text
        chat = reflection_question(prompt.task, draft.example, draft.conversation, draft.verdict, draft.feedback, was)
        role = RolloutRole.REFLECTION.value
        identity = SampleId(sampling.seed, sampling.step, prompt.id, draft.sample_index, role)
        return Attempt(prompt.task, draft.example, draft.prompt_index, identity, question=chat)

    attempts = [attempt(draft) for draft in drafts]
    lacks = [_lack(sampling, one) for one in attempts]
    rooms = [index for index, lack in enumerate(lacks) if not lack]

    async def read(index: int, played: Played | Abandoned) -> Reflection:
        draft = drafts[rooms[index]]
        return Reflection(draft, played, _words(sampling, prompts[draft.prompt_index], played))

    played = await sampling.engine.play(sampling.params, sampling.settings, [attempts[i] for i in rooms], read)
    done = dict(zip(rooms, played, strict=True))
    return [done.get(index) or _without_room(draft, lacks[index]) for index, draft in enumerate(drafts)]


def _lack(sampling: Sampling, attempt: Attempt) -> str:
    chat_format = sampling.engine.chat_format
    if sampling.room is None or chat_format is None:
        return ""
    length = len(chat_format.open(attempt.question or ()))
    # Rows that share too little stand alone, in the sampler and in the update: the whole prompt may be a prefix.
    lack = sampling.room.lack(length, length - 1)
    return f"the question has {length} tokens: {lack}" if lack else ""


def _without_room(draft: Rollout, lack: str) -> Reflection:
    words = Feedback(Outcome.OVER_BUDGET, judge=POLICY, detail=lack)
    return Reflection(draft, Abandoned(lack, {}, Outcome.OVER_BUDGET), words)


def _words(sampling: Sampling, prompt: Prompt, played: Played | Abandoned) -> Feedback:
    """What a reflection says, or why it is no feedback."""
    if isinstance(played, Abandoned):
        return Feedback(played.outcome, judge=POLICY, detail=played.reason)
    if any(t.finish_reason is FinishReason.LENGTH for t in played.transcripts.values()):
        detail = "the reflection was cut off by the token budget; raise rollout.max_completion_length"
        return Feedback(Outcome.OVER_BUDGET, judge=POLICY, detail=detail)
    text = printable(visible_text(played.conversation.reply)).strip()
    if not text:
        return Feedback(Outcome.UNPARSABLE, judge=POLICY, detail="the reflection holds no visible character")
    return with_room(sampling, prompt, screened_feedback(prompt.task, prompt.example, text, judge=POLICY))


def with_words(drafts: Sequence[Rollout], reflections: Sequence[Reflection]) -> list[Rollout]:
    """Returns the drafts, those with a reflection with its words as their feedback."""
    said = {reflection.slot: reflection.words for reflection in reflections}
    slots = [(draft.prompt_index, draft.sample_index) for draft in drafts]
    return [
        dataclasses.replace(draft, feedback=said[slot]) if slot in said else draft
        for draft, slot in zip(drafts, slots, strict=True)
    ]


def reflection_rollouts(reflections: Sequence[Reflection], refined: Sequence[Rollout]) -> list[Rollout]:
    """Returns the reflections as rollouts, each scored by the mean of the refined rollouts under its words.

    Without a scored refined rollout there is no score, and the outcome says why.
    """
    return [
        Rollout(
            example=one.draft.example,
            role=RolloutRole.REFLECTION,
            prompt_index=one.draft.prompt_index,
            sample_index=one.draft.sample_index,
            transcripts=one.played.transcripts,
            conversation=one.played.conversation if isinstance(one.played, Played) else Conversation((), ""),
            verdict=_reward(one.words, [r for r in refined if (r.prompt_index, r.sample_index) == one.slot]),
            feedback=one.draft.feedback,
            used_feedback=one.draft.feedback if one.draft.feedback and one.draft.feedback.usable else None,
        )
        for one in reflections
    ]


def _reward(words: Feedback, refined: Sequence[Rollout]) -> Verdict:
    scores = [r.verdict.score for r in refined if r.verdict.score is not None]
    if scores:
        detail = f"mean of the refined rollouts under these words: {len(scores)}"
        return Verdict(Outcome.OK, statistics.fmean(scores), judge=_REFINED, detail=detail)
    if refined:
        verdict = refined[0].verdict
        return Verdict(verdict.outcome, judge=_REFINED, detail=f"no refined rollout has a score: {verdict.detail}")
    if words.outcome is Outcome.OK:
        return Verdict(Outcome.REJECTED, judge=_REFINED, detail=f"the words leak: {words.leak}")
    return Verdict(words.outcome, judge=_REFINED, detail=words.detail)
