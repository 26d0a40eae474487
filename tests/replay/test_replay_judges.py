"""A replay asks nobody: recorded verdicts and words stand in for every kind of judge, and a copy of kept replies for
partners.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from ditto_jax.config import EvalConfig, RolloutConfig
from ditto_jax.errors import MissingInputError
from ditto_jax.judge.cache import FILE_NAME
from ditto_jax.judge.config import JudgeConfig, PartnerConfig
from ditto_jax.keys import SampleId
from ditto_jax.objective import OBJECTIVES
from ditto_jax.replay.judge import RecordedJudge
from ditto_jax.replay.replay import ReplayRequest, replay
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import Conversation, Example, Feedback, Message, Outcome, Verdict
from tests.graded_task import graded_task, grades
from tests.judge.server import serving
from tests.overheard_task import overheard_task
from tests.rollouts.test_reflections import SHOWN, one_step
from tests.rollouts.test_reflections import config_of as reflecting
from tests.runs.test_loop_http import judged_by
from tests.tiny_run import files_of, run_config, train_config, train_quietly

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_run_with_a_judge_behind_an_endpoint_is_replayed_without_it(policy_folder, tmp_path):
    """The judge is asked about own words alone."""
    with serving(grades) as server:
        judge = judged_by(server.base_url)
        settings = {"tasks": (graded_task(),), "judge": judge, "evaluation": EvalConfig()}
        run = train_quietly(run_config(policy_folder, tmp_path, train=train_config(1), **settings))
        before, sent = files_of(run.path), len(server.received)
        row = next(row for row in run.read_rollouts(1) if row["role"] == "refined")
        request = ReplayRequest(run.path, 1, str(row["prompt_index"]), row["sample"], feedback=row["used_feedback"])
        found = replay(request)
        assert len(server.received) == sent + 1
        assert found.is_exact and found.own is not None
        assert (found.own["score"], found.own["judge"]) == (row["score"], row["judge"])
        assert files_of(run.path) == before
    found = replay(request)  # there is no server any more
    assert found.is_exact and found.own is not None and found.own["outcome"] == "unavailable"


def test_shuffled_words_are_those_that_were_used_and_not_shuffled_again(policy_folder, tmp_path):
    judge = JudgeConfig(feedback_content="shuffled")
    config = run_config(policy_folder, tmp_path, train=train_config(1), judge=judge, evaluation=EvalConfig())
    run = train_quietly(config)
    words = {row["feedback"]["judge"] for row in run.read_rollouts(1) if row["feedback"]}
    assert words == {"shuffled:rules@hitom-1"}
    assert replay(ReplayRequest(run.path, 1, "1")).is_exact


def test_conversations_with_a_partner_behind_an_endpoint_are_replayed_from_a_copy_of_its_replies(
    policy_folder, tmp_path, monkeypatch
):
    """With reflections on a judge's words, which stand at the reflection and not at the draft."""
    monkeypatch.setitem(OBJECTIVES, SHOWN.name, SHOWN)
    with serving(grades) as server:
        config = reflecting(
            policy_folder,
            tmp_path,
            name=SHOWN.name,
            tasks=(overheard_task(),),
            partner=PartnerConfig(kind="openai", model="somebody", base_url=server.base_url),
            rollout=RolloutConfig(prompts_per_step=2, num_generations=4, max_completion_length=120),
        )
        run = train_quietly(one_step(config))
    rows, before = run.read_rollouts(1), files_of(run.path)
    assert any(row["role"] == "reflection" and row["feedback"] for row in rows)
    assert {"openai:somebody"} == {who for row in rows for who in row["partners"].values()}
    assert replay(ReplayRequest(run.path, 1, "0")).is_exact
    assert files_of(run.path) == before
    (run.path / FILE_NAME).unlink()
    with pytest.raises(MissingInputError, match="partner.model=somebody: what it said was not kept"):
        replay(ReplayRequest(run.path, 1, "0"))


ROW: dict[str, Any] = {
    "prompt_id": "a/1",
    "sample": 2,
    "role": "draft",
    "prompt": [{"role": "user", "content": "where?"}],
    "reply": "here",
    "turns": [],
    "outcome": "ok",
    "score": 0.5,
    "dimensions": {"goal": 3.0},
    "critique": "vague",
    "judge": "openai:m@1",
    "detail": "half",
    "feedback": {"text": "who left?", "outcome": "ok", "leak": "", "detail": "", "judge": "openai:m@1"},
}
DRAFT = SampleId(0, 1, "a/1", 2, "draft")


def said(rows: list[dict[str, Any]], reply: str, key: SampleId = DRAFT) -> tuple[Verdict, Feedback]:
    """What a judge of these records says about a reply."""
    judge = RecordedJudge(lambda step: rows if step == 1 else [])
    conversation = Conversation((Message("user", "where?"), Message("assistant", reply)), reply)
    task, example = get_task("hitom", {}), Example("hitom", "1", {}, "here")

    async def both() -> tuple[Verdict, Feedback]:
        verdict = await judge.score(task, example, conversation, key)
        return verdict, await judge.feedback(task, example, conversation, verdict, key)

    return asyncio.run(both())


def test_a_record_is_passed_on_whole():
    verdict, words = said([ROW], "here")
    assert verdict == Verdict(Outcome.OK, 0.5, {"goal": 3.0}, "vague", "openai:m@1", "half")
    assert words == Feedback(Outcome.OK, "who left?", "openai:m@1")


def test_what_was_said_about_other_words_is_never_passed_on():
    for rows, reply, key in (
        ([ROW], "there", DRAFT),
        ([{**ROW, "prompt": [{"role": "user", "content": "when?"}]}], "here", DRAFT),
        ([{**ROW, "role": "refined"}], "here", DRAFT),
        ([ROW], "here", dataclasses.replace(DRAFT, step=2)),
    ):
        verdict, words = said(rows, reply, key)
        assert verdict.outcome is words.outcome is Outcome.UNAVAILABLE
        assert "no record of this draft of a/1" in verdict.detail


def test_of_a_prompt_that_a_step_has_twice_the_equal_record_counts():
    verdict, _ = said([{**ROW, "reply": "there", "score": 0.0}, ROW], "here")
    assert verdict.score == 0.5


def test_a_judges_words_are_found_at_the_reflection_where_the_policy_wrote_those_of_the_draft():
    by_policy = {**ROW, "feedback": {**ROW["feedback"], "text": "my own", "judge": "policy"}}
    assert said([by_policy, {**ROW, "role": "reflection", "reply": "my own"}], "here")[1].text == "who left?"
    assert said([by_policy], "here")[1].outcome is Outcome.UNAVAILABLE
