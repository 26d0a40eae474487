"""Prompts are streamed through judging and refinement, and what a run learns does not depend on who answers first."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import zlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.config import GateConfig, RolloutConfig, RunConfig
from ditto_jax.errors import ConfigError
from ditto_jax.judge.config import JudgeConfig, RoleConfig
from ditto_jax.objective import OBJECTIVES, ObjectiveConfig, make_objective
from ditto_jax.rollouts.engine import Engine
from ditto_jax.rollouts.pipeline import Overlap, Pipeline, overlap_of
from ditto_jax.rollouts.prompt_lengths import Room
from ditto_jax.rollouts.prompts import LoadedTask, Prompt
from ditto_jax.rollouts.rollout import Sampling
from ditto_jax.rollouts.together import all_of
from ditto_jax.rollouts.waves import Turns
from ditto_jax.runs.metrics import Stopwatch
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.types import Conversation, Feedback, Outcome, Rollout, RolloutRole
from tests.judge.server import gives_feedback, serving, waits
from tests.rollouts.letters import EXAMPLE, Gentle, Letters
from tests.runs.test_loop_http import judged_by, judged_run
from tests.tiny_policy import PLAIN, LetterChat, decode, make_sampler, params
from tests.tiny_run import assert_same_run, contents, story_task, train_quietly

SHAPES = SamplerShapes(prefix=(8,), tail=(1, 16), max_new_tokens=12, max_rows=8, rows_per_prefix=(2,), chunk=4)
PHRASES = ("who was there?", "who had left before?", "think of what she saw.", "read the last sentence again.")


class Jittery:
    """Answers after a random while, with words that depend on the request alone; notes the order of its answers."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.answered: list[int] = []

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        request = handler.received.json  # type: ignore[attr-defined]
        about = zlib.crc32(json.dumps(request["messages"]).encode())
        with self._lock:
            delay_s = self._random.expovariate(1 / 0.04)
        waits(delay_s, gives_feedback(PHRASES[about % len(PHRASES)]))(handler)
        with self._lock:
            self.answered.append(about)


def trained(policy: Path, folder: Path, overlap: Overlap, seed: int, **changes: Any) -> tuple[RunDirectory, list[int]]:
    """Returns a run of two steps with three prompts, and the order in which its judge answered."""
    rollout = RolloutConfig(prompts_per_step=3, num_generations=4, max_completion_length=32, overlap=overlap)
    judge = Jittery(seed)
    feedback_content = changes.pop("feedback_content", "full")
    with serving(judge) as server:
        asked = judged_by(server.base_url, max_concurrent=5, feedback_content=feedback_content)
        return train_quietly(judged_run(policy, folder, asked, rollout=rollout, **changes)), judge.answered


ALL_FAILED = {"tasks": (story_task(feedback=GateConfig(all_failed=True)),)}


SHUFFLED = {"feedback_content": "shuffled"}


@pytest.mark.parametrize("changes", [{}, ALL_FAILED, SHUFFLED], ids=["each draft", "all failed", "shuffled"])
def test_streamed_and_unoverlapped_runs_are_equal_bit_for_bit(changes, policy_folder, tmp_path):
    streamed, order = trained(policy_folder, tmp_path / "a", "streaming", 0, **changes)
    straight, other_order = trained(policy_folder, tmp_path / "b", "barrier", 1, **changes)
    assert sorted(order) == sorted(other_order) and order != other_order
    assert any(row["role"] == "refined" for rows in contents(streamed).values() for row in rows)
    assert_same_run(streamed, straight)
    phases = {"rollout"} if changes != SHUFFLED else {"draft", "refine"}
    for run, expected in ((streamed, phases), (straight, {"draft", "refine"})):
        row = run.read_metrics()[-1]
        assert {name for name in ("draft", "refine", "rollout") if f"time/{name}_s" in row} == expected
        assert row["judge/unhidden_latency_s"] >= 0


class Waiting(Gentle):
    """Has words about the first prompt only once a refined rollout of the second was scored."""

    def __init__(self):
        super().__init__()
        self.refined = asyncio.Event()

    async def score(self, task, example, conversation: Conversation, key):
        if key.role == "refined" and key.prompt_id == "letters/2":
            self.refined.set()
        return await super().score(task, example, conversation, key)

    async def feedback(self, task, example, conversation, verdict, key) -> Feedback:
        if key.prompt_id == "letters/1":
            await self.refined.wait()
        return Feedback(Outcome.OK, text="hint", judge="gentle")


def rolled(overlap: Overlap, judge: Gentle, seconds: float = 60.0, words: int = 8) -> list[Rollout]:
    """Returns the rollouts of two prompts with two samples each."""
    rollout = RolloutConfig(prompts_per_step=2, num_generations=2, overlap=overlap, max_feedback_length=words)
    prompts = [Prompt(f"letters/{number}", Letters(), EXAMPLE) for number in (1, 2)]

    async def run() -> list[Rollout]:
        engine = Engine(make_sampler(SHAPES), LetterChat(), decode, 10)
        sampling = Sampling(engine, params(), PLAIN, 0, 1, Room(SHAPES, context=256, reply=10))
        pipeline = Pipeline(RunConfig(rollout=rollout), OBJECTIVES["ditto"], overlap, engine, judge)
        async with asyncio.timeout(seconds):
            return (await pipeline.rollouts(sampling, prompts, Stopwatch()))[0]

    return asyncio.run(run())


def test_refined_rollouts_of_a_prompt_are_sampled_while_another_waits_for_its_words(quick_compilation):
    rollouts = rolled("streaming", Waiting())
    named = [(r.role, r.prompt_index, r.sample_index) for r in rollouts]
    places = [(p, s) for p in (0, 1) for s in (0, 1)]
    assert named == [(role, *place) for role in (RolloutRole.DRAFT, RolloutRole.REFINED) for place in places]
    assert all(r.used_feedback is not None and r.used_feedback.text == "hint" for r in rollouts[4:])


@pytest.mark.parametrize("overlap", ["barrier", "off"])
def test_without_streaming_no_draft_is_refined_before_all_have_their_words(overlap, quick_compilation):
    with pytest.raises(TimeoutError):
        rolled(overlap, Waiting(), seconds=3.0)


def test_words_that_the_call_has_no_room_for_are_an_outcome_that_names_the_setting(quick_compilation):
    rollouts = rolled("streaming", Gentle(), words=3)
    assert [r.role for r in rollouts] == [RolloutRole.DRAFT] * 4
    for draft in rollouts:
        assert draft.feedback is not None and draft.feedback.outcome is Outcome.OVER_BUDGET
        assert "the words add 6; raise rollout.max_feedback_length=3" in draft.feedback.detail


def test_runs_by_waves_are_equal_bit_for_bit_however_fast_the_judge_is(policy_folder, tmp_path):
    one, order = trained(policy_folder, tmp_path / "a", "waves", 0)
    other, other_order = trained(policy_folder, tmp_path / "b", "waves", 1)
    assert sorted(order) == sorted(other_order) and order != other_order
    assert_same_run(one, other)
    shuffled, _ = trained(policy_folder, tmp_path / "c", "waves", 2, **SHUFFLED)
    assert_same_run(trained(policy_folder, tmp_path / "d", "waves", 3, **SHUFFLED)[0], shuffled)


class Slow(Gentle):
    """Scores drafts of the first prompt only once one of the second was scored."""

    def __init__(self):
        super().__init__()
        self.second = asyncio.Event()

    async def score(self, task, example, conversation: Conversation, key):
        if key.prompt_id == "letters/2":
            self.second.set()
        await self.second.wait()
        return await super().score(task, example, conversation, key)


def test_one_half_of_the_prompts_is_sampled_while_the_other_is_judged(quick_compilation):
    rollouts = rolled("waves", Slow())
    places = [(p, s) for p in (0, 1) for s in (0, 1)]
    assert [(r.prompt_index, r.sample_index) for r in rollouts if r.role is RolloutRole.DRAFT] == places
    assert all(rollout.verdict.score is not None for rollout in rollouts)


def test_turns_go_round_whoever_is_ready_first_and_pass_by_those_who_left():
    order: list[tuple[int, str]] = []

    async def player(turns: Turns, number: int, plays: str, pause_s: float) -> None:
        async with turns.playing(number):
            for play in plays:
                async with turns.of(number):
                    order.append((number, play))
                await asyncio.sleep(pause_s)

    async def run() -> None:
        turns = Turns(3)
        plays = [(0, "ab", 0.02), (1, "a", 0.01), (2, "abc", 0.0)]
        await all_of([player(turns, *play) for play in plays])

    asyncio.run(run())
    assert order == [(0, "a"), (1, "a"), (2, "a"), (0, "b"), (2, "b"), (2, "c")]


class Talk(Letters):
    many_turns = True


def chosen(overlap: str, judge: JudgeConfig, objective: str = "ditto", task: Letters | None = None, **changes) -> str:
    rollout = RolloutConfig(overlap=overlap)  # type: ignore[arg-type]
    config = RunConfig(rollout=rollout, judge=judge, objective=ObjectiveConfig(name=objective), **changes)
    return overlap_of(
        config, make_objective(config.objective), [LoadedTask("letters", 1.0, task or Letters(), [EXAMPLE])]
    )


RULES, REMOTE = JudgeConfig(), JudgeConfig(kind="openai", model="m")


def test_prompts_are_streamed_where_somebody_else_is_waited_for_and_nothing_stands_against_it():
    assert chosen("auto", REMOTE) == "streaming"
    assert chosen("auto", RULES) == "off"
    assert chosen("auto", RULES, endpoints=(RoleConfig(kind="openai", model="m", roles=("feedback",)),)) == "streaming"
    assert chosen("auto", RULES, tasks=(story_task(judge={"kind": "openai", "model": "m"}),)) == "streaming"
    assert chosen("auto", REMOTE, objective="grpo") == "off"  # nothing is attempted again
    assert chosen("auto", REMOTE, objective="reflect_retry") == "off"
    assert chosen("auto", REMOTE, task=Talk()) == "off"
    assert [chosen(named, RULES) for named in ("streaming", "barrier", "off")] == ["streaming", "barrier", "off"]


@pytest.mark.parametrize("overlap", ["streaming", "barrier"])
def test_streaming_what_cannot_be_streamed_is_refused_with_the_reason(overlap):
    with pytest.raises(ConfigError, match=f"rollout.overlap={overlap}: the policy speaks more than once in letters"):
        chosen(overlap, REMOTE, task=Talk())
    with pytest.raises(ConfigError, match="writes the words itself.*set rollout.overlap to auto, waves or off"):
        chosen(overlap, REMOTE, objective="reflect_retry")


def test_halves_can_take_turns_where_prompts_cannot_be_streamed_but_not_where_the_policy_judges():
    assert chosen("waves", REMOTE, task=Talk()) == "waves"
    assert chosen("waves", REMOTE, objective="reflect_retry") == "waves"
    with pytest.raises(ConfigError, match="the policy judges itself.*set rollout.overlap to auto or off"):
        chosen("waves", JudgeConfig(kind="policy"))
