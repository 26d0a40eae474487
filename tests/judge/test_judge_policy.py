"""The policy judges itself: over the same sampler, by the rules for every judge, the same on every run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Sequence

import pytest

from ditto_jax.config import SourceConfig
from ditto_jax.errors import ConfigError
from ditto_jax.judge import make_judge
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.speaker import Answer, Question
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.types import Conversation, Outcome
from tests.graded_task import Graded, graded_task
from tests.judge.quiz import DRAFT, EXAMPLE, QUIZ, WRONG, call_key
from tests.tiny_run import OPTIONS, assert_same_run, contents, run_config, train_config, train_quietly

pytestmark = pytest.mark.usefixtures("quick_compilation")

GRADED = Graded(Graded.options_type(**OPTIONS))
SELF = JudgeConfig(kind="policy", max_tokens=24, max_error_rate=1.0)


class Voice:
    """Says what it is told to; records which questions were put together. rest: for how long rollouts are sampled."""

    def __init__(self, *says: str | Answer, rest: float = 0.0):
        self.says = says
        self.batches: list[list[Question]] = []
        self._rest = rest
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def at_rest(self):
        async with self._lock:
            await asyncio.sleep(self._rest)
            yield

    async def answer(self, questions: Sequence[Question], temperature: float) -> list[Answer]:
        self.batches.append(list(questions))
        said = self.says[min(len(self.batches), len(self.says)) - 1]
        answer = said if isinstance(said, Answer) else Answer(said, False, 7, 3)
        return [answer] * len(questions)


def judging(voice: Voice | None, config: JudgeConfig = SELF):
    hub = Hub()
    hub.speaker = voice
    return make_judge(config, hub)


def words(voice: Voice, config: JudgeConfig = SELF):
    return asyncio.run(judging(voice, config).feedback(QUIZ, EXAMPLE, DRAFT, WRONG, call_key()))


def test_words_are_read_and_screened_like_those_of_any_judge():
    said = words(Voice('{"feedback": "who was there?"}'))
    assert (said.outcome, said.text, said.judge) == (Outcome.OK, "who was there?", "policy@quiz-words-3")
    assert words(Voice('{"feedback": "it is in the green drawer"}')).leak
    assert words(Voice("who was there?")).outcome is Outcome.UNPARSABLE
    assert words(Voice(Answer('{"feedback": "who', True, 7, 3))).outcome is Outcome.UNPARSABLE
    without = words(Voice(Answer(lack="the question has 900 tokens")))
    assert (without.outcome, without.text, without.detail) == (
        Outcome.OVER_BUDGET,
        None,
        "the question has 900 tokens",
    )


def test_questions_wait_until_every_judgement_does_and_are_put_in_the_order_of_samples():
    voice = Voice('{"grade": 3}', '{"feedback": "who was there?"}', rest=0.05)
    judge = judging(voice)

    async def judged(index: int):
        await asyncio.sleep(random.Random(index).random() / 20)  # episodes end when they end
        said = Conversation((), f"draft {index}")
        verdict = await judge.score(GRADED, EXAMPLE, said, call_key(index))
        return verdict, await judge.feedback(QUIZ, EXAMPLE, DRAFT, verdict, call_key(index))

    async def run():
        return await asyncio.gather(*map(judged, range(8)))

    results = asyncio.run(run())
    assert {verdict.score for verdict, _ in results} == {0.3}
    assert {said.text for _, said in results} == {"who was there?"}
    assert [[q.sample.sample_index for q in batch] for batch in voice.batches] == [list(range(8))] * 2
    counted = judge.counters()
    assert (counted["calls"], counted["tokens_in"], counted["score/ok"], counted["feedback/ok"]) == (16, 112, 8, 8)


def test_a_failure_of_the_sampler_reaches_all_who_wait():
    class Broken(Voice):
        async def answer(self, questions, temperature):
            raise RuntimeError("the device is gone")

    judge = judging(Broken(""))

    async def run():
        asked = (judge.feedback(QUIZ, EXAMPLE, DRAFT, WRONG, call_key(index)) for index in range(3))
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [str(error) for error in asyncio.run(run())] == ["the device is gone"] * 3


def test_where_there_is_no_policy_to_ask_it_is_said():
    with pytest.raises(ConfigError, match=r"judge.kind=policy: there is no policy here to ask"):
        asyncio.run(judging(None).feedback(QUIZ, EXAMPLE, DRAFT, WRONG, call_key()))


def config_of(policy, folder, **changes):
    """Runs whose shapes have room for questions about a draft."""
    values = {
        "judge": SELF,
        "tasks": (graded_task(source=SourceConfig(limit=8, seed=1)),),
        "sampler": SamplerShapes(prefix=(480,), tail=(1, 48), max_new_tokens=32, max_rows=16, chunk=32),
        "train": train_config(2),
    }
    return run_config(policy, folder, **{**values, **changes})


def test_a_run_whose_policy_judges_itself_is_the_same_again(policy_folder, tmp_path):
    """A policy of a few thousand parameters writes no JSON: what it says counts as unparsable, never as a score."""
    first = train_quietly(config_of(policy_folder, tmp_path / "a"))
    drafts = [row for rows in contents(first).values() for row in rows if row["role"] == "draft"]
    assert {row["outcome"] for row in drafts} == {"unparsable"} and {row["score"] for row in drafts} == {None}
    assert {row["judge"] for row in drafts} == {"policy@graded-1"}
    rows = first.read_metrics()
    assert [row["judge/score_unparsable_count"] for row in rows] == [8, 8]
    assert [row["judge/calls"] for row in rows] == [8, 16] and rows[-1]["judge/tokens_out"] > 0
    assert_same_run(train_quietly(config_of(policy_folder, tmp_path / "b")), first)


def test_questions_without_room_are_over_budget_and_name_the_setting(policy_folder, tmp_path):
    shapes = SamplerShapes(prefix=(96,), tail=(1, 48), max_new_tokens=32, max_rows=16, chunk=32)
    run = train_quietly(config_of(policy_folder, tmp_path, sampler=shapes, train=train_config(1)))
    (rows,) = contents(run).values()
    assert {row["outcome"] for row in rows} == {"over_budget"}
    assert all("raise sampler.prefix" in row["detail"] for row in rows)
    assert json.loads((run.path / "STATUS.json").read_text())["state"] == "finished"
