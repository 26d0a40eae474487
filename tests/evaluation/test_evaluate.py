"""Evaluation: what a record says, that failed verdicts are no scores, and what `ditto-jax eval` writes, refuses and
gates.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditto_jax import policy, setup
from ditto_jax.config import EvalConfig, RunConfig
from ditto_jax.config_io import to_yaml
from ditto_jax.errors import ConfigError, GateFailed, JudgeUnavailableError, MissingInputError, RunDirectoryError
from ditto_jax.evaluation.evaluate import Judges, TaskEvaluation, evaluate_task, read_evaluations, write_evaluation
from ditto_jax.evaluation.run import run_evaluation
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.rules import RulesJudge
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.setup import Parts, assemble
from ditto_jax.types import Outcome, Verdict
from launch.cli import main
from tests.tiny_run import file_task, files_of, run_config, status, story_task, train_config, train_quietly

ITEMS = 8
FIELDS = {
    *("scored_by", "partners", "rows", "metrics", "source"),
    *("schema_version", "label", "task", "task_version", "metric", "value", "interval", "n", "trials", "temperature"),
    *("clustered_interval", "judges", "faults", "constrained"),
    *("judge", "outcomes", "step", "truncated_fraction", "mean_completion_tokens", "breakdown"),
}


@pytest.fixture(scope="module")
def parts(policy_folder, tmp_path_factory) -> Parts:
    evaluation = EvalConfig(tasks=(story_task(ITEMS, "test"),), with_feedback=True)
    return assemble(run_config(policy_folder, tmp_path_factory.mktemp("parts"), evaluation=evaluation))


def measure(parts: Parts, judges: Judges | None = None, step: int = 0, seed: int = 0, **changes: Any) -> TaskEvaluation:
    config = EvalConfig(**{"bootstrap": 50, **changes})
    judges = judges or parts.judges
    return asyncio.run(
        evaluate_task(parts.evaluation[0], parts.engine, parts.policy.params, config, judges, seed, step)
    )


@pytest.fixture(scope="module")
def sampled(parts) -> TaskEvaluation:
    """Four samples of every item."""
    return measure(parts, temperature=1.0, num_samples=4)


def without(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{field: value for field, value in row.items() if field != name} for row in rows]


def test_a_record_is_the_mean_over_items_with_interval_breakdown_and_provenance(sampled):
    record = sampled.record
    assert set(record) == FIELDS
    by_item: dict[str, list[float]] = {}
    for sample in sampled.samples:
        by_item.setdefault(sample["id"], []).append(sample["score"])
    assert len(by_item) == ITEMS and all(len(scores) == 4 for scores in by_item.values())
    assert record["value"] == pytest.approx(np.mean([np.mean(scores) for scores in by_item.values()]))
    assert record["interval"]["low"] <= record["value"] <= record["interval"]["high"]
    assert (record["n"], record["trials"], record["temperature"]) == (ITEMS, 4, 1.0)
    assert (record["task"], record["label"], record["judge"], record["metric"]) == (
        "hitom",
        "hitom",
        "rules",
        "mean_score",
    )
    assert record["outcomes"]["score_ok_count"] == 4 * ITEMS
    orders = record["breakdown"]["order"]
    assert set(orders) == {"0", "1"} and sum(entry["n"] for entry in orders.values()) == ITEMS
    json.dumps(record, allow_nan=False)


def test_a_sample_says_what_was_asked_said_and_scored(sampled):
    sample = sampled.samples[0]
    said = {"id", "sample", "prompt", "reply", "turns", "facts", "partners"}
    judged = {"outcome", "score", "dimensions", "critique", "detail", "judge"}
    known = {"item", "key", "labels", "groups", "faults", "tokens", "truncated"}
    assert set(sample) == said | judged | known | {"gold"}
    assert sample["prompt"][0]["role"] == "user" and sample["outcome"] == "ok"


def test_the_same_weights_give_the_same_samples_at_any_step(parts, sampled):
    again = measure(parts, temperature=1.0, num_samples=4, step=7)
    assert without(again.samples, "key") == without(sampled.samples, "key")
    assert again.record == {**sampled.record, "step": 7}
    other = measure(parts, temperature=1.0, num_samples=4, seed=1)
    assert [s["reply"] for s in other.samples] != [s["reply"] for s in sampled.samples]


def test_greedy_evaluation_has_a_wilson_interval(parts):
    record = measure(parts).record
    assert record["temperature"] == 0.0 and record["interval"]["method"] == "wilson"


class Forgetful(RulesJudge):
    """Has no score for three of the items; for `everything` none at all."""

    everything = False

    async def score(self, task, example, conversation, key) -> Verdict:
        if self.everything or key.prompt_id.endswith(("0", "1", "2")):
            return Verdict(Outcome.UNAVAILABLE, judge="forgetful", detail="gone")
        return await super().score(task, example, conversation, key)


def test_failed_verdicts_are_counted_and_left_out_of_the_mean(parts):
    complete, partial = measure(parts), measure(parts, Judges(Forgetful(JudgeConfig())))
    failed = partial.record["outcomes"]["score_unavailable_count"]
    assert 0 < failed < ITEMS and partial.record["n"] == ITEMS - failed
    scores = {s["id"]: s["score"] for s in complete.samples}
    kept = [scores[s["id"]] for s in partial.samples if s["outcome"] == "ok"]
    assert partial.record["value"] == pytest.approx(np.mean(kept))
    assert all(s["score"] is None for s in partial.samples if s["outcome"] != "ok")


def test_without_any_score_there_is_no_value_and_no_interval(parts):
    judge = Forgetful(JudgeConfig())
    judge.everything = True
    record = measure(parts, Judges(judge)).record
    assert (record["value"], record["interval"], record["n"]) == (None, None, 0)
    json.dumps(record, allow_nan=False)


def test_a_single_item_has_no_interval(parts):
    one = dataclasses.replace(parts.evaluation[0], examples=parts.evaluation[0].examples[:1])
    record = measure(dataclasses.replace(parts, evaluation=(one,)), temperature=1.0, num_samples=3).record
    assert record["n"] == 1
    json.dumps(record, allow_nan=False)


def test_feedback_and_its_control_are_measured_on_the_same_wrong_drafts(parts):
    record = measure(parts, with_feedback=True).record
    wrong = round(ITEMS * (1 - record["value"]))
    for name in ("fixed_by_feedback", "fixed_by_content_free_feedback"):
        control = record[name]
        assert control["n"] + control["without_usable_feedback"] == wrong > 0
    fixed = record["fixed_by_feedback"]
    assert fixed == measure(parts, with_feedback=True).record["fixed_by_feedback"]
    assert 0.0 <= fixed["value"] <= 1.0


def test_written_records_read_back(parts, sampled, tmp_path):
    run = RunDirectory(tmp_path)
    write_evaluation(run, sampled, 3)
    assert read_evaluations(run) == [sampled.record]
    lines = (run.evaluations / "hitom" / "samples_000003.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == sampled.samples


# The command


def eval_config(model: Path | str, output_dir: Path, **changes: Any) -> RunConfig:
    return run_config(Path(model), output_dir, **{"run_name": "measured", "tasks": (), **changes})


@pytest.fixture(scope="module")
def trained(policy_folder, tmp_path_factory) -> RunDirectory:
    config = run_config(policy_folder, tmp_path_factory.mktemp("trained"), train=train_config(2))
    return train_quietly(config)


def test_a_model_folder_is_measured_into_a_run_directory_of_its_own(policy_folder, tmp_path, trained, capsys):
    path = run_evaluation(eval_config(policy_folder, tmp_path), ["ditto-jax", "eval"])
    run = RunDirectory(path)
    assert path == tmp_path / "measured"
    assert read_evaluations(run) == [read_evaluations(trained)[0]]  # as training measured its starting point
    assert (status(run)["state"], status(run)["exit_code"]) == ("finished", 0)
    assert run.report.is_file() and (path / "cli.txt").read_text() == "ditto-jax eval\n"
    printed = capsys.readouterr().out
    assert "Evaluation without feedback" in printed and "hitom" in printed


def test_a_run_directory_is_measured_by_its_newest_checkpoint(tmp_path, trained):
    before = files_of(trained.path)
    run = RunDirectory(run_evaluation(eval_config(trained.path, tmp_path), []))
    assert read_evaluations(run) == [read_evaluations(trained)[1]]
    assert read_evaluations(run)[0]["step"] == 2
    assert files_of(trained.path) == before


def test_a_packaged_policy_is_measured_by_name(policy_folder, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(policy, "PACKAGED", policy_folder.parent)
    run = RunDirectory(run_evaluation(eval_config(policy_folder.name, tmp_path), []))
    assert read_evaluations(run)[0]["value"] == read_evaluations(trained)[0]["value"]


def test_the_same_evaluation_again_measures_again(policy_folder, tmp_path):
    config = eval_config(policy_folder, tmp_path)
    run = RunDirectory(run_evaluation(config, []))
    first = read_evaluations(run)
    (run.evaluations / "hitom" / "step_000000.json").unlink()
    assert read_evaluations(RunDirectory(run_evaluation(config, []))) == first


def test_a_killed_evaluation_goes_on_with_the_samples_that_it_lacks(policy_folder, tmp_path, monkeypatch):
    asked: list[str] = []

    class Mortal(RulesJudge):
        dies_after = 3

        async def score(self, task, example, conversation, key) -> Verdict:
            if len(asked) == Mortal.dies_after:
                raise JudgeUnavailableError("killed")
            asked.append(key.prompt_id)
            return await super().score(task, example, conversation, key)

    straight = RunDirectory(run_evaluation(eval_config(policy_folder, tmp_path, run_name="straight"), []))
    monkeypatch.setattr(setup, "make_judge", lambda config, hub: Mortal(config))
    config = eval_config(policy_folder, tmp_path)
    with pytest.raises(JudgeUnavailableError, match="killed"):
        run_evaluation(config, [])
    run = RunDirectory(tmp_path / "measured")
    samples = run.evaluations / "hitom" / "samples_000000.jsonl"
    assert len(samples.read_text().splitlines()) == 3 and not read_evaluations(run)
    samples.write_text(samples.read_text()[:-20])  # and the last line was torn
    Mortal.dies_after = 10**9
    run_evaluation(config, [])
    assert len(asked) == 3 + (ITEMS - 2)
    assert read_evaluations(run) == read_evaluations(straight)
    assert samples.read_text() == (straight.evaluations / "hitom" / "samples_000000.jsonl").read_text()


def test_samples_of_other_weights_are_not_kept(policy_folder, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(policy_folder, folder)
    config = eval_config(folder, tmp_path)
    samples = RunDirectory(run_evaluation(config, [])).evaluations / "hitom" / "samples_000000.jsonl"
    first = samples.read_text()
    run_evaluation(config, [])
    assert samples.read_text() == first
    os.utime(folder / "model.safetensors", ns=(1, 1))
    run_evaluation(config, [])
    keys = [{json.loads(line)["key"] for line in text.splitlines()} for text in (first, samples.read_text())]
    assert not keys[0] & keys[1]


def test_a_training_run_keeps_its_directory_for_itself(trained):
    before = files_of(trained.path)
    config = eval_config(trained.path, trained.path.parent, run_name=trained.path.name, overwrite=True)
    with pytest.raises(RunDirectoryError, match=r"holds a training run; .* --run_name tiny-eval") as caught:
        run_evaluation(config, [])
    assert caught.value.exit_code == 2
    assert files_of(trained.path) == before


def test_a_run_without_a_checkpoint_cannot_be_measured(policy_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text(to_yaml(run_config(policy_folder, tmp_path, run_name="empty")))
    with pytest.raises(MissingInputError, match="the run has no checkpoint yet") as caught:
        run_evaluation(eval_config(tmp_path / "empty", tmp_path), [])
    assert caught.value.exit_code == 3 and str(policy_folder) in str(caught.value)
    assert not (tmp_path / "measured").exists()


def test_a_gate_that_does_not_hold_exits_with_4_after_everything_is_written(policy_folder, tmp_path, capsys):
    two = EvalConfig(tasks=(story_task(ITEMS, "test"), story_task(ITEMS, "test", label="again")), bootstrap=50)
    file = tmp_path / "eval.yaml"
    file.write_text(to_yaml(eval_config(policy_folder, tmp_path, evaluation=two)))
    assert main(["eval", "--config", str(file), "--fail_under", "1.01"]) == GateFailed.exit_code == 4
    message = capsys.readouterr().err
    for label in ("hitom", "again"):
        assert re.search(rf"{label}: mean score 0(\.\d+)? is below fail_under=1\.01", message), message
    run = RunDirectory(tmp_path / "measured")
    assert len(read_evaluations(run)) == 2 and run.report.is_file()
    assert (status(run)["state"], status(run)["exit_code"]) == ("finished", 4)
    assert main(["eval", "--config", str(file), "--fail_under", "0"]) == 0


def test_a_label_without_any_score_does_not_pass_the_gate(policy_folder, tmp_path, monkeypatch):
    class Gone(Forgetful):
        everything = True

    monkeypatch.setattr(setup, "make_judge", lambda config, hub: Gone(config))
    with pytest.raises(GateFailed, match=r"hitom: no reply got a score, so fail_under=0 is not met"):
        run_evaluation(eval_config(policy_folder, tmp_path), [], fail_under=0.0)


def test_absent_optional_data_is_listed_and_the_rest_is_measured(policy_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)
    absent = file_task("$SOUL_DATA_DIR/hitom", optional=True, label="official-hitom")
    config = eval_config(policy_folder, tmp_path, evaluation=EvalConfig(tasks=(absent, story_task(ITEMS, "test"))))
    run = RunDirectory(run_evaluation(config, [], fail_under=0.0))
    assert "official-hitom skipped: its data is absent" in capsys.readouterr().out
    assert [record["label"] for record in read_evaluations(run)] == ["hitom"]


def test_data_named_but_absent_ends_it_before_anything_is_written(policy_folder, tmp_path):
    config = eval_config(policy_folder, tmp_path, evaluation=EvalConfig(tasks=(file_task(str(tmp_path / "no")),)))
    with pytest.raises(MissingInputError) as caught:
        run_evaluation(config, [])
    assert caught.value.exit_code == 3 and not (tmp_path / "measured").exists()


def test_nothing_to_measure_is_refused(policy_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation\.tasks: nothing to measure"):
        run_evaluation(eval_config(policy_folder, tmp_path, evaluation=EvalConfig()), [])


def test_a_judge_that_is_down_ends_it_before_anything_is_written(policy_folder, tmp_path):
    judge = JudgeConfig(kind="openai", model="m", base_url="http://127.0.0.1:9/v1", max_retries=0, timeout_s=5.0)
    with pytest.raises(JudgeUnavailableError, match=r"127\.0\.0\.1:9"):
        run_evaluation(eval_config(policy_folder, tmp_path, judge=judge), [])
    assert not (tmp_path / "measured").exists()


def test_a_failure_midway_is_told_in_the_status(policy_folder, tmp_path, monkeypatch):
    class Broken(RulesJudge):
        async def score(self, task, example, conversation, key) -> Verdict:
            raise JudgeUnavailableError("the key was revoked")

    monkeypatch.setattr(setup, "make_judge", lambda config, hub: Broken(config))
    with pytest.raises(JudgeUnavailableError, match="revoked"):
        run_evaluation(eval_config(policy_folder, tmp_path), [])
    run = RunDirectory(tmp_path / "measured")
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 1)
    monkeypatch.undo()
    assert run_evaluation(eval_config(policy_folder, tmp_path), []) == run.path
