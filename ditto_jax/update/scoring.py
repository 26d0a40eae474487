"""Scoring passes: the log-probabilities that an objective's terms read, as columns of the views.

views and weights before the update → **views with columns** → sharded update

Runs what the objective declares (`Objective.passes`) and nothing else: the response of a view is read in its training
context, in its sampling context, by the initial policy, or by a teacher under (x, h). Its ids are the same in each, and
positions count from the context's own start. Rows of an update are packed as the update packs them, so that an anchor
is the number that the first update computes itself. What the numbers are used for is not known here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ditto_jax.objective import Kl, KlRef, Objective
from ditto_jax.rollouts.views import View
from ditto_jax.types import ViewRole
from ditto_jax.update.batch import NO_COLUMNS, Columns, locate, read_back
from ditto_jax.update.packing import BatchShapes
from ditto_jax.update.passes import distilled, roles_of
from ditto_jax.update.score_step import make_score, make_score_at, make_score_top
from ditto_jax.update.train_step import UpdateConfig
from model.partition import row_sharding
from model.placement import to_host, to_mesh

_FIRST_TOKENS = 3  # of a turn: echoes of the words, leaks and misalignment show there


@dataclasses.dataclass(frozen=True)
class PassWeights:
    """Parameter values on the mesh: of the policy before the update, the initial policy, and the moving average. None
    where no pass reads them.
    """

    policy: Any
    initial: Any = None
    average: Any = None


class Scoring:
    """The passes of a run. Compiles each program on first use; keeps nothing between steps."""

    def __init__(self, config: UpdateConfig, columns: Columns, shapes: BatchShapes, mesh: Mesh):
        objective, vocabulary = config.objective, config.model.vocab_size
        self.columns = columns
        self._objective = objective
        self.shapes = shapes
        self.mesh = mesh
        self._kl = distilled(objective)
        self._all_candidates = columns.teacher == vocabulary
        self.score = make_score(config, mesh)
        self._score_at = make_score_at(config, mesh)
        self._score_top = make_score_top(config, mesh, max(1, columns.teacher))

    def fill(
        self,
        views: Sequence[View],
        hinted: Sequence[View],
        updates: Sequence[Sequence[Sequence[int]]],
        live: np.ndarray,
        weights: PassWeights,
        masks: np.ndarray | None = None,
    ) -> tuple[list[View], dict[str, float]]:
        """Returns the views with the columns of this run filled in, and metrics of the teacher in nats per token.

        hinted: the DRAFT_FB views of the step, y0 under (x, h), trained or not; a draft without one has no teacher.
        updates: for each update the view indices of each of its prompts. live bool[views]: others are left alone.
        masks: of `constraints.with_masks`, where replies are constrained.
        """
        filled = list(views)
        contexts = {(v.rollout, *_sequence(_sampling_context(v), v.response)): v.context for v in hinted}
        gaps: list[_TeacherGap] = []
        if any(self.columns._replace(mask=False)):
            for prompts in updates:
                rows = [[i for i in prompt if live[i]] for prompt in prompts]
                readings = _Readings(self, rows, weights, masks)
                self._fill_own(filled, rows, readings)
                if self._kl is not None:
                    gaps += self._fill_teacher(filled, rows, readings, contexts)
        return filled, _teacher_metrics(gaps) if self._kl is not None else {}

    def _fill_own(self, views: list[View], rows: list[list[int]], readings: _Readings) -> None:
        """Anchors, sampling contexts and the reference."""
        mine = {i: views[i] for prompt in rows for i in prompt}
        if self.columns.anchor:
            known = {i: v.behaviour for i, v in mine.items() if _takes_behaviour(v, self._objective)}
            known |= readings.logprobs("policy", {i: v for i, v in mine.items() if i not in known})
            _set(views, "anchor", known)
        if self.columns.sample:
            cross = {
                i: dataclasses.replace(v, context=v.sampled_under)
                for i, v in mine.items()
                if v.sampled_under is not None
            }
            _set(views, "sample", readings.logprobs("policy", cross))
        if self.columns.reference:
            roles = roles_of(self._objective, KlRef)
            _set(views, "reference", readings.logprobs("initial", {i: v for i, v in mine.items() if v.role in roles}))

    def _fill_teacher(
        self, views: list[View], rows: list[list[int]], readings: _Readings, contexts: Mapping[Any, np.ndarray]
    ) -> list[_TeacherGap]:
        assert self._kl is not None
        roles = roles_of(self._objective, Kl)
        plain = {i: views[i] for prompt in rows for i in prompt if views[i].role in roles}
        taught = {i: _under_words(view, contexts) for i, view in plain.items()}
        taught = {i: view for i, view in taught.items() if view is not None}
        if not taught:
            return [_TeacherGap(view.loss_mask, None) for view in plain.values()]
        teacher = {"same": "policy", "frozen": "initial", "ema": "average"}[self._objective.teacher.weights]
        if self._kl.sampled:
            found = readings.logprobs(teacher, taught)
            ids, of_ids = {i: v.response[:, None] for i, v in taught.items()}, {i: x[:, None] for i, x in found.items()}
        elif self._kl.candidates == "teacher" or self._all_candidates:
            found, ids, of_ids = readings.run(self._score_top, teacher, taught)
        else:
            _, ids, _ = readings.run(self._score_top, "policy", {i: plain[i] for i in taught})
            asked = {i: dataclasses.replace(view, teacher_ids=ids[i]) for i, view in taught.items()}
            found, of_ids = readings.run(self._score_at, teacher, asked, Columns(teacher=self.columns.teacher))
        _set(views, "teacher_ids", ids)
        _set(views, "teacher_lp", of_ids)
        return [
            _TeacherGap(view.loss_mask, found[i] - readings.student(view) if i in taught else None)
            for i, view in plain.items()
        ]


class _Readings:
    """What has been read for the rows of one update; a sequence that the same weights have read is not read again."""

    def __init__(self, scoring: Scoring, rows: list[list[int]], weights: PassWeights, masks: np.ndarray | None = None):
        self._scoring = scoring
        self._masks = masks
        self._rows = rows
        self._weights = weights
        self._known: dict[Any, np.ndarray] = {}

    def logprobs(self, who: str, asked: Mapping[int, View]) -> dict[int, np.ndarray]:
        """Returns float32[t] for each view asked about: log-probs of its response in its context."""
        fresh = {i: v for i, v in asked.items() if self._name(who, v) not in self._known}
        if fresh:
            (found,) = self.run(self._scoring.score, who, fresh)
            self._known |= {self._name(who, fresh[i]): lp for i, lp in found.items()}
        return {i: self._known[self._name(who, view)] for i, view in asked.items()}

    def run(self, program: Any, who: str, asked: Mapping[int, View], columns: Columns = NO_COLUMNS) -> list[Any]:
        """Returns, for each array of the program's result, view number → its part for the response."""
        numbers = {index: n for n, index in enumerate(asked)}
        prompts = [[numbers[i] for i in prompt if i in asked] for prompt in self._rows]
        scoring, views = self._scoring, list(asked.values())
        columns = columns._replace(mask=scoring.columns.mask)
        batch, located = locate(views, prompts, np.ones(len(views), bool), scoring.shapes, columns)
        placed = to_mesh(batch, row_sharding(scoring.mesh, leading=1))
        result = to_host(program(getattr(self._weights, who), placed, self._masks))
        parts = [read_back(leaf, located) for leaf in jax.tree.leaves(result)]
        if who == "policy":
            self._known |= {self._name(who, views[n]): lp for n, lp in parts[0].items()}
        return [{i: part[n] for i, n in numbers.items()} for part in parts]

    def student(self, view: View) -> np.ndarray:
        """float32[t]: the policy's log-probs of a response in the view's context, the sampler's if no pass read it."""
        return self._known.get(self._name("policy", view), view.behaviour)

    def _name(self, who: str, view: View) -> tuple[Any, ...]:
        return who, *_sequence(view.context, view.response)


@dataclasses.dataclass(frozen=True)
class _TeacherGap:
    """loss_mask bool[t]; gap float32[t], lp_T - lp_S of the sampled tokens, None of a row without a teacher."""

    loss_mask: np.ndarray
    gap: np.ndarray | None


def _takes_behaviour(view: View, objective: Objective) -> bool:
    """Whether the sampler's log-probs stand in for the anchor: never where they are of another context, or of nobody's
    (a judge's words were not sampled).
    """
    return objective.anchor == "behaviour" and not view.cross and view.role is not ViewRole.CRITIQUE


def _under_words(view: View, contexts: Mapping[Any, np.ndarray]) -> View | None:
    """Returns the view in the context that the teacher reads it in, None without usable words.

    A refined rollout was itself sampled under the words.
    """
    context = contexts.get((view.rollout, *_sequence(_sampling_context(view), view.response)))
    if context is None and view.role is ViewRole.REFINED_PLAIN:
        context = view.sampled_under
    return None if context is None else dataclasses.replace(view, context=context)


def _sampling_context(view: View) -> np.ndarray:
    return view.context if view.sampled_under is None else view.sampled_under


def _sequence(context: np.ndarray, response: np.ndarray) -> tuple[bytes, bytes]:
    return context.tobytes(), response.tobytes()


def _set(views: list[View], column: str, values: Mapping[int, np.ndarray]) -> None:
    for index, value in values.items():
        views[index] = dataclasses.replace(views[index], **{column: value})


def _teacher_metrics(rows: Sequence[_TeacherGap]) -> dict[str, float]:
    """How far the teacher is from the policy on the sampled tokens, and how much of it on the first ones of a turn."""
    read = [(row.loss_mask, row.gap) for row in rows if row.gap is not None]
    metrics = {"teacher/rows_count": float(len(read)), "teacher/unread_count": float(len(rows) - len(read))}
    if not any(mask.any() for mask, _ in read):
        return metrics
    gaps = np.concatenate([gap[mask] for mask, gap in read])
    first = np.concatenate([_is_first(mask)[mask] for mask, _ in read])
    return metrics | {
        "teacher/gap_mean": float(gaps.mean()),
        "teacher/gap_p99": float(np.percentile(np.abs(gaps), 99)),
        "teacher/gap_first_tokens_fraction": float(np.abs(gaps[first]).sum() / max(np.abs(gaps).sum(), 1e-9)),
    }


def _is_first(mask: np.ndarray) -> np.ndarray:
    """bool[t]: the first tokens of each turn that the policy sampled."""
    number = np.arange(len(mask))
    begins = np.maximum.accumulate(np.where(mask & ~np.r_[False, mask[:-1]], number, -1))
    return mask & (number - begins < _FIRST_TOKENS)
