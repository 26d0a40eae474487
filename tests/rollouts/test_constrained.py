"""Replies that are held to forms: each has its form whatever the policy would say, alone, beside others, over turns
and streamed; evaluations say so, and an update sees the distribution that was drawn from.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import pytest

from ditto_jax.config import EvalConfig, RolloutConfig, RunConfig
from ditto_jax.errors import ConfigError
from ditto_jax.evaluation.paired_comparison import compare, read_items, reading
from ditto_jax.evaluation.run import run_evaluation
from ditto_jax.keys import SampleId
from ditto_jax.objective import ObjectiveConfig
from ditto_jax.policy import PACKAGED, Policy, load_policy
from ditto_jax.reply_form import FormError, ReplyForm, tagged
from ditto_jax.rollouts.engine import Engine
from ditto_jax.rollouts.episodes import Attempt, Played
from ditto_jax.rollouts.forms import require_forms
from ditto_jax.rollouts.prompts import LoadedTask
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.tasks.base import Task
from ditto_jax.types import Author, Conversation, Example, FinishReason, Message
from model.sampling import SamplingParams
from tests.tiny_batch import mesh_of
from tests.tiny_run import run_config, story_task, train_config, train_quietly

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = SamplerShapes(prefix=(48,), tail=(1, 256), max_new_tokens=64, max_rows=8, rows_per_prefix=(1, 4), chunk=8)
HOT = SamplingParams(temperature=2.0)
EXAMPLE = Example("quiz", "1", {}, gold="A")


class Move(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    kind: Literal["say", "leave"]
    words: str = pydantic.Field(max_length=4)


FORMS = (tagged("AB"), ReplyForm(reply_model=Move))


@dataclasses.dataclass(frozen=True)
class QuizOptions:
    turns: int = 1
    forms: bool = True
    json_first: bool = False


class Quiz(Task[QuizOptions]):
    """A letter, then a move in JSON, while the other side says something in between."""

    name = "quiz"
    version = "1"
    options_type = QuizOptions
    many_turns = True

    def load(self, source):
        return [EXAMPLE]

    def opening(self, example, feedback=None):
        return (Message("user", "where is the ball? A) box B) bag"),)

    def reply_form(self, example, role, turn):
        return FORMS[(turn + self.options.json_first) % 2] if self.options.forms else None

    async def episode(self, example, ports, feedback=None):
        chat = list(self.opening(example, feedback))
        for turn in range(self.options.turns):
            chat += [Message("user", "and then?")] if turn else []
            chat.append(Message("assistant", (await ports.policy().reply(chat)).text))
        return Conversation(tuple(chat), chat[-1].content)

    def rule_score(self, example, conversation):
        raise NotImplementedError

    def rule_feedback(self, example, conversation, verdict, rng):
        raise NotImplementedError

    def feedback_request(self, example, conversation, verdict):
        raise NotImplementedError


class OneTurn(Quiz):
    many_turns = False


@functools.cache
def policy() -> Policy:
    return load_policy("tiny-tom", mesh_of((1, 1, 1)))


def make_engine(shapes: SamplerShapes = SHAPES, limit: int = 240) -> Engine:
    here = policy()
    return Engine(here.sampler(shapes), here.chat_format, here.tokenizer.decode, limit, grammars=here.grammars())


def attempts(task: Quiz, count: int, group: int = 0, constrained: bool = True) -> list[Attempt]:
    ids = [SampleId(0, 1, f"quiz/{task.options.forms}/{group}", n, "draft") for n in range(count)]
    return [Attempt(task, EXAMPLE, group, one, constrained=constrained) for one in ids]


async def as_played(index: int, played: Any) -> Any:
    return played


def play(engine: Engine, asked: Sequence[Attempt]) -> list[Played]:
    async def run():
        async with asyncio.timeout(120):
            return await engine.play(policy().params, HOT, asked, as_played)

    return asyncio.run(run())


def replies(played: Sequence[Played]) -> list[list[str]]:
    return [[m.content for m in one.conversation.messages if m.role == "assistant"] for one in played]


def in_form(said: Sequence[str]) -> list[bool]:
    return [FORMS[turn % 2].holds(text) for turn, text in enumerate(said)]


def test_over_many_turns_every_reply_has_its_form():
    held = play(make_engine(), attempts(Quiz(QuizOptions(turns=3)), 4))
    assert all(all(in_form(said)) and len(said) == 3 for said in replies(held)), replies(held)
    for played in held:
        transcript = played.transcripts["policy"]
        forms = [span.held.form for span in transcript.spans if span.author is Author.POLICY and span.held]
        assert forms == [FORMS[0], FORMS[1], FORMS[0]] and transcript.finish_reason is FinishReason.STOP


def assert_alike(found: Played, expected: Played, to_the_bit: bool = False) -> None:
    mine, theirs = found.transcripts["policy"], expected.transcripts["policy"]
    np.testing.assert_array_equal(mine.ids, theirs.ids)
    np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=0 if to_the_bit else 1e-4)
    assert mine.finish_reason is theirs.finish_reason


def test_what_is_drawn_does_not_depend_on_what_else_is_in_flight():
    """Held and free replies, of other forms and lengths, more of them than rows."""
    mine = attempts(Quiz(QuizOptions()), 2)
    others = [
        *attempts(Quiz(QuizOptions(json_first=True)), 5, group=1),
        *attempts(Quiz(QuizOptions(forms=False)), 4, group=2),
    ]
    alone = play(make_engine(), mine)
    among = play(make_engine(), [*others[:5], *mine, *others[5:]])
    for one, other in zip(among[5:7], alone, strict=True):
        assert_alike(one, other)


def test_streamed_replies_keep_to_their_forms_alike_to_the_bit_whenever_they_come():
    plays = [attempts(OneTurn(QuizOptions(json_first=group % 2 == 1)), 2, group) for group in range(4)]
    plays.append(attempts(OneTurn(QuizOptions(forms=False)), 2, 4))

    def streamed(seed: int) -> list[list[Played]]:
        delays, engine, weights = random.Random(seed), make_engine(), policy().params

        async def run():
            async with (
                asyncio.timeout(120),
                engine.streaming(weights, HOT, 2, 60, 4, constrained=True) as stream,
            ):

                async def one(asked):
                    await asyncio.sleep(delays.uniform(0.0, 0.05))
                    return await stream.play(weights, HOT, asked, as_played)

                return await asyncio.gather(*map(one, plays))

        return asyncio.run(run())

    first, second = streamed(0), streamed(1)
    for group, (one, other) in enumerate(zip(first, second, strict=True)):
        for mine, theirs in zip(one, other, strict=True):
            assert_alike(mine, theirs, to_the_bit=True)
            if group < 4:
                assert FORMS[group % 2].holds(mine.conversation.reply)


def test_a_form_without_room_is_cut_off_and_says_so():
    engine = make_engine(limit=7)
    for played in play(engine, attempts(Quiz(QuizOptions(json_first=True)), 2)):
        assert played.transcripts["policy"].finish_reason is FinishReason.LENGTH
        assert played.conversation.reply.startswith("{") and not FORMS[1].holds(played.conversation.reply)


def test_forms_that_cannot_be_kept_to_are_refused_with_task_and_example():
    class Broken(Quiz):
        def reply_form(self, example, role, turn):
            return ReplyForm("a(?=b)")

    task = LoadedTask("broken", 1.0, Broken(QuizOptions()), [EXAMPLE])
    with pytest.raises(FormError, match=r"evaluation.constrained: broken, example 1: the form cannot be enforced"):
        require_forms([task], "evaluation.constrained", policy().grammars().check)
    free = dataclasses.replace(task, task=Quiz(QuizOptions(forms=False)))
    with pytest.raises(ConfigError, match="none of the tasks broken says what its replies look like"):
        require_forms([free], "evaluation.constrained", policy().grammars().check)


def tom_config(folder: Path, **changes: Any) -> RunConfig:
    evaluation = EvalConfig(
        tasks=(story_task(6, "test"),), bootstrap=50, temperature=2.0, num_samples=2, **changes.pop("evaluation", {})
    )
    sampler = SamplerShapes(prefix=(128,), tail=(1, 64), max_new_tokens=32, max_rows=16, chunk=8)
    values = {"tasks": (), "sampler": sampler, "evaluation": evaluation, "run_name": "held", **changes}
    return run_config(PACKAGED / "tiny-tom", folder, **values)


def evaluated(config: RunConfig) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    with contextlib.redirect_stdout(io.StringIO()):
        run = run_evaluation(config, [])
    (row,) = json.loads((run / "evaluation.json").read_text())["tasks"]
    return run, row, [json.loads(line) for line in (run / row["samples"]).read_text().splitlines()]


def test_a_constrained_evaluation_parses_every_reply_says_so_and_goes_on_where_it_stopped(tmp_path):
    config = tom_config(tmp_path, evaluation={"constrained": True})
    run, row, samples = evaluated(config)
    assert row["constrained"] is True and row["truncated_fraction"] == 0
    assert {sample["detail"] for sample in samples} <= {"right", "wrong"}
    assert ", constrained" in (run / "evaluation.md").read_text()
    free, other, unheld = evaluated(tom_config(tmp_path, run_name="free"))
    assert other["constrained"] is False and not {sample["detail"] for sample in unheld} <= {"right", "wrong"}
    difference = compare({"free": read_items(str(free)), "held": read_items(str(run))}, resamples=50)[0]
    assert "not the same constrained: False against True" in reading(difference)

    file = run / row["samples"]
    file.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples[:5]))
    _, again, resumed = evaluated(config)
    assert (again, resumed) == (row, samples)


def test_an_update_sees_the_distribution_that_was_drawn_from(tmp_path):
    """The recorded log-probs are those of the update, ratio 1; what a form forces was certain."""
    rollout = RolloutConfig(
        prompts_per_step=2, num_generations=4, max_completion_length=32, temperature=2.0, constrained=True
    )
    config = tom_config(tmp_path, tasks=(story_task(),), rollout=rollout)
    train = dataclasses.replace(train_config(1), prefix=(128,), logprob_chunk=64)
    run = train_quietly(dataclasses.replace(config, train=train, evaluation=EvalConfig()))
    (row,) = run.read_metrics()
    assert row["policy/sampler_logprob_gap_max"] < 1e-4 and np.isfinite(row["grad_norm"])
    rollouts = run.read_rollouts(1)
    assert rollouts and all(one["reply"].endswith("</answer>") for one in rollouts)
    assert all(abs(one["logprobs"]["policy"][-1]) < 1e-6 for one in rollouts)


def test_training_over_candidates_that_were_not_allowed_is_refused(tmp_path):
    rollout = RolloutConfig(prompts_per_step=2, num_generations=4, max_completion_length=32, constrained=True)
    with pytest.raises(ConfigError, match=r"rollout.constrained with objective.name=sdpo"):
        tom_config(tmp_path, objective=ObjectiveConfig(name="sdpo"), rollout=rollout)
