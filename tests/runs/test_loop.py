"""Training end to end: what a run leaves behind, and what judges that fail do to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ditto_jax import setup
from ditto_jax.config import EvalConfig, RolloutConfig, RunConfig
from ditto_jax.errors import ConfigError, JudgeUnavailableError
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.rules import RulesJudge
from ditto_jax.keys import SampleId
from ditto_jax.loop import train
from ditto_jax.objective import ObjectiveConfig
from ditto_jax.rollouts.prompts import PromptStream
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.types import Feedback, Outcome, Verdict
from tests.tiny_run import (
    STEPS,
    assert_same_run,
    contents,
    file_task,
    learned,
    run_config,
    saved_arrays,
    status,
    story_task,
    train_config,
    train_quietly,
)

EXPECTED_METRICS = {
    *("step", "reward", "reward_std", "rewards/hitom/mean", "grad_norm", "entropy", "tokens_per_s"),
    *("completions/mean_length", "completions/max_length", "completions/clipped_ratio"),
    *("tasks/hitom/drafts_count", "tasks/hitom/abandoned_count", "tasks/hitom/self_reference_count"),
    *("episodes/abandoned_count", "feedback/self_reference_count"),
    *("feedback/gate_rate", "feedback/refined_count", "judge/feedback_leaked_count"),
    *(f"judge/{what}_{outcome}_count" for what in ("score", "feedback") for outcome in Outcome),
    *("time/draft_s", "time/refine_s", "time/pack_s", "time/update_s", "time/write_s", "time/step_s"),
    *(
        "policy/sampler_logprob_gap_mean",
        "policy/context_gap_mean",
        "policy/tokens_draft_count",
        "train/real_token_fraction",
    ),
    *("pool/draft+refined_plain_count", "pool/frac_reward_zero_std"),
}


class FailingJudge(RulesJudge):
    """The rules judge, whose scores or words fail where `fails` says so."""

    def __init__(self, config: JudgeConfig, fails: Callable[[str, SampleId], bool]):
        super().__init__(config)
        self._fails = fails

    async def score(self, task, example, conversation, key) -> Verdict:
        if self._fails("score", key):
            return self._outcomes.verdict(Verdict(Outcome.TIMED_OUT, judge="failing", detail="no answer in 1 s"))
        return await super().score(task, example, conversation, key)

    async def feedback(self, task, example, conversation, verdict, key) -> Feedback:
        if self._fails("feedback", key):
            return self._outcomes.feedback(Feedback(Outcome.TIMED_OUT, judge="failing", detail="no answer in 1 s"))
        return await super().feedback(task, example, conversation, verdict, key)


def use_judge(monkeypatch, fails: Callable[[str, SampleId], bool]) -> None:
    monkeypatch.setattr(setup, "make_judge", lambda config, hub: FailingJudge(config, fails))


@pytest.fixture(scope="module")
def ditto_run(policy_folder, tmp_path_factory) -> RunDirectory:
    return train_quietly(run_config(policy_folder, tmp_path_factory.mktemp("ditto")))


@pytest.fixture(scope="module")
def grpo_config(policy_folder, tmp_path_factory) -> RunConfig:
    return run_config(policy_folder, tmp_path_factory.mktemp("grpo"), objective=ObjectiveConfig(name="grpo"))


@pytest.fixture(scope="module")
def grpo_run(grpo_config) -> RunDirectory:
    return train_quietly(grpo_config)


@pytest.mark.parametrize("name", ["ditto_run", "grpo_run"])
def test_a_run_leaves_metrics_rollouts_checkpoints_evaluations_and_a_report(name, request):
    run = request.getfixturevalue(name)
    assert [row["step"] for row in run.read_metrics()] == list(range(1, STEPS + 1)) == run.rollout_steps()
    assert sorted(int(p.name) for p in run.checkpoints.iterdir()) == [STEPS - 1, STEPS]  # save_total_limit=2
    assert [record["step"] for record in read_evaluations(run)] == [0, STEPS]
    assert all((run.path / file).is_file() for file in ("config.yaml", "cli.txt", "env.json", "report/index.html"))
    assert (run.path / "cli.txt").read_text() == "ditto-jax train --config tiny.yaml\n"
    finished = status(run)
    assert (finished["state"], finished["step"], finished["exit_code"]) == ("finished", STEPS, 0)


def test_every_step_logs_the_same_kinds_of_metrics_with_finite_values(ditto_run):
    for row in ditto_run.read_metrics():
        assert set(row) >= EXPECTED_METRICS - {"pool/draft+refined_plain_count"}
        assert all(np.isfinite(value) for value in row.values())
    assert set(ditto_run.read_metrics()[0]) >= EXPECTED_METRICS


def test_learning_moves_the_parameters_by_a_gradient(ditto_run, grpo_run):
    assert all(row["grad_norm"] > 0 for row in ditto_run.read_metrics()[:1])
    assert any(row["grad_norm"] > 0 for row in grpo_run.read_metrics())
    first, second = saved_arrays(ditto_run), saved_arrays(grpo_run)
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_sampler_and_the_update_agree_on_log_probabilities(ditto_run):
    assert all(row["policy/sampler_logprob_gap_max"] < 1e-4 for row in ditto_run.read_metrics())


def test_wrong_drafts_get_words_and_right_ones_none(ditto_run):
    drafts = [row for rows in contents(ditto_run).values() for row in rows if row["role"] == "draft"]
    assert len(drafts) == STEPS * 2 * 4
    assert {row["score"] for row in drafts} == {0.0, 1.0}
    for row in drafts:
        assert (row["feedback"] is None) == (row["score"] == 1.0)


def test_a_refined_rollout_is_sampled_under_the_words_about_its_draft(ditto_run):
    refined_in_all = 0
    for rows in contents(ditto_run).values():
        drafts = {(r["prompt_index"], r["sample"]): r for r in rows if r["role"] == "draft"}
        refined = {(r["prompt_index"], r["sample"]): r for r in rows if r["role"] == "refined"}
        usable = {k for k, r in drafts.items() if r["feedback"] and r["feedback"]["text"] and not r["feedback"]["leak"]}
        assert set(refined) == usable
        refined_in_all += len(refined)
        for identity, row in refined.items():
            words = drafts[identity]["feedback"]["text"]
            assert row["used_feedback"] == words
            assert row["prompt"][-1]["content"] == f"{drafts[identity]['prompt'][-1]['content']}\nHint: {words}"
    assert refined_in_all > 0


def test_drafts_train_under_x_and_refined_rollouts_under_x_and_under_x_and_h(ditto_run):
    by_role: dict[str, set[tuple[str, ...]]] = {"draft": set(), "refined": set()}
    for rows in contents(ditto_run).values():
        for row in rows:
            by_role[row["role"]].add(tuple(sorted(row["advantage"])))
            assert row["truncated"] == (row["advantage"] == {})  # every live row has a weight, even if it is 0
    assert by_role["draft"] - {()} == {("draft",)}
    assert by_role["refined"] - {()} == {("refined_fb", "refined_plain")}


def test_grpo_asks_for_no_words(grpo_run):
    rows = [row for rows in contents(grpo_run).values() for row in rows]
    assert {row["role"] for row in rows} == {"draft"}
    assert all(row["feedback"] is None for row in rows)


def test_ditto_without_any_feedback_is_grpo_bit_for_bit(policy_folder, tmp_path, monkeypatch, grpo_run):
    use_judge(monkeypatch, lambda what, key: what == "feedback")
    mute = train_quietly(run_config(policy_folder, tmp_path, judge=JudgeConfig(max_error_rate=1.0)))
    assert all(row["judge/feedback_timed_out_count"] > 0 for row in mute.read_metrics())
    for mine, theirs in zip(saved_arrays(mute), saved_arrays(grpo_run), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_failed_verdicts_are_masked_and_counted_and_the_run_goes_on(policy_folder, tmp_path, monkeypatch):
    use_judge(monkeypatch, lambda what, key: what == "score" and key.role == "draft" and key.sample_index == 1)
    run = train_quietly(run_config(policy_folder, tmp_path, evaluation=EvalConfig()))
    assert status(run)["state"] == "finished"
    for row in run.read_metrics():
        rollouts = run.read_rollouts(row["step"])
        failed = [r for r in rollouts if r["role"] == "draft" and r["sample"] == 1]
        assert len(failed) == 2 == row["judge/score_timed_out_count"]
        for r in failed:
            assert (r["outcome"], r["score"], r["feedback"], r["advantage"]) == ("timed_out", None, None, {})
        assert not any(r["role"] == "refined" and r["sample"] == 1 for r in rollouts)
        scored = [r["score"] for r in rollouts if r["role"] == "draft" and r["score"] is not None]
        assert len(scored) == 6 and row["reward"] == pytest.approx(np.mean(scored))
    assert run.read_metrics()[-1]["judge/score/timed_out"] == 2 * STEPS


def test_a_judge_that_fails_too_often_stops_the_run_and_a_mended_one_continues_it(
    policy_folder, tmp_path, monkeypatch, ditto_run
):
    config = run_config(policy_folder, tmp_path)
    with monkeypatch.context() as patch:
        use_judge(patch, lambda what, key: what == "score" and key.step >= 2)
        with pytest.raises(JudgeUnavailableError, match=r"8 of 8 verdicts of step 2 failed \(timed_out 8\)") as caught:
            train_quietly(config)
    assert caught.value.exit_code == 1 and "judge.max_error_rate=0.5" in str(caught.value)
    run = RunDirectory(tmp_path / "tiny")
    failed = status(run)
    assert (failed["state"], failed["exit_code"]) == ("failed", 1) and "step 2" in failed["detail"]
    assert learned(run) == learned(ditto_run)[:1]
    assert_same_run(train_quietly(config), ditto_run)


def test_a_step_whose_drafts_are_all_cut_off_learns_nothing_and_goes_on(policy_folder, tmp_path):
    config = run_config(
        policy_folder,
        tmp_path,
        rollout=RolloutConfig(prompts_per_step=2, num_generations=4, max_completion_length=1),
        train=train_config(1),
        evaluation=EvalConfig(),
    )
    (row,) = train_quietly(config).read_metrics()
    assert row["completions/clipped_ratio"] == 1.0 and row["grad_norm"] == 0.0


def test_words_too_long_for_the_prompt_are_not_used_and_the_reason_is_told(policy_folder, tmp_path, monkeypatch):
    class Talkative(RulesJudge):
        async def feedback(self, task, example, conversation, verdict, key) -> Feedback:
            return Feedback(Outcome.OK, text="look at it once more, " * 20, judge="talkative")

    monkeypatch.setattr(setup, "make_judge", lambda config, hub: Talkative(config))
    config = run_config(policy_folder, tmp_path, evaluation=EvalConfig(), judge=JudgeConfig(max_error_rate=1.0))
    run = train_quietly(config)
    rows = [row for rows in contents(run).values() for row in rows]
    assert {row["role"] for row in rows} == {"draft"}
    asked = [row["feedback"] for row in rows if row["feedback"]]
    assert asked and all((f["outcome"], f["text"]) == ("over_budget", None) for f in asked)
    assert all("sampler.tail" in f["detail"] and "tokens" in f["detail"] for f in asked)


def test_evaluation_during_training_happens_every_so_many_steps(policy_folder, tmp_path, ditto_run):
    tasks = (story_task(8, "test"),)
    run = train_quietly(run_config(policy_folder, tmp_path, evaluation=EvalConfig(tasks=tasks, every=2, bootstrap=50)))
    records = read_evaluations(run)
    assert [record["step"] for record in records] == [0, 2, 3]
    assert records[0] == read_evaluations(ditto_run)[0] and records[2] == read_evaluations(ditto_run)[1]
    assert learned(run) == learned(ditto_run)  # evaluating in between changes nothing


def test_optional_training_data_that_is_absent_is_listed_and_the_rest_is_trained_on(
    policy_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)
    absent = file_task("$SOUL_DATA_DIR/hitom", label="official-hitom", optional=True)
    config = run_config(
        policy_folder,
        tmp_path,
        tasks=(story_task(), absent),
        evaluation=EvalConfig(),
        train=train_config(1),
    )
    train(config, [])
    assert "official-hitom skipped: its data is absent" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="labels"):
        run_config(policy_folder, tmp_path, tasks=(story_task(), story_task()))


def test_the_prompt_stream_goes_through_every_task_in_its_share(policy_folder):
    tasks, _ = setup.load_tasks([story_task(5, label="a", weight=0.6), story_task(3, label="b", weight=0.3)])
    third, _ = setup.load_tasks([story_task(4, label="c", weight=0.25)])
    stream = PromptStream([*tasks, *third], seed=3)
    drawn = stream.at(0, 60)
    for loaded in (*tasks, *third):
        own = [prompt.id for prompt in drawn if prompt.id.startswith(f"{loaded.label}/")]
        size = len(loaded.examples)
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 1
        assert all(sorted(epoch) == sorted({p.id for p in loaded.prompts}) for epoch in epochs)
        assert abs(len(own) - 60 * loaded.weight / 1.15) < 1
    assert [p.id for p in stream.at(31, 7)] == [p.id for p in PromptStream([*tasks, *third], 3).at(31, 7)]
    assert sorted(p.id for p in stream.once_each(60)) == sorted({p.id for p in drawn})


def test_profiled_steps_leave_a_trace(policy_folder, tmp_path):
    config = run_config(
        policy_folder,
        tmp_path,
        profile_steps=(1,),
        evaluation=EvalConfig(),
        train=train_config(1),
    )
    run = train_quietly(config)
    assert any(path.is_file() for path in (run.path / "profile" / "step_000001").rglob("*.xplane.pb"))
