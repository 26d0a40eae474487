"""Words that the policy writes about its own drafts: reflections as episodes, in single-turn and multi-turn tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from ditto_jax import setup
from ditto_jax.config import EvalConfig, RolloutConfig, RunConfig, SourceConfig, TaskConfig, TrainConfig
from ditto_jax.errors import JudgeUnavailableError
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.fence import printable
from ditto_jax.judge.rules import RulesJudge
from ditto_jax.objective import OBJECTIVES, Objective, ObjectiveConfig, PgClip, Pool, Refinement, Term
from ditto_jax.report.page import write_report
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.types import Outcome, Verdict, ViewRole
from tests.tiny_run import assert_same_run, contents, run_config, status, train_quietly

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 2
ROLES = (ViewRole.DRAFT, ViewRole.REFLECTION, ViewRole.REFINED_FB, ViewRole.REFINED_PLAIN)
SELF = Objective(
    name="self_written",
    pools=tuple(Pool(roles=(role,)) for role in ROLES),
    terms=(Term(loss=PgClip(), roles=ROLES),),
    refinement=Refinement(words="policy"),
)
SHOWN = dataclasses.replace(SELF, name="judge_shown", refinement=Refinement(words="policy", reflection_sees="words"))


@pytest.fixture(scope="module", autouse=True)
def _objectives():
    with pytest.MonkeyPatch.context() as patch:
        for objective in (SELF, SHOWN):
            patch.setitem(OBJECTIVES, objective.name, objective)
        yield


def config_of(policy, folder, name: str = SELF.name, **changes: Any) -> RunConfig:
    """A run whose shapes have room for the question after a draft."""
    values: dict[str, Any] = {
        "objective": ObjectiveConfig(name=name),
        "rollout": RolloutConfig(prompts_per_step=2, num_generations=4, max_completion_length=40),
        "sampler": SamplerShapes(prefix=(256,), tail=(1, 192), max_new_tokens=40, max_rows=32, chunk=40),
        "train": TrainConfig(max_steps=STEPS, micro_batch=8, prefix=(256,), suffix=(256,), lanes=4),
        "evaluation": EvalConfig(),
    }
    return run_config(policy, folder, **{**values, **changes})


def one_step(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=1))


@pytest.fixture(scope="module")
def run(policy_folder, tmp_path_factory) -> RunDirectory:
    return train_quietly(config_of(policy_folder, tmp_path_factory.mktemp("self")))


def by_slot(rows: list[dict[str, Any]], role: str) -> dict[tuple[int, int], dict[str, Any]]:
    return {(r["prompt_index"], r["sample"]): r for r in rows if r["role"] == role}


def test_every_weak_draft_is_reflected_on_under_its_task_its_reply_and_its_score(run):
    for rows in contents(run).values():
        drafts, reflections = by_slot(rows, "draft"), by_slot(rows, "reflection")
        assert set(reflections) == {slot for slot, row in drafts.items() if row["score"] == 0.0}
        for slot, row in reflections.items():
            *before, question = row["prompt"]
            assert before == [*drafts[slot]["prompt"], {"role": "assistant", "content": drafts[slot]["reply"]}]
            assert question["role"] == "user" and "scored 0.00" in question["content"]
            assert row["gold"] not in question["content"]


def test_what_a_reflection_says_is_the_words_of_its_draft_and_the_prompt_of_the_refined_rollout(run):
    used = 0
    for rows in contents(run).values():
        drafts, reflections, refined = (by_slot(rows, role) for role in ("draft", "reflection", "refined"))
        usable = {s for s, r in drafts.items() if r["feedback"] and r["feedback"]["text"] and not r["feedback"]["leak"]}
        assert set(refined) == usable
        for slot, reflection in reflections.items():
            words = drafts[slot]["feedback"]
            assert words["judge"] == "policy"
            if words["outcome"] == "ok":
                assert words["text"] == printable(reflection["reply"]).strip()
        for slot, row in refined.items():
            assert row["used_feedback"] == drafts[slot]["feedback"]["text"]
            assert row["prompt"][-1]["content"].endswith(f"Hint: {row['used_feedback']}")
        used += len(refined)
    assert used > 0


def test_a_reflection_earns_what_its_refined_rollout_scored_and_nothing_without_one(run):
    outcomes = set()
    for rows in contents(run).values():
        refined = by_slot(rows, "refined")
        for slot, row in by_slot(rows, "reflection").items():
            outcomes.add(row["outcome"])
            assert row["score"] == (refined[slot]["score"] if slot in refined else None)
            assert set(row["advantage"]) == (
                {"reflection"} if row["score"] is not None and not row["truncated"] else set()
            )
    assert "ok" in outcomes


def test_reflections_are_counted_by_outcome_and_the_judge_was_asked_for_no_words(run):
    for metrics, rows in zip(run.read_metrics(), contents(run).values(), strict=True):
        words = [r["feedback"] for r in rows if r["role"] == "draft" and r["feedback"]]
        assert metrics.get("reflections/count", 0) == len(words) == len(by_slot(rows, "reflection"))
        for outcome in Outcome:
            assert metrics.get(f"reflections/{outcome}_count", 0) == sum(w["outcome"] == outcome for w in words)
            assert metrics[f"judge/feedback_{outcome}_count"] == 0
        assert metrics.get("reflections/leaked_count", 0) == sum(bool(w["leak"]) for w in words)
        judged = sum(r["role"] != "reflection" for r in rows)
        assert sum(metrics[f"judge/score_{outcome}_count"] for outcome in Outcome) == judged
        assert metrics["tasks/hitom/refined_count"] == sum(r["role"] == "refined" for r in rows)


def test_cut_off_reflections_are_a_typed_outcome_and_no_prompt(policy_folder, tmp_path):
    config = config_of(policy_folder, tmp_path)
    short = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, max_completion_length=2))
    [rows] = contents(train_quietly(one_step(short))).values()
    cut = [r for r in rows if r["role"] == "reflection" and r["truncated"]]
    assert cut and not any(r["advantage"] for r in cut) and {r["outcome"] for r in cut} == {"over_budget"}
    drafts, refined = by_slot(rows, "draft"), by_slot(rows, "refined")
    for row in cut:
        slot = row["prompt_index"], row["sample"]
        assert drafts[slot]["feedback"]["text"] is None and slot not in refined


def test_a_question_without_room_is_not_asked_and_the_setting_is_named(policy_folder, tmp_path):
    config = config_of(policy_folder, tmp_path)
    small = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, prefix=(96,), tail=(1, 48)))
    run = train_quietly(one_step(small))
    rows = [r for rows in contents(run).values() for r in rows if r["role"] == "reflection"]
    assert status(run)["state"] == "finished" and rows
    assert {r["outcome"] for r in rows} == {"over_budget"} and all("sampler.tail" in r["detail"] for r in rows)


def test_drafts_are_those_of_an_objective_without_reflections(policy_folder, tmp_path, run):
    plain = train_quietly(one_step(config_of(policy_folder, tmp_path, name="grpo")))
    mine, theirs = run.read_rollouts(1), plain.read_rollouts(1)
    drafts = [r for r in mine if r["role"] == "draft"]
    for name in ("tokens", "logprobs", "reply", "score", "prompt"):
        assert [r[name] for r in drafts] == [r[name] for r in theirs]


def test_a_run_with_reflections_that_failed_continues_bit_for_bit(policy_folder, tmp_path, run, monkeypatch):
    class Failing(RulesJudge):
        async def score(self, task, example, conversation, key) -> Verdict:
            if key.step >= 2:
                return self._outcomes.verdict(Verdict(Outcome.TIMED_OUT, judge="failing"))
            return await super().score(task, example, conversation, key)

    config = config_of(policy_folder, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(setup, "make_judge", lambda config, hub: Failing(config))
        with pytest.raises(JudgeUnavailableError):
            train_quietly(config)
    assert_same_run(train_quietly(config), run)


def test_the_judges_words_are_shown_where_the_objective_says_so(policy_folder, tmp_path):
    shown = train_quietly(one_step(config_of(policy_folder, tmp_path, name=SHOWN.name)))
    rows = [row for rows in contents(shown).values() for row in rows if row["role"] == "reflection"]
    assert rows
    for row in rows:
        judged = row["feedback"]
        assert judged["judge"].startswith("rules@")
        told = f"The judge said: {judged['text']}" in row["prompt"][-1]["content"]
        assert told == (judged["outcome"] == "ok" and not judged["leak"]) == (row["used_feedback"] is not None)
    totals = [row["judge/feedback_ok_count"] for row in shown.read_metrics()]
    assert sum(totals) == sum(row["feedback"]["outcome"] == "ok" for row in rows)


def test_the_report_tells_reflections_from_a_judges_words(run):
    page = write_report([run.path]).read_text()
    assert "Reflection: words that may be used" in page and "Rollouts truncated: reflection" in page
    assert "The policy’s own words" in page and "The judge’s words" not in page


def test_a_conversation_is_reflected_on_as_a_whole_and_every_row_trains(policy_folder, tmp_path):
    scenes = TaskConfig("sotopia", source=SourceConfig(limit=8, seed=1), options={"max_turns": 4})
    config = config_of(
        policy_folder,
        tmp_path,
        tasks=(scenes,),
        rollout=RolloutConfig(prompts_per_step=2, num_generations=2, max_completion_length=400),
        sampler=SamplerShapes(prefix=(1280,), tail=(1, 512), max_new_tokens=24, max_rows=8, chunk=24),
        train=TrainConfig(max_steps=1, micro_batch=4, prefix=(1280,), suffix=(1280,), lanes=2),
        judge=JudgeConfig(max_error_rate=1.0),
    )
    run = train_quietly(config)
    rows = run.read_rollouts(1)
    drafts, reflections = by_slot(rows, "draft"), by_slot(rows, "reflection")
    assert reflections
    for slot, row in reflections.items():
        assert row["prompt"][: len(drafts[slot]["prompt"])] == drafts[slot]["prompt"]
        assert row["prompt"][-2] == {"role": "assistant", "content": drafts[slot]["reply"]}
    [metrics] = run.read_metrics()
    assert metrics["reflections/count"] == len(reflections) and np.isfinite(metrics["grad_norm"])
