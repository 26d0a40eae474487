"""The rollouts of a step, so that nobody waits without need: prompts in, drafts and second attempts out.

prompt → draft rollout → judge → feedback → refined rollout, for each prompt on its own where prompts are streamed: a
draft goes to the judge at the chunk boundary where it ended, and once the words about the drafts of a prompt are back
its refined rollouts enter the sampler's call, while other drafts are decoded or judged. Where prompts cannot be
streamed, one half of them can be sampled while the other is judged. Results are put in the order of prompts and
samples, and do not depend on who answered first. Judges nothing and samples nothing itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal

from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError
from ditto_jax.judge.base import Judge
from ditto_jax.judge.config import FEEDBACK_ROLE, JudgeConfig
from ditto_jax.judge.words import SHUFFLED
from ditto_jax.objective import Objective
from ditto_jax.rollouts.engine import Engine, Stream
from ditto_jax.rollouts.prompts import LoadedTask, Prompt
from ditto_jax.rollouts.refinement import asked_below, second_attempts
from ditto_jax.rollouts.rollout import Sampling, draft_rollouts
from ditto_jax.rollouts.shuffled_words import with_shuffled_words
from ditto_jax.rollouts.together import all_of
from ditto_jax.rollouts.waves import Turns, Wave, halves
from ditto_jax.runs.metrics import Stopwatch
from ditto_jax.types import Rollout, RolloutRole

Overlap = Literal["streaming", "barrier", "waves", "off"]

_Work = Callable[[Sampling, Sequence[int]], Coroutine[Any, Any, list[Rollout]]]  # of a part of a step's prompts

_ORDER = (RolloutRole.DRAFT, RolloutRole.REFLECTION, RolloutRole.REFINED)


def overlap_of(config: RunConfig, objective: Objective, tasks: Sequence[LoadedTask], processes: int = 1) -> Overlap:
    """Returns how the steps of a run of so many processes overlap sampling and judging (`rollout.overlap`).

    Raises ConfigError if it asks for what the tasks or the objective do not allow.
    """
    chosen, why_not, works = config.rollout.overlap, "", "auto, waves or off"
    if many := [loaded.label for loaded in tasks if loaded.task.many_turns]:
        why_not = f"the policy speaks more than once in {', '.join(many)}, and later turns go on from kept keys"
    elif any(judge.kind == "policy" for judge in _judges(config)):
        why_not, works = "the policy judges itself, once nothing else is sampled", "auto or off"
    elif objective.refinement.words == "policy":
        why_not = "the policy writes the words itself, in prompts of any length"
    elif processes > 1:
        why_not = f"{processes} processes must start the same work on their devices, whoever is judged first"
    if chosen == "auto":
        waits = objective.refined_rollouts and _asks_others(config)
        return "streaming" if waits and not why_not else "off"
    if why_not and chosen not in works:
        raise ConfigError(f"rollout.overlap={chosen}: {why_not}; set rollout.overlap to {works}")
    return chosen


def _asks_others(config: RunConfig) -> bool:
    """Whether scores or words come from a model or a function, which takes its time."""
    judges = _judges(config)
    return any(judge.kind != "rules" for judge in judges) or any(FEEDBACK_ROLE in one.roles for one in config.endpoints)


def _judges(config: RunConfig) -> list[JudgeConfig]:
    return [config.judge, *map(config.judge_for, config.tasks)]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """How the steps of a run come by their rollouts."""

    config: RunConfig
    objective: Objective
    overlap: Overlap
    engine: Engine
    judge: Judge

    @property
    def shares_a_call(self) -> bool:
        """Whether all rollouts of a step are sampled in one call."""
        return self.overlap in ("streaming", "barrier")

    async def rollouts(
        self, sampling: Sampling, prompts: Sequence[Prompt], watch: Stopwatch
    ) -> tuple[list[Rollout], dict[str, float]]:
        """Returns (drafts, reflections and refined rollouts, each in (prompt, sample) order; what the waiting cost)."""
        every = range(len(prompts))
        parts: list[Sequence[int]] = [every]
        if self.shares_a_call:
            parts = [[number] for number in every]
        elif self.overlap == "waves":
            parts = list(halves(every))
        async with self.sharing(sampling, prompts) as shared:
            rollouts = await self._of_parts(shared, prompts, parts, watch)
        player = shared.engine
        waited = {"judge/unhidden_latency_s": player.idle_s} if isinstance(player, Stream) else {}
        return rollouts, waited

    @contextlib.asynccontextmanager
    async def sharing(self, sampling: Sampling, prompts: Sequence[Prompt]) -> AsyncIterator[Sampling]:
        """Yields who samples the rollouts about a step's prompts: a call that they share, where they share one."""
        if not self.shares_a_call:
            yield sampling
            return
        words = self.config.rollout.max_feedback_length
        prompt = _longest_opening(self.engine, prompts, self.objective.refinement.draft_feedback)
        members, weights = self.config.rollout.num_generations, (sampling.params, sampling.settings)
        async with self.engine.streaming(*weights, members, prompt, words, sampling.constrained) as stream:
            room = sampling.room and dataclasses.replace(sampling.room, sampler=stream.buckets, words=words)
            yield dataclasses.replace(sampling, engine=stream, room=room)

    async def _of_parts(
        self, sampling: Sampling, prompts: Sequence[Prompt], parts: Sequence[Sequence[int]], watch: Stopwatch
    ) -> list[Rollout]:
        """Each part of the step's prompts goes its own way, except where one has to wait for the others."""
        shuffles = self.config.judge.feedback_content == SHUFFLED

        async def drafted(own: Sampling, part: Sequence[int]) -> list[Rollout]:
            return await self._drafts(own, prompts, part)

        async def refined(own: Sampling, part: Sequence[int], drafts: Sequence[Rollout]) -> list[Rollout]:
            below = self.config.rollout.feedback_below
            of_part = [draft for draft in drafts if draft.prompt_index in part]
            return await second_attempts(own, self.judge, prompts, of_part, self.objective, below)

        async def both(own: Sampling, part: Sequence[int]) -> list[Rollout]:
            return await refined(own, part, await drafted(own, part))

        if self.overlap in ("streaming", "waves") and not shuffles:
            with watch.phase("rollout"):
                return await self._each(sampling, parts, both)
        with watch.phase("draft"):
            drafts = await self._each(sampling, parts, drafted)
            if shuffles:
                drafts = with_shuffled_words(sampling, prompts, drafts)
        with watch.phase("refine"):
            return await self._each(sampling, parts, lambda own, part: refined(own, part, drafts))

    async def _each(self, sampling: Sampling, parts: Sequence[Sequence[int]], work: _Work) -> list[Rollout]:
        """What `work` returns of all parts, which are under way together: in any order, or by turns."""
        if self.overlap != "waves":
            return _in_order(await all_of([work(sampling, part) for part in parts]))
        turns = Turns(len(parts))

        async def wave(number: int) -> list[Rollout]:
            async with turns.playing(number):
                own = dataclasses.replace(sampling, engine=Wave(self.engine, turns, number))
                return await work(own, parts[number])

        return _in_order(await all_of([wave(number) for number in range(len(parts))]))

    async def _drafts(self, sampling: Sampling, prompts: Sequence[Prompt], part: Sequence[int]) -> list[Rollout]:
        samples = self.config.rollout.num_generations
        gate = asked_below(self.objective, self.config.rollout.feedback_below)
        under = self.objective.refinement.draft_feedback
        slots = list(itertools.product(part, range(samples)))
        return await draft_rollouts(sampling, self.judge, prompts, samples, gate, under, slots)


def _in_order(parts: Iterable[Sequence[Rollout]]) -> list[Rollout]:
    """Rollouts of parts in the order of their prompts, by role."""
    return sorted(itertools.chain.from_iterable(parts), key=lambda rollout: _ORDER.index(rollout.role))


def _longest_opening(engine: Engine, prompts: Sequence[Prompt], under: str) -> int:
    """Tokens of the longest prompt that a draft is sampled under."""
    openings = [chat for p in prompts for chat in p.task.openings(p.example, under or None).values()]
    return max(len(engine.chat_format.open(chat)) for chat in openings)
