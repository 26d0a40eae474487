"""One step behind: the next step is sampled and judged while this one is learned from, and says by whose weights."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditto_jax.config import EvalConfig, RolloutConfig, RunConfig
from ditto_jax.errors import ConfigError, JudgeUnavailableError
from ditto_jax.judge.config import JudgeConfig, ShadowConfig
from ditto_jax.objective import ObjectiveConfig
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.trainer import Trainer
from ditto_jax.update.state import OptimizerConfig
from model.lora import LoraConfig
from tests.judge.server import fails, gives_feedback, serving
from tests.rollouts.test_pipeline import Jittery
from tests.runs.test_loop_http import PROBE, judged_by, judged_run
from tests.tiny_run import assert_same_run, contents, run_config, story_task, train_config, train_quietly

CORRECTED = ObjectiveConfig(name="ditto", mismatch="token_tis")


def behind(policy: Path, folder: Path, judge: JudgeConfig, steps: int = 4, **changes: Any) -> RunConfig:
    """Returns a run of two prompts a step, with an evaluation in its middle and a checkpoint every two steps."""
    rollout = RolloutConfig(prompts_per_step=2, num_generations=4, max_completion_length=32, steps_behind=1)
    values: dict[str, Any] = {
        "rollout": rollout,
        "objective": CORRECTED,
        "train": train_config(steps),
        "evaluation": EvalConfig(tasks=(story_task(8, "test"),), bootstrap=50, every=2),
        "save_steps": 2,
    }
    return judged_run(policy, folder, judge, **{**values, **changes})


def trained(policy: Path, folder: Path, seed: int = 0, **changes: Any) -> RunDirectory:
    with serving(Jittery(seed)) as server:
        return train_quietly(behind(policy, folder, judged_by(server.base_url), **changes))


@pytest.fixture(scope="module")
def straight(policy_folder, tmp_path_factory) -> RunDirectory:
    return trained(policy_folder, tmp_path_factory.mktemp("straight"))


def test_what_is_learned_does_not_depend_on_who_is_faster(straight, policy_folder, tmp_path):
    assert_same_run(trained(policy_folder, tmp_path, seed=1), straight)


def test_rollouts_tell_whose_weights_sampled_them_and_the_weights_are_those(straight, policy_folder, tmp_path):
    of_step = {step: {row["policy_step"] for row in rows} for step, rows in contents(straight).items()}
    assert of_step == {1: {0}, 2: {0}, 3: {1}, 4: {2}}
    still = trained(policy_folder, tmp_path, steps=3, optimizer=OptimizerConfig(learning_rate=1e-12))
    tokens = {step: [row["logprobs"] for row in rows] for step, rows in contents(still).items()}
    there = {step: [row["logprobs"] for row in rows] for step, rows in contents(straight).items()}
    assert there[2] == tokens[2]  # the first update has not reached these
    assert there[3] != tokens[3]


def test_the_next_step_is_judged_while_this_one_is_learned_from(policy_folder, tmp_path, monkeypatch):
    asked = threading.Event()
    learn = Trainer._learn

    def waits_for_the_judge(self, *arguments):
        asked.clear()
        if self.done_steps + 1 < self.config.train.max_steps:
            assert asked.wait(60), "nobody was judged meanwhile"
        return learn(self, *arguments)

    def notes(handler):
        asked.set()
        gives_feedback("who was there?")(handler)

    monkeypatch.setattr(Trainer, "_learn", waits_for_the_judge)
    with serving(PROBE, *[notes] * 400) as server:
        run = train_quietly(behind(policy_folder, tmp_path, judged_by(server.base_url), 2, evaluation=EvalConfig()))
    assert [row["step"] for row in run.read_metrics()] == [1, 2]
    assert run.read_metrics()[1]["time/wait_s"] >= 0


def test_a_run_that_lost_its_judge_goes_on_equal_to_the_straight_one(straight, policy_folder, tmp_path):
    """The rollouts of step 3 are on their way when the judge is gone; step 2 is saved with the weights for them."""
    answered = sum(row["feedback"] is not None for step in (1, 2) for row in contents(straight)[step])
    jittery = Jittery(2)
    with serving(PROBE, *[jittery] * answered, fails(401, "gone")) as server:
        config = behind(policy_folder, tmp_path, judged_by(server.base_url, max_error_rate=0.0))
        with pytest.raises(JudgeUnavailableError):
            train_quietly(config)
    assert [row["step"] for row in RunDirectory(tmp_path / "tiny").read_metrics()] == [1, 2]
    assert_same_run(trained(policy_folder, tmp_path, seed=3), straight)


def test_adapters_go_one_step_behind_with_the_base_where_it_is(policy_folder, tmp_path):
    run = trained(policy_folder, tmp_path, steps=3, lora=LoraConfig(rank=2), evaluation=EvalConfig())
    gaps = [row["policy/sampler_logprob_gap_mean"] for row in run.read_metrics()]
    assert gaps[0] < 1e-4 < gaps[1]


def test_rollouts_of_older_weights_need_a_correction():
    rollout = RolloutConfig(steps_behind=1)
    with pytest.raises(ConfigError, match="older weights.*objective.mismatch=token_tis works"):
        RunConfig(rollout=rollout)
    RunConfig(rollout=rollout, objective=CORRECTED)
    RunConfig(rollout=rollout, objective=ObjectiveConfig(name="grpo", anchor="behaviour"))


def test_second_opinions_are_refused_one_step_behind(policy_folder, tmp_path):
    config = run_config(policy_folder, tmp_path)
    rollout = dataclasses.replace(config.rollout, steps_behind=1)
    with pytest.raises(ConfigError, match="rollout.steps_behind to 0 or shadow.kind to none"):
        dataclasses.replace(
            config, rollout=rollout, objective=CORRECTED, shadow=ShadowConfig(kind="openai", model="other")
        )


def test_the_gap_of_sampler_and_trainer_grows_by_the_step_between(straight):
    gaps = np.array([row["policy/sampler_logprob_gap_mean"] for row in straight.read_metrics()])
    assert gaps[0] < 1e-4 < gaps[1:].min()
