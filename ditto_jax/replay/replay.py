"""`ditto-jax replay`: one step of a past run again, compared with its record, and one prompt of it token by token.

checkpoint → **the steps from there on, in memory** → the step again → comparison, tokens, other words

Bit for bit needs the weights that sampled the step. A checkpoint before it has those of an earlier step; the steps
between are trained again, with the recorded verdicts and words, through `trainer.Trainer`. The run is only read.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ditto_jax.errors import JudgeUnavailableError
from ditto_jax.objective import Objective
from ditto_jax.replay.differences import Difference, differences
from ditto_jax.replay.own_words import refine_under, screened
from ditto_jax.replay.past import Past, find_prompt, find_sample, open_past, spans
from ditto_jax.replay.rerun import open_trainer, require_same_prompts, restore
from ditto_jax.replay.tokens import TokenReader, ViewTokens
from ditto_jax.rollouts.records import rollout_row
from ditto_jax.runs.metrics import Stopwatch
from ditto_jax.trainer import Experience, Trainer
from ditto_jax.types import Rollout, RolloutRole

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ReplayRequest:
    """run: directory. step: from 1. prompt: its number in the step, from 0, or its id. sample: draft to show and to
    refine; None takes the first with a refined rollout. feedback: own words about that draft, None for none.
    """

    run: Path
    step: int
    prompt: str
    sample: int | None = None
    feedback: str | None = None


@dataclasses.dataclass(frozen=True)
class Replay:
    """What came of it.

    checkpoint: 0 for the weights that the run began with. repeated: steps trained again on the way. environment: name →
    (where the run began, here) of what differs. compared: rollouts; different: those that were not regenerated bit for
    bit. reached: False if a repeated step had other tokens, so that the weights of the step cannot be had; then nothing
    follows. recorded, regenerated: the rollouts of the whole step. views: those of the prompt. own: record of the
    refined rollout under own words.
    """

    run: Path
    step: int
    prompt: int
    prompt_id: str
    sample: int
    checkpoint: int
    repeated: tuple[int, ...]
    environment: dict[str, tuple[Any, Any]]
    compared: int
    different: list[Difference]
    reached: bool
    recorded: list[dict[str, Any]]
    regenerated: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    views: list[ViewTokens] = dataclasses.field(default_factory=list)
    own: dict[str, Any] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether every rollout that was compared is the recorded one, bit for bit."""
        return self.reached and not self.different

    def of_prompt(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the rows of the prompt that was asked about."""
        return [row for row in rows if row["prompt_index"] == self.prompt]

    def as_json(self) -> dict[str, Any]:
        """Returns everything about the prompt as plain values, and what differs of others."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "schema_version": SCHEMA_VERSION,
            **plain,
            "run": str(self.run),
            "is_exact": self.is_exact,
            "recorded": self.of_prompt(self.recorded),
            "regenerated": self.of_prompt(self.regenerated),
            "environment": {name: {"run": then, "here": now} for name, (then, now) in self.environment.items()},
            "different": [dataclasses.asdict(one) for one in self.different],
            "views": [dataclasses.asdict(one) for one in self.views],
        }


def replay(
    request: ReplayRequest, tell: Callable[[str], None] = lambda text: None, objective: Objective | None = None
) -> Replay:
    """Returns the step again. tell: is told of what takes time. objective: as for `loop.train`.

    Raises ConfigError for a step, prompt, sample or words that cannot be; MissingInputError, DataError or ModelError
    for a run, data or model that are not there any more.
    """
    past = open_past(request.run)
    rows = past.rows(request.step)
    prompt = find_prompt(rows, request.prompt)
    sample = find_sample(rows, prompt, request.sample)
    checkpoint = past.start_before(request.step)
    between = tuple(range(checkpoint + 1, request.step))
    with tempfile.TemporaryDirectory(prefix="ditto-replay-") as scratch, asyncio.Runner() as runner:
        trainer = open_trainer(past, Path(scratch), objective)
        try:
            require_same_prompts(trainer, request.step, rows)
            once = _Replaying(request, past, rows, trainer, prompt, sample, runner)
            once.check_words()
            tell(_plan(past, checkpoint, between))
            restore(trainer, past, checkpoint)
            return once.run(checkpoint, between, tell)
        finally:
            runner.run(trainer.aclose())


def _plan(past: Past, checkpoint: int, between: tuple[int, ...]) -> str:
    start = f"the checkpoint of step {checkpoint}" if checkpoint else "the weights that the run began with"
    if not between:
        return f"from {start}"
    return f"from {start}; {spans(between)} first, again (the run took {past.seconds_of(between):.0f} s for that)"


def _compared(
    replayed: Replay,
    step: int,
    recorded: list[dict[str, Any]],
    regenerated: list[dict[str, Any]],
    tell: Callable[[str], None],
) -> Replay:
    """The replay with the comparison of one more step."""
    found = differences(step, recorded, regenerated)
    equal = f"{len(recorded) - len(found)} of {len(recorded)} rollouts equal"
    tell(f"step {step} again: {equal}, {len(found)} not" if found else f"step {step} again: {equal}, bit for bit")
    compared, different = replayed.compared + len(recorded), [*replayed.different, *found]
    return dataclasses.replace(replayed, compared=compared, different=different)


class _Replaying:
    """The replay of one request."""

    def __init__(
        self,
        request: ReplayRequest,
        past: Past,
        recorded: list[dict[str, Any]],
        trainer: Trainer,
        prompt: int,
        sample: int,
        runner: asyncio.Runner,
    ):
        self._request = request
        self._past = past
        self._recorded = recorded
        self._trainer = trainer
        self._prompt = prompt
        self._sample = sample
        self._runner = runner
        count = past.config.rollout.prompts_per_step
        self._prompts = trainer.stream.at((request.step - 1) * count, count)
        self._words = None

    def check_words(self) -> None:
        """Screens own words, before anything takes time. Raises ConfigError."""
        if self._request.feedback is not None:
            prompt = self._prompts[self._prompt]
            self._words = screened(self._request.feedback, prompt, self._trainer.sampling())

    def run(self, checkpoint: int, between: tuple[int, ...], tell: Callable[[str], None]) -> Replay:
        """Returns the replay; the trainer stands behind the step of `checkpoint`."""
        trainer, step, prompt = self._trainer, self._request.step, self._prompt
        recorded = self._recorded
        replayed = Replay(
            run=self._past.run.path,
            step=step,
            prompt=prompt,
            prompt_id=self._prompts[prompt].id,
            sample=self._sample,
            checkpoint=checkpoint,
            repeated=between,
            environment=self._past.environment_differences(),
            compared=0,
            different=[],
            reached=False,
            recorded=recorded,
        )
        for number in between:
            replayed = _compared(replayed, number, self._past.rows(number), self._step_again(), tell)
            if any(one.token is not None for one in replayed.different):
                return dataclasses.replace(replayed, repeated=tuple(range(between[0], number + 1)))
        experience = self._runner.run(self._experience())
        own = None if self._words is None else self._own(experience)
        reader = TokenReader(trainer, experience.rollouts, prompt)
        _, rows = self._runner.run(trainer.learn(experience, Stopwatch(), reader))
        replayed = _compared(replayed, step, recorded, rows, tell)
        return dataclasses.replace(replayed, reached=True, regenerated=rows, views=reader.views, own=own)

    def _step_again(self) -> list[dict[str, Any]]:
        async def learned() -> list[dict[str, Any]]:
            _, rows = await self._trainer.learn(await self._experience(), Stopwatch())
            return rows

        return self._runner.run(learned())

    async def _experience(self) -> Experience:
        number = self._trainer.done_steps + 1
        try:
            return await self._trainer.experience(Stopwatch())
        except JudgeUnavailableError as error:  # a partner's kept replies
            raise JudgeUnavailableError(
                f"step {number} cannot be played again as it was: {error}\neither the policy says something else here "
                "than it did then, or the cache has been pruned"
            ) from error

    def _own(self, experience: Experience) -> dict[str, Any]:
        """The record of the refined rollout under own words."""
        assert self._words is not None
        draft = next(filter(self._is_draft, experience.rollouts))
        config, prompts = self._past.config, experience.prompts
        refined = self._runner.run(refine_under(self._trainer, config, prompts, draft, self._words))
        return rollout_row(self._request.step, prompts, refined)

    def _is_draft(self, rollout: Rollout) -> bool:
        slot = rollout.prompt_index, rollout.sample_index
        return rollout.role is RolloutRole.DRAFT and slot == (self._prompt, self._sample)
