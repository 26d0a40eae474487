"""The rows of one prompt in an update → what was learned at each of their tokens, as plain columns.

views and pools → **token by token** → terminal, JSON

In: lessons, as the trainer shows them before each update. Out: one `ViewTokens` for every view of the prompt. The
arithmetic is that of the update (`token_reading`); what is shown of it is decided here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ditto_jax.rollouts.views import View
from ditto_jax.trainer import Lesson, Trainer
from ditto_jax.types import Rollout
from ditto_jax.update.batch import Located, locate, read_back
from ditto_jax.update.token_reading import LIMITS, TokenReading, make_token_reading
from model.partition import row_sharding


@dataclasses.dataclass(frozen=True)
class ViewTokens:
    """One view and its response; lists have one entry a token.

    view, role, sample: of the view and its rollout. update: the number of its update in the step. advantage: its
    weight. left_out: why it is not trained, or "". sampled: whether the policy wrote the token; behaviour: the
    log-probability that it was sampled with, in the sampling context. Of views that are trained also, else empty:
    logprob and anchor (nats, in the training context, before this update and before the first of the step), ratio,
    limit (one of `LIMITS`), multiplier, loss (what the token adds to the loss of the update) and share (of the sum of
    the sizes of all that is added); 0 where nothing was sampled. The ratio of a token that a filter left out is 1.
    """

    view: str
    role: str
    sample: int
    update: int
    advantage: float
    left_out: str
    ids: list[int]
    texts: list[str]
    sampled: list[bool]
    behaviour: list[float]
    logprob: list[float] = dataclasses.field(default_factory=list)
    anchor: list[float] = dataclasses.field(default_factory=list)
    ratio: list[float] = dataclasses.field(default_factory=list)
    limit: list[str] = dataclasses.field(default_factory=list)
    multiplier: list[float] = dataclasses.field(default_factory=list)
    loss: list[float] = dataclasses.field(default_factory=list)
    share: list[float] = dataclasses.field(default_factory=list)


class TokenReader:
    """Looks at the lessons of a step and keeps what concerns one prompt. rollouts: those of the step."""

    def __init__(self, trainer: Trainer, rollouts: Sequence[Rollout], prompt: int):
        self.views: list[ViewTokens] = []
        self._trainer = trainer
        self._rollouts = rollouts
        self._prompt = prompt
        self._updates = 0
        self._read = make_token_reading(trainer.update_config, trainer.parts.mesh)

    def __call__(self, lesson: Lesson) -> None:
        """Reads a lesson with the weights that it is about to change."""
        self._updates += 1
        mine = [i for members in lesson.members for i in members if lesson.views[i].prompt == self._prompt]
        if not mine:
            return
        trainer = self._trainer
        valid = lesson.advantages.row_valid
        _, places = locate(lesson.views, lesson.members, valid, trainer.shapes, trainer.scoring.columns)
        batch = jax.device_put(lesson.batch, row_sharding(trainer.parts.mesh, leading=1))
        reading = jax.device_get(self._read(trainer.state.params, trainer.weights.base, batch, lesson.masks))
        total = np.abs(sum(np.asarray(term.loss, np.float64) for term in reading.terms)).sum()
        for index in mine:
            found = self._plain(lesson, index)
            if index in places:
                columns = _columns(reading, lesson.views[index].loss_mask, places[index], float(total))
                found = dataclasses.replace(found, **columns)
            self.views.append(found)

    def _plain(self, lesson: Lesson, index: int) -> ViewTokens:
        view = lesson.views[index]
        rollout = self._rollouts[view.rollout]
        ids = view.response.tolist()
        return ViewTokens(
            view=view.role.name.lower(),
            role=rollout.role.value,
            sample=rollout.sample_index,
            update=self._updates,
            advantage=float(lesson.advantages.weights[index]),
            left_out="" if lesson.advantages.row_valid[index] else _why_left_out(view),
            ids=ids,
            texts=pieces(ids, self._trainer.parts.policy.tokenizer.decode),
            sampled=view.loss_mask.tolist(),
            behaviour=[float(x) for x in view.behaviour],
        )


def pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Returns the text of each token as it reads behind the one before it."""
    texts = [decode(ids[:1])] if ids else []
    for i in range(1, len(ids)):
        before = decode(ids[i - 1 : i])
        both = decode(ids[i - 1 : i + 1])
        texts.append(both[len(before) :] if both.startswith(before) else decode(ids[i : i + 1]))
    return texts


def _why_left_out(view: View) -> str:
    if view.reward is None:
        return "no verdict"
    return "cut off by the token limit" if view.truncated else "its rollout or its pool has no verdict"


def _columns(reading: TokenReading, sampled: np.ndarray, place: Located, total: float) -> dict[str, list[Any]]:
    def own(array: Any) -> np.ndarray:
        return np.where(sampled, read_back(np.asarray(array), {0: place})[0], 0)

    loss = np.asarray(sum(own(term.loss).astype(np.float64) for term in reading.terms))
    # Of several terms the first that trains the row: policy gradients, which have ratios and limits, come first.
    main = next((term for term in reading.terms if own(term.trains).any()), reading.terms[0])
    return {
        "logprob": own(reading.lp).tolist(),
        "anchor": own(reading.anchor).tolist(),
        "ratio": own(main.ratio).tolist(),
        "limit": [LIMITS[number] for number in own(main.limit)],
        "multiplier": own(main.multiplier).tolist(),
        "loss": loss.tolist(),
        "share": (np.abs(loss) / max(total, np.finfo(np.float64).tiny)).tolist(),
    }
