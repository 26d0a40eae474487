"""One step of training: the one sentence of this project.

prompt → draft rollout → judge → feedback → refined rollout → views and pools → sharded update

`Trainer` holds the state of a run; `step` reads top to bottom like the sentence. One step behind, the first half of the
next sentence is under way during the second half of this one, and what is learned is the same as if it were not. Writes
nothing to disk: what is kept, and when, is `loop.py`'s.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError
from ditto_jax.judge.health import require_healthy
from ditto_jax.judge.shadow import SecondOpinions
from ditto_jax.keys import derive
from ditto_jax.objective import Objective, make_objective
from ditto_jax.objective.validation import require_correction
from ditto_jax.rollouts.contexts import Contexts
from ditto_jax.rollouts.pipeline import Overlap, Pipeline, overlap_of
from ditto_jax.rollouts.prompt_lengths import room_of
from ditto_jax.rollouts.prompts import Prompt, PromptStream
from ditto_jax.rollouts.records import rollout_rows
from ditto_jax.rollouts.rollout import Sampling, judges_verdicts, judges_words
from ditto_jax.rollouts.views import View, row_table, views_of
from ditto_jax.runs.metrics import Stopwatch, rollout_metrics, sampled_tokens
from ditto_jax.setup import Parts
from ditto_jax.team.team import Team
from ditto_jax.types import Rollout, ViewRole
from ditto_jax.update.advantages import AdvantageResult, assign
from ditto_jax.update.batch import TokenCounts, TrainBatch, by_prompt, pack, token_counts
from ditto_jax.update.constraints import with_masks
from ditto_jax.update.loss import finish_metrics
from ditto_jax.update.packing import BatchShapes, batch_shapes, keys_per_token
from ditto_jax.update.passes import columns_of, needs_average, needs_initial
from ditto_jax.update.scoring import PassWeights, Scoring
from ditto_jax.update.state import TrainState, advance_average, copied, make_optimizer, make_state
from ditto_jax.update.train_step import UpdateConfig, finish_gap, make_update
from ditto_jax.weights import Weights
from model.partition import row_sharding
from model.placement import to_host, to_mesh
from model.sampling import SamplingParams

_NO_OPINIONS = SecondOpinions()


@dataclasses.dataclass(frozen=True)
class Experience:
    """The judged and refined rollouts of one step, of which nothing is learned yet. policy_step: the step whose weights
    sampled them. spent: what judges and partners counted meanwhile. waited: metrics of the time in which nothing was
    sampled.
    """

    prompts: Sequence[Prompt]
    rollouts: Sequence[Rollout]
    policy_step: int
    spent: Mapping[str, float]
    waited: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What one optimiser update learns from. members: for each of its prompts the numbers of its views in `views`, the
    views of the whole step; batch: these, packed. masks: of the step (`with_masks`), None where nothing is constrained.
    """

    views: Sequence[View]
    advantages: AdvantageResult
    members: Sequence[Sequence[int]]
    batch: TrainBatch
    masks: np.ndarray | None = None


class _Learned(NamedTuple):
    """Views and advantages of a step that was learned from, and what scoring and updates say of it."""

    views: Sequence[View]
    advantages: AdvantageResult
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class _Ahead:
    """The rollouts of the next step, on their way; watch: the time that they take."""

    experience: asyncio.Task[Experience]
    watch: Stopwatch


class Trainer:
    """A run in progress: parts, state, and the position in the prompt stream."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        stream: PromptStream,
        objective: Objective | None = None,
        team: Team | None = None,
    ):
        """objective: in place of the one that the configuration names. team: the processes of the run."""
        self.team = team = team or Team()
        _require_lockstep(config, team)
        self.config = config
        self.parts = parts
        self.objective = objective or make_objective(config.objective)
        require_correction(self.objective, config.rollout.steps_behind)
        self.stream = stream
        self.position = 0
        self.done_steps = 0
        self.ledger: dict[str, float] = {}  # counts and costs of judges and partners, summed over the steps of the run
        train = config.train
        self.optimizer = make_optimizer(config.optimizer, train.max_steps * train.updates_per_step)
        self.weights = Weights(config, parts.policy, parts.mesh)
        averaged = needs_average(self.objective)
        behind = bool(config.rollout.steps_behind)
        self.state = make_state(self.weights.initial(), self.optimizer, parts.mesh, averaged=averaged, behind=behind)
        self._initial = self.weights.untrained(self.state.params) if needs_initial(self.objective) else None
        self.update_config = UpdateConfig(
            model=parts.policy.config,
            objective=self.objective,
            temperature=config.rollout.temperature,
            remat=train.remat,
            logprob_chunk=train.logprob_chunk,
            lora=self.weights.lora,
            gradient_dtype=train.gradient_dtype,
        )
        updated = self.state._replace(behaviour=None)
        self._update = make_update(self.update_config, self.optimizer, parts.mesh, updated, self.weights.base)
        self.shapes = _batch_shapes(config, parts, self.objective)
        vocabulary, constrained = parts.policy.config.vocab_size, config.rollout.constrained
        columns = columns_of(self.objective, vocabulary, train.updates_per_step, constrained)
        self.scoring = Scoring(self.update_config, columns, self.shapes, parts.mesh)
        self._settings = SamplingParams(temperature=config.rollout.temperature)
        self._ahead: _Ahead | None = None
        self._overlap: Overlap = overlap_of(config, self.objective, stream.tasks, team.count)

    @property
    def pipeline(self) -> Pipeline:
        """How steps come by their rollouts, with the parts and settings of now."""
        return Pipeline(self.config, self.objective, self._overlap, self.parts.engine, self.parts.judge)

    def warm_up(self) -> int:
        """Compiles everything that sampling for training can meet; returns how many shapes its calls can have."""
        train, sampler = self.config.train, self.parts.engine.sampler
        longest = train.prefix[-1] + train.suffix[-1] - 1  # what an update has room for, and a token of reply
        many_turns = any(loaded.task.many_turns for loaded in self.stream.tasks)
        members, weights = self.config.rollout.num_generations, self.sampling().params
        held = self.config.rollout.constrained
        if self.pipeline.shares_a_call:
            words = self.config.rollout.max_feedback_length
            return sampler.warm_up_open(weights, self._settings, members, longest, words, held)
        return sampler.warm_up(weights, self._settings, members, longest, many_turns, held)

    async def step(self, watch: Stopwatch) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Runs one step; returns its metrics and the records of its rollouts."""
        if not self.config.rollout.steps_behind:
            return await self.learn(await self.experience(watch), watch)
        experience = await self._arrival(watch)
        self._pass_on_weights()
        self._begin_next(self.position + len(experience.prompts))
        # In a thread, so that judges and partners of the next step are served meanwhile.
        return self._closed(experience, await asyncio.to_thread(self._learn, experience, watch))

    def sampling(self) -> Sampling:
        """Returns who samples the rollouts of the next step, and with which weights."""
        return self._sampling_of(self.done_steps + 1)

    async def experience(self, watch: Stopwatch) -> Experience:
        """Returns the rollouts of the next step: prompt → draft rollout → judge → feedback → refined rollout."""
        return await self._experience(self.sampling(), self.position, watch)

    async def learn(
        self, experience: Experience, watch: Stopwatch, look: Callable[[Lesson], None] = lambda lesson: None
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Does the updates of a step: views and pools → sharded update; returns what `step` returns.

        look: is shown every lesson while the state is still as it was before that update.
        """
        self._pass_on_weights()
        counted = self.parts.counters()
        learned = self._learn(experience, watch, look)
        second = await self.parts.second_opinions()
        return self._closed(experience, learned, second, _difference(self.parts.counters(), counted))

    async def at_rest(self) -> None:
        """Waits until no rollouts of a next step are on their way; what became of them is told by that step."""
        if self._ahead is not None:
            await asyncio.wait([self._ahead.experience])

    async def aclose(self) -> None:
        """Gives up rollouts that are on their way, and closes the connections of judges and partners."""
        if self._ahead is not None:
            self._ahead.experience.cancel()
            await self.at_rest()
        await self.parts.aclose()

    def _sampling_of(self, number: int) -> Sampling:
        engine, behaviour = self.parts.engine, self.state.behaviour
        params = self.sampling_params() if behaviour is None else self.weights.for_sampling(behaviour)
        room, held = room_of(engine, self.config.train), self.config.rollout.constrained
        return Sampling(engine, params, self._settings, self.config.seed, number, room, held)

    def _pass_on_weights(self) -> None:
        """Before the updates of a step: one step behind, the next is sampled with the weights that these begin with."""
        if self.state.behaviour is not None:
            self.state = self.state._replace(behaviour=copied(self.state.params))

    def _begin_next(self, position: int) -> None:
        """Begins the rollouts of the step after the next, whose prompts begin at `position`, if there is one."""
        if self.done_steps + 1 < self.config.train.max_steps:
            watch = Stopwatch()
            experience = self._experience(self._sampling_of(self.done_steps + 2), position, watch)
            self._ahead = _Ahead(asyncio.create_task(experience), watch)

    async def _arrival(self, watch: Stopwatch) -> Experience:
        """The rollouts of the next step: those on their way, or, where a run begins or goes on, new ones."""
        if self._ahead is None:
            return await self.experience(watch)
        ahead, self._ahead = self._ahead, None
        with watch.phase("wait"):
            experience = await ahead.experience
        watch.include(ahead.watch)
        return experience

    async def _experience(self, sampling: Sampling, position: int, watch: Stopwatch) -> Experience:
        config = self.config
        prompts = self.stream.at(position, config.rollout.prompts_per_step)
        counted = self.parts.counters()
        rollouts, waited = await self.pipeline.rollouts(sampling, prompts, watch)
        self.parts.engine.sampler.release()
        self.team.agree(self.parts.require_budget)
        _require_healthy_judge(rollouts, config.judge.max_error_rate, sampling.step)
        policy_step = max(0, sampling.step - 1 - config.rollout.steps_behind)
        return Experience(prompts, rollouts, policy_step, _difference(self.parts.counters(), counted), waited)

    def _learn(
        self, experience: Experience, watch: Stopwatch, look: Callable[[Lesson], None] = lambda lesson: None
    ) -> _Learned:
        """All of `learn` that asks nobody."""
        prompts, rollouts = experience.prompts, experience.rollouts
        with watch.phase("pack"):
            room = room_of(self.parts.engine, self.config.train)
            contexts = Contexts(prompts, self.parts.policy.chat_format, room)
            views = views_of(rollouts, self.objective.views, contexts)
            masks = None
            if self.config.rollout.constrained:
                views, masks = with_masks(views, self.parts.engine.grammars)
            advantages = assign(row_table(views), self.objective)
            updates = self._updates(views, self.done_steps + 1)
        with watch.phase("score"), self.parts.engine.device:
            hinted = views_of(rollouts, (ViewRole.DRAFT_FB,), contexts) if self.scoring.columns.teacher else []
            valid, weights = advantages.row_valid, self._pass_weights()
            views, scored = self.scoring.fill(views, hinted, updates, valid, weights, masks)
        with watch.phase("pack"):
            lessons = [self._lesson(views, members, advantages, masks) for members in updates]
            packed = sum((token_counts(lesson.batch) for lesson in lessons), TokenCounts(0, 0, 0, 0))
        moved = self._apply(lessons, watch, look)
        return _Learned(views, advantages, {**scored, **moved, "train/real_token_fraction": packed.real_fraction})

    def _closed(
        self,
        experience: Experience,
        learned: _Learned,
        second: SecondOpinions = _NO_OPINIONS,
        spent: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Ends a step; returns what `step` returns. spent: what judges and partners counted beside its rollouts."""
        prompts, rollouts, number = experience.prompts, experience.rollouts, self.done_steps + 1
        self.position += len(prompts)
        self.done_steps = number
        here = {name: experience.spent.get(name, 0) + spent.get(name, 0) for name in {**experience.spent, **spent}}
        # Differences: what evaluations ask of the judge must not make a resumed run differ from a straight one.
        for name, value in self.team.summed(here).items():
            self.ledger[name] = self.ledger.get(name, 0) + value
        metrics = {
            "step": number,
            "completions/sampled_tokens": sampled_tokens(rollouts),
            **rollout_metrics(rollouts, [prompt.label for prompt in prompts]),
            **learned.advantages.metrics,
            **learned.metrics,
            **experience.waited,
            **second.metrics,
            **self.ledger,
        }
        rows = rollout_rows(number, prompts, rollouts, learned.views, learned.advantages, second.verdicts)
        return metrics, [{**row, "policy_step": experience.policy_step} for row in rows]

    def _updates(self, views: Sequence[View], number: int) -> list[list[list[int]]]:
        """Returns for each optimiser update the views of its prompts; those of a prompt stay together
        (feedback-methods 8.5, rule 4).
        """
        groups = by_prompt(views)
        prompts = list(range(self.config.rollout.prompts_per_step))
        random.Random(derive(self.config.seed, "updates", number)).shuffle(prompts)
        parts = np.array_split(np.asarray(prompts), self.config.train.updates_per_step)
        return [[groups[p] for p in sorted(part.tolist()) if p in groups] for part in parts]

    def _lesson(
        self,
        views: Sequence[View],
        members: list[list[int]],
        advantages: AdvantageResult,
        masks: np.ndarray | None,
    ) -> Lesson:
        weights, valid, live = advantages.weights, advantages.row_valid, advantages.row_live
        columns, row_weight = self.scoring.columns, advantages.row_weight
        batch = pack(views, members, weights, valid, self.shapes, columns, live, row_weight)
        return Lesson(views, advantages, members, batch, masks)

    def _pass_weights(self) -> PassWeights:
        average = None if self.state.average is None else self.weights.whole(self.state.average)
        return PassWeights(self.weights.whole(self.state.params), self._initial, average)

    def _apply(self, lessons: Sequence[Lesson], watch: Stopwatch, look: Callable[[Lesson], None]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        behaviour = self.state.behaviour  # is sampled with meanwhile, and an update frees what it is given
        with watch.phase("update"), self.parts.engine.device:
            batches = to_mesh([lesson.batch for lesson in lessons], row_sharding(self.parts.mesh, leading=1))
            for lesson, batch in zip(lessons, batches, strict=True):
                look(lesson)
                state, sums, gap, norm = self._update(self.state._replace(behaviour=None), batch, lesson.masks)
                self.state = state._replace(behaviour=behaviour)
                sums, gap, norm = to_host((sums, gap, norm))
                # Of several updates the last is reported: its ratios have moved furthest from the anchor.
                metrics = {**finish_metrics(sums), **finish_gap(gap), "grad_norm": float(norm)}
            if self.state.average is not None:
                average = advance_average(self.state.average, self.state.params, self.objective.teacher.rate)
                self.state = self.state._replace(average=average)
        return metrics

    def sampling_params(self) -> Any:
        """Returns the parameter value that evaluation reads, and sampling that is not one step behind."""
        return self.weights.for_sampling(self.state.params)

    def meta(self) -> dict[str, Any]:
        """Host state that a checkpoint carries beside the arrays."""
        recent = [] if self.parts.shadow is None else list(self.parts.shadow.recent)
        return {"step": self.done_steps, "position": self.position, "ledger": self.ledger, "shadow": recent}

    def restore(self, state: TrainState, meta: dict[str, Any]) -> None:
        self.state, self.done_steps, self.position = state, int(meta["step"]), int(meta["position"])
        self.ledger = dict(meta["ledger"])
        if self.parts.shadow is not None:
            self.parts.shadow.recent.extend(meta.get("shadow", []))


def _batch_shapes(config: RunConfig, parts: Parts, objective: Objective) -> BatchShapes:
    train = config.train
    split = parts.mesh.shape["data"] * parts.mesh.shape["fsdp"]
    return batch_shapes(
        prompts=-(-config.rollout.prompts_per_step // train.updates_per_step),
        rows=config.rollout.num_generations * len(objective.views),
        groups=-(-train.micro_batch // split) * split,
        lanes=train.lanes,
        prefix=train.prefix,
        suffix=train.suffix,
        keys_per_token=keys_per_token(parts.policy.config),
    )


def _require_healthy_judge(rollouts: Sequence[Rollout], limit: float, step: int) -> None:
    require_healthy(judges_verdicts(rollouts), limit, step)
    require_healthy(judges_words(rollouts), limit, step, least=4)


def _require_lockstep(config: RunConfig, team: Team) -> None:
    if config.rollout.steps_behind and team.count > 1:
        raise ConfigError(
            f"rollout.steps_behind={config.rollout.steps_behind} with {team.count} processes: all must start the same "
            "work on their devices in the same order, whoever is judged first; set it to 0"
        )


def _difference(counts: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: count - before.get(name, 0) for name, count in counts.items()}
