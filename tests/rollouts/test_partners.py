"""Partners and judged scores, over loopback and by script: who spoke is said, a failure is never spoken."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditto_jax.config import RunConfig, TaskConfig
from ditto_jax.errors import ConfigError
from ditto_jax.judge import feedback_judge, make_judge
from ditto_jax.judge.config import JudgeConfig, PartnerConfig, RoleConfig
from ditto_jax.judge.desk import JudgeDesk
from ditto_jax.keys import SampleId
from ditto_jax.rollouts.partners import RoleBook
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.sampling.slots import SampleRequest, plan_slots
from ditto_jax.tasks.base import AuxiliaryFailure
from ditto_jax.tasks.mirrorbench.files import mirror_example
from ditto_jax.tasks.mirrorbench.task import MirrorBench, MirrorBenchOptions
from ditto_jax.types import Conversation, Message, Outcome, Turn
from tests.judge.server import fails, says, serving

TASK = MirrorBench(MirrorBenchOptions())
ROW = {
    "task_description": "soup",
    "turns": [
        {"role": "user", "content": "soup pls"},
        {"role": "assistant", "content": "Boil leeks."},
        {"role": "user", "content": "thx"},
    ],
}
EXAMPLE = mirror_example(Path("f"), "line 1", "mirrorbench-1", ROW)
KEY = SampleId(0, 1, "p", 0, "draft")
CHAT = (Message("system", "You answer."), Message("user", "soup?"))
SAID = Conversation((), "thx", (Turn("User", "soup pls", "policy"),))


def reply(book: RoleBook, role: str = "assistant", chat=CHAT) -> str:
    async def ask() -> str:
        try:
            return (await book.port(role, TASK, EXAMPLE, KEY).reply(chat)).text
        finally:
            await book.aclose()

    return asyncio.run(ask())


def endpoint(url: str, **more: Any) -> dict[str, Any]:
    return {"kind": "openai", "model": "m", "base_url": url, "max_retries": 0, "unparsable_retries": 0, **more}


def test_a_script_says_what_the_task_wrote_and_is_named_as_one():
    book = RoleBook(PartnerConfig())
    assert book.identity("assistant", TASK) == "scripted@mirrorbench-1"
    assert reply(book) == "Boil leeks." and book.counters()["scripted"] == 1
    with pytest.raises(ConfigError, match="no script for the role 'narrator'"):
        reply(book, "narrator")


def test_an_endpoint_speaks_plain_visible_text_for_its_roles_only():
    with serving(says("<think>hm</think>Use salt.")) as server:
        book = RoleBook(PartnerConfig(), [RoleConfig(roles=("assistant",), **endpoint(server.base_url))])
        assert reply(book) == "Use salt." and book.identity("assistant", TASK) == "openai:m"
        assert book.identity("other", TASK).startswith("scripted@")
        assert [m["content"] for m in server.received[0].json["messages"]] == [m.content for m in CHAT]
        assert "response_format" not in server.received[0].json


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (fails(500, "POISON"), Outcome.UNAVAILABLE),
        (says(""), Outcome.UNPARSABLE),
        (says("<think>never closed"), Outcome.UNPARSABLE),
        (says(None, refusal="POISON"), Outcome.REFUSED),
    ],
)
def test_a_failed_partner_is_a_typed_failure(behaviour, outcome):
    with serving(behaviour) as server:
        book = RoleBook(PartnerConfig(**endpoint(server.base_url)))
        with pytest.raises(AuxiliaryFailure) as failure:
            reply(book)
    assert failure.value.outcome is outcome and book.counters()["failed"] == 1
    assert book.counters()["failed/assistant"] == 1


def verdict_of(content: str):
    with serving(says(content)) as server:
        judge = make_judge(JudgeConfig(**endpoint(server.base_url)))

        async def ask():
            try:
                return await judge.score(TASK, EXAMPLE, SAID, KEY)
            finally:
                await judge.aclose()

        return asyncio.run(ask())


def test_a_judged_score_is_the_replys_and_names_model_and_prompt():
    verdict = verdict_of(json.dumps({"reasoning": "close", "score": 0.75}))
    assert (verdict.outcome, verdict.score, verdict.critique) == (Outcome.OK, 0.75, "close")
    assert verdict.judge == "openai:m@mirrorbench-likeness-1"


@pytest.mark.parametrize("content", ["0.9", "{}", '{"reasoning": "x", "score": 7}', '{"reasoning": "x", "score": NaN}'])
def test_a_reply_outside_the_schema_gives_no_score(content):
    verdict = verdict_of(content)
    assert verdict.outcome is Outcome.UNPARSABLE and verdict.score is None


def test_without_a_model_a_labelled_stand_in_scores():
    verdict = asyncio.run(make_judge(JudgeConfig()).score(TASK, EXAMPLE, SAID, KEY))
    assert verdict.judge == "proxy@mirrorbench-1" and verdict.score is not None and 0 <= verdict.score <= 1


def test_a_desk_sends_each_task_to_its_judge_and_words_to_the_role_that_writes_them():
    other = MirrorBench(MirrorBenchOptions(max_turns=2))
    rules, model = make_judge(JudgeConfig()), make_judge(JudgeConfig(**endpoint("http://127.0.0.1:9/v1")))
    desk = JudgeDesk(rules, {other: model}, {})
    assert (desk.judge_of(TASK), desk.judge_of(other)) == ("rules", "openai:m")
    words = RoleConfig(roles=("feedback",), **endpoint("http://127.0.0.1:9/v1", model="coach"))
    assert feedback_judge(JudgeConfig(), [words]).model == "coach"
    assert feedback_judge(JudgeConfig(), []) == JudgeConfig()


def test_a_tasks_judge_settings_are_checked_and_lie_over_the_runs():
    run = RunConfig(judge=JudgeConfig(**endpoint("http://127.0.0.1:9/v1")))
    assert run.judge_for(TaskConfig("coser", judge={"model": "big"})).model == "big"
    with pytest.raises(ConfigError, match="tasks.coser.judge.modle"):
        RunConfig(tasks=(TaskConfig("coser", judge={"modle": "big"}),))


def test_dialogues_that_grew_apart_are_sampled_alone():
    shapes = SamplerShapes(prefix=(8,), tail=(8,), max_new_tokens=4, max_rows=4)
    rng = np.random.default_rng(0)
    requests = [
        SampleRequest(np.r_[[1, 2], rng.integers(3, 60, 12)].astype(np.int32), 0, np.zeros(2, np.uint32), 4)
        for _ in range(2)
    ]
    plan = plan_slots(requests, shapes)
    assert plan.shapes.rows_per_slot == 1 and len({slot.group for slot in plan.waiting}) == 2
    assert plan.shapes.tail == 8
