"""Rollouts → views: which rollout is trained under which context.

A draft gives y0 under x and, where there are words h about it, y0 under (x, h) and those words under the question for
them. A refined rollout gives y1 under x (its own context without feedback, or that of its parent draft) and under its
own, (x, h); a reflection gives itself. Views of one transcript share their response ids token for token; only the
context before them differs (feedback-methods 0.2; DITTO Eq. 7-8). Rewards and pools are not touched here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ditto_jax.reply_form import HeldTo
from ditto_jax.rollouts.contexts import Contexts
from ditto_jax.rollouts.rollout import POLICY
from ditto_jax.types import Outcome, Rollout, RolloutRole, Transcript, ViewRole
from ditto_jax.update.advantages import RowTable


@dataclasses.dataclass(frozen=True)
class View:
    """One training row before padding.

    context int32[c], response int32[t], loss_mask bool[t], behaviour float32[t] (sampler log-probs, in the sampling
    context). `prompt` and `rollout` number the prompt and the rollout within the step; `cross` is True iff the
    training context is not the sampling context, and then `sampled_under` int32[c'] is the latter, else None. `reward`
    is None if the judge gave no score. `parent` is the rollout number of the draft that the rollout answers to, -1 for
    drafts. Of a critique nothing was sampled: its behaviour is 0 and means nothing.

    Columns over the response, None where no scoring pass made them (`scoring`), in nats: `anchor` float32[t], in the
    training context with the weights before the update; `sample` float32[t], with the same weights in the sampling
    context, of cross views alone; `reference` float32[t], of the initial policy; `teacher_lp` float32[t, K], the
    teacher's, at the tokens `teacher_ids` int32[t, K]; `mask` int32[t]: which of the step's masks each was drawn under
    (`update.constraints`), 0 for none. held: where in the response tokens were held to a form, as (start, end, form).
    """

    role: ViewRole
    prompt: int
    rollout: int
    context: np.ndarray
    response: np.ndarray
    loss_mask: np.ndarray
    behaviour: np.ndarray
    reward: float | None
    truncated: bool
    cross: bool
    parent: int = -1
    sampled_under: np.ndarray | None = None
    anchor: np.ndarray | None = None
    sample: np.ndarray | None = None
    reference: np.ndarray | None = None
    teacher_ids: np.ndarray | None = None
    teacher_lp: np.ndarray | None = None
    held: tuple[tuple[int, int, HeldTo], ...] = ()
    mask: np.ndarray | None = None


def views_of(rollouts: Sequence[Rollout], roles: Sequence[ViewRole], contexts: Contexts | None = None) -> list[View]:
    """Returns the views that an objective trains (`roles`), in rollout order; rollouts that sampled nothing, and those
    that are not kept, give none.

    contexts: opens what nothing was sampled in, for DRAFT_FB and CRITIQUE. Raises ValueError where it is needed and
    missing.
    """
    rows = _Rows(rollouts, frozenset(roles), contexts)
    return [view for number, rollout in enumerate(rollouts) if rollout.kept for view in rows.of(number, rollout)]


def row_table(views: Sequence[View]) -> RowTable:
    """Returns the table that pools are made of, one row a view."""
    return RowTable(
        role=np.array([int(v.role) for v in views], np.int32),
        prompt=np.array([v.prompt for v in views], np.int32),
        rollout=np.array([v.rollout for v in views], np.int32),
        reward=np.array([0.0 if v.reward is None else v.reward for v in views], np.float32),
        reward_valid=np.array([v.reward is not None for v in views], bool),
        row_valid=np.ones(len(views), bool),
        truncated=np.array([v.truncated for v in views], bool),
        parent=np.array([v.parent for v in views], np.int32),
        length=np.array([len(v.response) for v in views], np.int32),
    )


class _Rows:
    """The rows of single rollouts among all of a step."""

    def __init__(self, rollouts: Sequence[Rollout], roles: frozenset[ViewRole], contexts: Contexts | None):
        self._roles = roles
        self._contexts = contexts
        self._drafts = {
            (r.prompt_index, r.sample_index): (number, r)
            for number, r in enumerate(rollouts)
            if r.role is RolloutRole.DRAFT
        }

    def of(self, number: int, rollout: Rollout) -> list[View]:
        views = []
        for name, transcript in rollout.transcripts.items():
            if transcript.loss_mask.any():
                views += self._of_transcript(number, rollout, name, transcript)
        if ViewRole.CRITIQUE in self._roles and rollout.role is RolloutRole.DRAFT:
            views += self._critique(number, rollout)
        return views

    def _of_transcript(self, number: int, rollout: Rollout, name: str, transcript: Transcript) -> list[View]:
        own, plain = transcript.ids[: transcript.context_length], transcript.plain_context
        contexts: dict[ViewRole, np.ndarray | None] = {}
        parent = -1
        if rollout.role is RolloutRole.DRAFT:
            contexts[ViewRole.DRAFT] = own if plain is None else plain
            if ViewRole.DRAFT_FB in self._roles and _has_words(rollout):
                contexts[ViewRole.DRAFT_FB] = self._opened(rollout).hinted(rollout, name)
        elif rollout.role is RolloutRole.REFLECTION:
            parent, _ = self._drafts[rollout.prompt_index, rollout.sample_index]
            contexts[ViewRole.REFLECTION] = own
        else:
            parent, draft = self._drafts.get((rollout.prompt_index, rollout.sample_index), (-1, rollout))
            if plain is None and ViewRole.REFINED_PLAIN in self._roles:
                from_draft = draft.transcripts[name]
                plain = from_draft.plain_context
                plain = from_draft.ids[: from_draft.context_length] if plain is None else plain
            contexts |= {ViewRole.REFINED_PLAIN: plain, ViewRole.REFINED_FB: own}
        return [
            _view(role, number, rollout, transcript, context, parent)
            for role, context in contexts.items()
            if role in self._roles and context is not None
        ]

    def _critique(self, number: int, rollout: Rollout) -> list[View]:
        """The judge's words as the policy's own reply; the policy's words are rows of their own."""
        if not _has_words(rollout) or (rollout.feedback is not None and rollout.feedback.judge == POLICY):
            return []
        found = self._opened(rollout).critique(rollout)
        if found is None:
            return []
        context, target = found
        return [
            View(
                role=ViewRole.CRITIQUE,
                prompt=rollout.prompt_index,
                rollout=number,
                context=context,
                response=target,
                loss_mask=np.ones(len(target), bool),
                behaviour=np.zeros(len(target), np.float32),
                reward=_reward(rollout),
                truncated=False,
                cross=False,
            )
        ]

    def _opened(self, rollout: Rollout) -> Contexts:
        if self._contexts is None:
            raise ValueError(f"views of {rollout.example.id}: rows under (x, h) or a question need `contexts`")
        return self._contexts


def _view(
    role: ViewRole, number: int, rollout: Rollout, transcript: Transcript, context: np.ndarray, parent: int
) -> View:
    own = transcript.context_length
    cross = not np.array_equal(context, transcript.ids[:own])
    return View(
        role=role,
        prompt=rollout.prompt_index,
        rollout=number,
        context=context,
        response=transcript.response,
        loss_mask=transcript.loss_mask[own:],
        behaviour=transcript.logprobs[own:],
        reward=_reward(rollout),
        truncated=rollout.truncated,
        cross=cross,
        parent=parent,
        sampled_under=transcript.ids[:own] if cross else None,
        held=tuple((span.start - own, span.end - own, span.held) for span in transcript.spans if span.held is not None),
    )


def _reward(rollout: Rollout) -> float | None:
    return rollout.verdict.score if rollout.verdict.outcome is Outcome.OK else None


def _has_words(rollout: Rollout) -> bool:
    return rollout.feedback is not None and rollout.feedback.usable
