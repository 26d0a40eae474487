"""Calls of judges and partners are those that the configuration asks for; money is counted where a price is set."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ditto_jax.config import EvalConfig, GateConfig, RolloutConfig, RunConfig, SourceConfig, TaskConfig, TrainConfig
from ditto_jax.judge.config import JudgeConfig, MemberConfig, PartnerConfig, RoleConfig
from ditto_jax.objective import ObjectiveConfig
from ditto_jax.plan.assumptions import Assumptions
from ditto_jax.plan.calls import PARTNERS, SCORES, WORDS, Calls, calls_of, judge_seconds
from ditto_jax.plan.work import evaluations, work_of
from ditto_jax.tasks.registry import get_task
from tests.tasks.sotopia_cases import TASK, Port, example, play, say

JUDGE = JudgeConfig(kind="openai", model="judge", max_concurrent=32)
ASSUME = Assumptions(refined_share=0.25, judge_seconds=2.0)
SOURCE = SourceConfig(kind="generated", limit=10)


def run_of(*tasks: TaskConfig, **changes: Any) -> RunConfig:
    """A run of 16 drafts a step and eight steps."""
    values: dict[str, Any] = {
        "tasks": tasks,
        "judge": JUDGE,
        "rollout": RolloutConfig(prompts_per_step=4, num_generations=4, max_completion_length=200),
        "train": TrainConfig(max_steps=8, prefix=(400,)),
    }
    return RunConfig(**{**values, **changes})


def calls(config: RunConfig) -> dict[tuple[str, str], Calls]:
    return {(one.purpose, one.who): one for one in calls_of(config, work_of(config, ASSUME), ASSUME)}


def task_of(name: str, **changes: Any) -> TaskConfig:
    return TaskConfig(name, source=SOURCE, **changes)


def test_a_task_scored_by_rules_asks_for_words_alone_and_rules_ask_nobody():
    found = calls(run_of(task_of("hitom")))
    assert set(found) == {(WORDS, "judge")}
    assert found[WORDS, "judge"].a_step == 16 * 0.25
    assert found[WORDS, "judge"].run == 8 * 4
    assert calls(run_of(task_of("hitom"), judge=JudgeConfig())) == {}
    assert calls(run_of(task_of("hitom", feedback=GateConfig(by="rules")))) == {}


def test_drafts_and_second_attempts_are_scored_by_as_many_questions_as_the_task_has():
    found = calls(run_of(task_of("sotopia")))
    assert found[SCORES, "judge"].a_step == 2 * (16 + 4)  # scores and an audit
    plain = calls(run_of(task_of("sotopia", options={"audit": False}), objective=ObjectiveConfig(name="grpo")))
    assert plain[SCORES, "judge"].a_step == 16
    assert (WORDS, "judge") not in plain


def test_the_questions_that_a_task_says_it_has_are_those_that_it_asks():
    said = play([say("Will you wash the dishes?"), say("", "leave")], Port(say("No.")))
    assert TASK.questions == len(TASK.score_requests(example(), said))
    assert [get_task(name).questions for name in ("hitom", "mirrorbench", "userllm", "coser")] == [0, 1, 1, 1]


def test_gates_that_end_are_counted_for_the_steps_before():
    whole, half = (calls(run_of(task_of("hitom", feedback=GateConfig(until_step=last)))) for last in (None, 4))
    assert half[WORDS, "judge"].run == whole[WORDS, "judge"].run / 2
    assert calls(run_of(task_of("hitom", feedback=GateConfig(by="nobody")), task_of("hitom", label="b")))[
        WORDS, "judge"
    ].a_step == pytest.approx(2.0)


def test_partners_are_asked_once_a_turn_at_the_endpoint_of_their_role():
    partner = PartnerConfig(kind="openai", model="partner")
    found = calls(run_of(task_of("sotopia"), partner=partner))
    assert found[PARTNERS, "partner"].a_step == (16 + 4) * ASSUME.turns
    assert found[PARTNERS, "partner"].seconds == 20 * ASSUME.turns * 2.0 / partner.max_concurrent
    own = (RoleConfig(kind="openai", model="own", roles=("partner",)),)
    assert (PARTNERS, "own") in calls(run_of(task_of("sotopia"), partner=partner, endpoints=own))
    assert not any(purpose == PARTNERS for purpose, _ in calls(run_of(task_of("sotopia"))))  # scripted


def test_words_go_to_the_endpoint_of_the_coach_and_all_members_of_an_ensemble_score():
    coach = (RoleConfig(kind="openai", model="coach", roles=("feedback",)),)
    assert set(calls(run_of(task_of("hitom"), endpoints=coach))) == {(WORDS, "coach")}
    members = (MemberConfig(model="one"), MemberConfig(model="two"), MemberConfig(kind="rules"))
    found = calls(run_of(task_of("userllm"), judge=JudgeConfig(kind="ensemble", members=members)))
    assert {(SCORES, "one"), (SCORES, "two"), (WORDS, "one")} == set(found)


def test_evaluations_count_before_between_and_after():
    config = run_of(task_of("hitom"), evaluation=EvalConfig(tasks=(task_of("userllm"),), every=3))
    assert evaluations(config) == 4  # at 0, 3, 6 and 8
    assert calls(config)[SCORES, "judge"].run == 4 * 10
    twice = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, every=4))
    assert evaluations(twice) == 3  # the last step is one of every four


def test_time_and_cost_follow_from_concurrency_limits_and_prices():
    slow = dataclasses.replace(JUDGE, max_concurrent=2, input_price=1.0, output_price=10.0)
    found = calls(run_of(task_of("userllm"), judge=slow))
    scores = found[SCORES, "judge"]
    assert scores.seconds == 20 * 2.0 / 2
    # The mean prompt, a mean reply and what a question adds; 20 calls in each of 8 steps.
    assert scores.tokens == (0.75 * 400 + 0.5 * 200 + ASSUME.judge_instructions, ASSUME.judge_reply)
    assert scores.cost == pytest.approx(160 * (800 * 1.0 + 400 * 10.0) / 1e6)
    assert calls(run_of(task_of("userllm")))[SCORES, "judge"].cost is None
    limited = calls(run_of(task_of("userllm"), judge=dataclasses.replace(JUDGE, max_rpm=10)))
    assert limited[SCORES, "judge"].seconds == 20 * 60 / 10
    assert judge_seconds(list(found.values())) == scores.seconds + found[WORDS, "judge"].seconds
    python = JudgeConfig(kind="python", function="path.py:mine", input_price=1.0, output_price=1.0)
    assert calls(run_of(task_of("userllm"), judge=python))[SCORES, "python"].tokens == (0.0, 0.0)
