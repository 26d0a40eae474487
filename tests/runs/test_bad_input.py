"""Bad input: one clear message (what, where, the rule, what to do), a documented exit code, and nothing damaged."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
import pytest
import yaml

from ditto_jax.config import EvalConfig, RunConfig
from ditto_jax.config_io import to_yaml
from ditto_jax.errors import (
    ConfigError,
    DataError,
    DittoError,
    MissingInputError,
    ModelError,
    RunDirectoryError,
)
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.runs import run_dir
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.setup import assemble
from launch.cli import main
from tests.tasks.test_hitom_files import ROW
from tests.tiny_run import (
    assert_same_run,
    file_task,
    files_of,
    learned,
    run_config,
    status,
    story_task,
    train_quietly,
)


def refused(config: RunConfig, error: type[DittoError], code: int, *parts: str) -> str:
    """Asserts that training is refused with this exit code and message before anything is written; returns the
    message.
    """
    with pytest.raises(error) as caught:
        train_quietly(config)
    message = str(caught.value)
    assert caught.value.exit_code == code
    for part in parts:
        assert part in message, message
    assert not (Path(config.output_dir) / config.run_name).exists()
    return message


# Models


def damaged(policy_folder: Path, folder: Path, change: Callable[[Path], Any]) -> Path:
    shutil.copytree(policy_folder, folder)
    change(folder)
    return folder


def test_a_model_folder_that_does_not_exist_is_named_with_what_works(tmp_path):
    config = run_config(tmp_path / "nowhere", tmp_path / "runs")
    refused(config, MissingInputError, 3, f"model_name_or_path={tmp_path / 'nowhere'}", "no such folder", "tiny-tom")


def test_no_model_at_all_is_a_setting_to_give(tmp_path):
    config = dataclasses.replace(run_config(tmp_path, tmp_path / "runs"), model_name_or_path="")
    refused(config, ConfigError, 2, "model_name_or_path is empty", "packaged policy")


def test_missing_weights_are_named(policy_folder, tmp_path):
    folder = damaged(policy_folder, tmp_path / "model", lambda f: (f / "model.safetensors").unlink())
    refused(run_config(folder, tmp_path / "runs"), ModelError, 3, str(folder), "model.safetensors", "only safetensors")


def test_truncated_weights_are_named_with_the_advice_to_fetch_them_again(policy_folder, tmp_path):
    def truncate(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])

    folder = damaged(policy_folder, tmp_path / "model", truncate)
    parts = (str(folder / "model.safetensors"), "fetch or export it again")
    refused(run_config(folder, tmp_path / "runs"), ModelError, 3, *parts)


# Settings


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--objectiv.name", "ditto"], ["unknown flag --objectiv.name", "--objective.name"]),
        (["--rollout.num_generations", "1"], ["rollout.num_generations=1", "at least 2", "set it to 8"]),
        (["--rollout.temperature", "0"], ["rollout.temperature=0", "positive", "1.0"]),
        (["--objective.name", "dito"], ["objective.name='dito'", "did you mean 'ditto'"]),
        (["--objective.name", "grpo", "--objective.feedback_coef", "0.5"], ["feedback_coef=0.5", "no feedback term"]),
        (["--train.updates_per_step", "3"], ["train.updates_per_step=3", "rollout.prompts_per_step=2", "lower it"]),
        (["--optimizer.learning_rate", "-1"], ["optimizer.learning_rate=-1.0", "positive", "5.0e-6"]),
        (["--overwrite", "--resume", "must"], ["overwrite", "resume=must", "drop one"]),
        (["--run_name", "a/b"], ["run_name='a/b'", "plain folder name"]),
        (["--judge.kind", "openai"], ["judge.model=None", "model name"]),
        (["--mesh.data", "3"], ["mesh", "3", "devices"]),
    ],
)
def test_settings_that_cannot_work_exit_with_2_and_say_what_would(words, parts, policy_folder, tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(to_yaml(run_config(policy_folder, tmp_path / "runs")))
    assert main(["train", "--config", str(file), *words]) == 2
    message = capsys.readouterr().err
    for part in parts:
        assert part in message, message
    assert not (tmp_path / "runs").exists()


def test_an_unknown_key_in_a_file_is_answered_with_the_nearest_one(policy_folder, tmp_path, capsys):
    values = yaml.safe_load(to_yaml(run_config(policy_folder, tmp_path / "runs")))
    values["tasks"][0]["source"]["limt"] = 4
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(file)]) == 2
    assert "tasks[0].source.limt: unknown key; did you mean 'limit'?" in capsys.readouterr().err


def test_a_run_without_tasks_is_refused(policy_folder, tmp_path):
    refused(run_config(policy_folder, tmp_path / "runs", tasks=()), ConfigError, 2, "tasks", "at least one")


# Data


def hitom_file(folder: Path, *rows: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "Hi-ToM_data.json"
    file.write_text(json.dumps({"data": list(rows)}))
    return file


def test_data_named_but_absent_exits_with_3(policy_folder, tmp_path):
    config = run_config(policy_folder, tmp_path / "runs", tasks=(file_task(str(tmp_path / "no-data")),))
    refused(config, MissingInputError, 3, str(tmp_path / "no-data"), "no such file or folder", "generated")


def test_an_unset_variable_in_a_path_is_named(policy_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)
    config = run_config(policy_folder, tmp_path / "runs", tasks=(file_task("$SOUL_DATA_DIR/hitom"),))
    refused(config, MissingInputError, 3, "tasks.hitom.source.path=$SOUL_DATA_DIR/hitom", "SOUL_DATA_DIR is not set")


def test_all_optional_data_absent_leaves_nothing_to_train_on(policy_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)
    tasks = (file_task("$SOUL_DATA_DIR/hitom", optional=True, label="official-hitom"),)
    refused(run_config(policy_folder, tmp_path / "runs", tasks=tasks), MissingInputError, 3, "official-hitom", "absent")
    evaluation = EvalConfig(tasks=tasks)
    config = run_config(policy_folder, tmp_path / "runs", evaluation=evaluation)
    refused(config, MissingInputError, 3, "evaluation.tasks", "official-hitom", "absent")


def test_a_malformed_row_is_named_by_file_row_and_field(policy_folder, tmp_path):
    file = hitom_file(tmp_path / "data", ROW, {**ROW, "question_order": 9})
    config = run_config(policy_folder, tmp_path / "runs", tasks=(file_task(str(file)),))
    refused(config, DataError, 3, str(file), "data[1]", "question_order=9", "less than or equal to 4")


# Lengths


def long_row(sentences: int) -> dict[str, Any]:
    story = "\n".join(f"{i} Ann and Bob entered the den." for i in range(1, sentences + 1))
    return {**ROW, "story": f"{story}\n{sentences + 1} The pear is in the red_box."}


@pytest.mark.parametrize("where", ["tasks", "evaluation.tasks"])
def test_an_over_long_prompt_is_found_before_anything_is_sampled(where, policy_folder, tmp_path):
    """The second of three rows is the longest: all are looked at, and that one is named."""
    file = hitom_file(tmp_path / "data", ROW, long_row(60), long_row(40))
    task = file_task(str(file))
    changes: dict[str, Any] = (
        {"tasks": (task,)} if where == "tasks" else {"evaluation": EvalConfig(tasks=(task,), bootstrap=50)}
    )
    config = run_config(policy_folder, tmp_path / "runs", **changes)
    message = refused(
        config,
        ConfigError,
        2,
        f"{where}: the prompt of example hitom/hitom-1 has",
        "the longest of 2",
        "sampler.prefix",
    )
    length, more = (int(message.split(f" {word}")[0].split()[-1]) for word in ("tokens", "or more"))
    # The advice is exact: with it, the longest prompt fits the sampler.
    sampler = dataclasses.replace(config.sampler, prefix=(more,))
    enough = dataclasses.replace(config, sampler=sampler)
    if where == "evaluation.tasks":
        assert more + sampler.tail[-1] == length
        assert len(assemble(enough).evaluation[0].examples) == 3
    else:
        refused(enough, ConfigError, 2, "hitom/hitom-1", "train.prefix")


def test_a_prompt_beyond_the_models_context_names_the_context(policy_folder, tmp_path):
    file = hitom_file(tmp_path / "data", long_row(400))
    config = run_config(policy_folder, tmp_path / "runs", tasks=(file_task(str(file)),))
    refused(config, ConfigError, 2, "hitom/hitom-0", "the model's context of 2048", "32 tokens for the reply")


# Run directories


@pytest.fixture(scope="module")
def finished(policy_folder, tmp_path_factory) -> tuple[RunConfig, RunDirectory]:
    """A run of three steps, and its config. Tests leave it as it is."""
    config = run_config(policy_folder, tmp_path_factory.mktemp("finished"))
    return config, train_quietly(config)


def test_the_directory_of_a_run_with_another_config_is_refused_and_untouched(finished):
    config, run = finished
    before = files_of(run.path)
    other = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=0.5),
        tasks=(story_task(32),),
    )
    with pytest.raises(RunDirectoryError) as caught:
        train_quietly(other)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    for part in (
        str(run.path),
        "optimizer.learning_rate: 0.001 there, 0.5 now",
        "tasks.0.source.limit: 64 there, 32 now",
        "--run_name",
        "--overwrite",
    ):
        assert part in message
    assert files_of(run.path) == before


def test_settings_that_do_not_change_what_is_learned_may_differ(finished):
    config, run = finished
    judge = dataclasses.replace(config.judge, base_url="http://localhost:1/v1", max_concurrent=2, timeout_s=5.0)
    assert train_quietly(dataclasses.replace(config, judge=judge, save_total_limit=5)).path == run.path


def test_resume_never_and_must_are_kept(finished, policy_folder, tmp_path):
    config, run = finished
    before = files_of(run.path)
    with pytest.raises(RunDirectoryError, match=r"resume=never; add --overwrite to replace it or change --run_name"):
        train_quietly(dataclasses.replace(config, resume="never"))
    assert files_of(run.path) == before
    must = run_config(policy_folder, tmp_path, resume="must")
    refused(must, RunDirectoryError, 2, "resume=must", "no run to continue", "resume=auto")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_directory_is_left_alone(overwrite, policy_folder, tmp_path):
    mine = tmp_path / "tiny" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("three years of work")
    with pytest.raises(RunDirectoryError, match="is not a run directory") as caught:
        train_quietly(run_config(policy_folder, tmp_path, overwrite=overwrite))
    assert caught.value.exit_code == 2
    assert files_of(tmp_path) == {"tiny/thesis.txt": b"three years of work"}


def test_a_file_in_the_place_of_the_run_directory_is_left_alone(policy_folder, tmp_path):
    (tmp_path / "tiny").write_text("a file")
    with pytest.raises(RunDirectoryError, match="is a file, not a run directory"):
        train_quietly(run_config(policy_folder, tmp_path))
    assert (tmp_path / "tiny").read_text() == "a file"


# A full disk


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk(monkeypatch, part: str) -> None:
    """From now on, writing `part` of step 2 fails as on a full disk."""
    if part == "checkpoint":
        original = ocp.CheckpointManager.save

        def save(self, step, *arguments, **keywords):
            if step == 2:
                raise FULL
            return original(self, step, *arguments, **keywords)

        monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    elif part == "rollouts":
        replace = os.replace

        def full(source, target):
            if "step_000002" in str(target):
                raise FULL
            replace(source, target)

        monkeypatch.setattr(run_dir.os, "replace", full)
    else:
        append = RunDirectory.append_metrics

        def half(self, row):
            if row["step"] < 2:
                return append(self, row)
            with run_dir._told(self.metrics), open(self.metrics, "a") as handle:
                handle.write('{"step": 2, "rewa')  # what fits is written
                handle.flush()
                raise FULL

        monkeypatch.setattr(RunDirectory, "append_metrics", half)


@pytest.mark.parametrize("part", ["checkpoint", "rollouts", "metrics"])
def test_a_full_disk_stops_the_run_with_what_was_saved_intact(part, policy_folder, tmp_path, monkeypatch, finished):
    config = run_config(policy_folder, tmp_path)
    with monkeypatch.context() as patch:
        fill_disk(patch, part)
        with pytest.raises(RunDirectoryError) as caught:
            train_quietly(config)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "No space left on device" in message and "free space" in message
    assert "command to continue" in message
    assert str(tmp_path / "tiny") in message
    run = RunDirectory(tmp_path / "tiny")
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 2)
    assert learned(run)[:1] == learned(finished[1])[:1]
    assert run.read_rollouts(1) == finished[1].read_rollouts(1)
    assert [p.name for p in run.checkpoints.iterdir() if p.name.isdigit()] == ["1"]
    if part == "checkpoint":
        assert "step 2" in message and "steps [1] are intact" in message
    assert_same_run(train_quietly(config), finished[1])


def test_a_full_disk_at_the_very_start_does_not_block_the_rerun(policy_folder, tmp_path, monkeypatch, finished):
    def full(source, target):
        raise FULL

    config = run_config(policy_folder, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run_dir.os, "replace", full)
        with pytest.raises(RunDirectoryError, match=r"cannot write .*config\.yaml: No space left on device"):
            train_quietly(config)
    assert_same_run(train_quietly(config), finished[1])


def test_a_damaged_checkpoint_is_named_with_the_way_on(policy_folder, tmp_path, finished):
    config = run_config(policy_folder, tmp_path)
    shutil.copytree(finished[1].path, tmp_path / "tiny")
    run = RunDirectory(tmp_path / "tiny")
    newest = run.checkpoints / "3"
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 2000:
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunDirectoryError) as caught:
        train_quietly(config)
    assert str(newest) in str(caught.value) and "Move that folder away" in str(caught.value)
    shutil.rmtree(newest)
    assert_same_run(train_quietly(config), finished[1])
    assert [record["step"] for record in read_evaluations(run)] == [0, 3]
