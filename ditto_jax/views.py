"""Rollouts → views: which rollout is trained under which context.

A draft gives one view, y0 under x. A refined rollout gives up to two: y1 under x (its own context without feedback, or
that of its parent draft), and y1 under (x, h), its own. Views of one rollout share their response ids token for token;
only the context before them differs (feedback-methods 0.2; DITTO Eq. 7-8). Rewards and pools are not touched here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ditto_jax.types import Outcome, Rollout, RolloutRole, Transcript, ViewRole


@dataclasses.dataclass(frozen=True)
class View:
    """One training row before padding.

    context int32[c], response int32[t], loss_mask bool[t], behaviour float32[t] (sampler log-probs, in the sampling
    context). `prompt` and `rollout` number the prompt and the rollout within the step; `cross` is True iff the
    training context is not the sampling context. `reward` is None if the judge gave no score. `parent` is the rollout
    number of the draft that the rollout answers to, -1 for drafts.
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


def _view(
    role: ViewRole, number: int, rollout: Rollout, transcript: Transcript, context: np.ndarray, parent: int = -1
) -> View:
    own = transcript.context_length
    return View(
        role=role,
        prompt=rollout.prompt_index,
        rollout=number,
        context=context,
        response=transcript.ids[own:],
        loss_mask=transcript.loss_mask[own:],
        behaviour=transcript.logprobs[own:],
        reward=rollout.verdict.score if rollout.verdict.outcome is Outcome.OK else None,
        truncated=rollout.truncated,
        cross=not np.array_equal(context, transcript.ids[:own]),
        parent=parent,
    )


def views_of(rollouts: Sequence[Rollout], roles: Sequence[ViewRole]) -> list[View]:
    """Returns the views that an objective trains (`roles`), in rollout order; rollouts that sampled nothing give
    none.
    """
    parents = {(r.prompt_index, r.sample_index): r.transcripts for r in rollouts if r.role is RolloutRole.DRAFT}
    drafts = {(r.prompt_index, r.sample_index): i for i, r in enumerate(rollouts) if r.role is RolloutRole.DRAFT}
    views = []
    for number, rollout in enumerate(rollouts):
        for name, transcript in rollout.transcripts.items():
            if not transcript.loss_mask.any():
                continue
            own = transcript.ids[: transcript.context_length]
            if rollout.role is RolloutRole.DRAFT:
                if ViewRole.DRAFT in roles:
                    views.append(_view(ViewRole.DRAFT, number, rollout, transcript, own))
                continue
            draft = drafts.get((rollout.prompt_index, rollout.sample_index), -1)
            if ViewRole.REFINED_PLAIN in roles:
                plain = transcript.plain_context
                if plain is None:
                    parent = parents[rollout.prompt_index, rollout.sample_index][name]
                    plain = parent.ids[: parent.context_length]
                views.append(_view(ViewRole.REFINED_PLAIN, number, rollout, transcript, plain, draft))
            if ViewRole.REFINED_FB in roles:
                views.append(_view(ViewRole.REFINED_FB, number, rollout, transcript, own, draft))
    return views
