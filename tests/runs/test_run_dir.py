"""The run directory: files that are whole or absent, and what a continued run keeps of them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import yaml

from ditto_jax.config import RunConfig, SourceConfig, TaskConfig
from ditto_jax.errors import RunDirectoryError
from ditto_jax.runs import run_dir
from ditto_jax.runs.run_dir import RunDirectory, check_run, open_run, write_atomically
from tests.tiny_run import files_of

CONFIG = RunConfig(run_name="mine", tasks=(TaskConfig("hitom", source=SourceConfig(limit=4)),))
COMMAND = ["ditto-jax", "train", "--seed", "0"]


def opened(path: Path, config: RunConfig = CONFIG) -> RunDirectory:
    return open_run(path, config, COMMAND, resume="auto", overwrite=False)[0]


def test_a_new_run_directory_says_what_was_run_with_what_and_where(tmp_path):
    run, earlier = open_run(tmp_path / "runs" / "mine", CONFIG, COMMAND, resume="auto", overwrite=False)
    assert not earlier
    assert yaml.safe_load((run.path / "config.yaml").read_text())["tasks"][0]["source"]["limit"] == 4
    assert (run.path / "cli.txt").read_text() == "ditto-jax train --seed 0\n"
    environment = json.loads((run.path / "env.json").read_text())
    assert environment["packages"]["jax"] and environment["devices"] and environment["python"]
    assert all(folder.is_dir() for folder in (run.checkpoints, run.rollouts, run.evaluations))


def test_opening_an_earlier_run_changes_no_file(tmp_path):
    opened(tmp_path / "mine")
    before = files_of(tmp_path)
    run, earlier = open_run(tmp_path / "mine", CONFIG, ["another", "command"], resume="must", overwrite=False)
    assert earlier and run.path == tmp_path / "mine"
    assert files_of(tmp_path) == before


def test_a_run_of_a_version_that_lacked_a_setting_is_continued_with_its_default(tmp_path):
    saved = opened(tmp_path / "mine").path / "config.yaml"
    values = yaml.safe_load(saved.read_text())
    del values["judging"], values["tasks"][0]["feedback"]
    saved.write_text(yaml.safe_dump(values))
    opened(tmp_path / "mine")
    with pytest.raises(RunDirectoryError, match="judging: 'all' there, 'leader' now"):
        opened(tmp_path / "mine", dataclasses.replace(CONFIG, judging="leader"))
    saved.write_text(yaml.safe_dump({**values, "forgotten": 1}))
    with pytest.raises(RunDirectoryError, match="forgotten: 1 there, None now"):
        opened(tmp_path / "mine")


@pytest.mark.parametrize("left", [[], ["config.yaml"], ["config.yaml", "env.json"]])
def test_a_creation_that_was_interrupted_is_completed(left, tmp_path):
    whole = files_of(opened(tmp_path / "whole").path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".config.yaml.tmp").write_text("half a con")
    for name in left:
        (tmp_path / "mine" / name).write_bytes(whole[name])
    run = opened(tmp_path / "mine")
    (run.path / ".config.yaml.tmp").unlink(missing_ok=True)
    assert files_of(run.path) == whole


def test_checking_changes_nothing_and_overwriting_happens_when_the_run_is_opened(tmp_path):
    path = opened(tmp_path / "mine").path
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    before = files_of(path)
    other = dataclasses.replace(CONFIG, seed=5)
    assert not check_run(path, other, resume="auto", overwrite=True)
    assert files_of(path) == before
    run, earlier = open_run(path, other, COMMAND, resume="auto", overwrite=True)
    assert not earlier and not run.metrics.exists()
    assert yaml.safe_load((path / "config.yaml").read_text())["seed"] == 5


def test_a_difference_of_many_settings_is_shown_in_part(tmp_path):
    opened(tmp_path / "mine")
    other = dataclasses.replace(
        CONFIG, seed=1, dtype="bfloat16", param_dtype="bfloat16", save_steps=3, model_name_or_path="m", tasks=()
    )
    with pytest.raises(RunDirectoryError) as caught:
        check_run(tmp_path / "mine", other, resume="auto", overwrite=False)
    assert "dtype: 'float32' there, 'bfloat16' now" in str(caught.value)
    assert "more)" in str(caught.value)


def test_metrics_read_back_and_a_torn_last_line_is_left_out(tmp_path):
    run = opened(tmp_path / "mine")
    rows = [{"step": step, "reward": 0.1 * step} for step in (1, 2)]
    for row in rows:
        run.append_metrics(row)
    assert run.read_metrics() == rows
    with open(run.metrics, "a") as handle:
        handle.write('{"step": 3, "rew')
    assert run.read_metrics() == rows


def test_rollouts_read_back_and_equal_content_gives_equal_bytes(tmp_path):
    run, rows = opened(tmp_path / "mine"), [{"reply": "größer als 中文 \n", "score": None, "tokens": [1, 2]}]
    run.write_rollouts(1, rows)
    run.write_rollouts(12, rows)
    assert run.read_rollouts(1) == rows and run.rollout_steps() == [1, 12]
    assert run.rollout_file(1).read_bytes() == run.rollout_file(12).read_bytes()
    assert run.read_rollouts(2) == []


def test_cutting_removes_what_came_after_the_step_and_keeps_the_rest(tmp_path):
    run = opened(tmp_path / "mine")
    for step in range(1, 5):
        run.append_metrics({"step": step})
        run.write_rollouts(step, [{"step": step}])
    folder = run.evaluations / "some_label_3"
    folder.mkdir()
    for step in (0, 2, 4):
        for name in (f"step_{step:06d}.json", f"samples_{step:06d}.jsonl"):
            (folder / name).write_text("{}\n")
    with open(run.metrics, "a") as handle:
        handle.write('{"st')
    run.cut_after(2)
    assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert run.rollout_steps() == [1, 2]
    assert sorted(p.name for p in folder.iterdir()) == [
        "samples_000000.jsonl",
        "samples_000002.jsonl",
        "step_000000.json",
        "step_000002.json",
    ]


def test_a_failed_write_leaves_the_old_file_and_no_half_of_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "STATUS.json"
    write_atomically(path, "old\n")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run_dir.os, "fsync", full)
        with pytest.raises(RunDirectoryError, match=rf"cannot write {path}: No space left on device; free space"):
            write_atomically(path, "new\n")
    assert files_of(tmp_path) == {"STATUS.json": b"old\n"}
    write_atomically(path, "new\n")
    assert path.read_text() == "new\n"


def test_status_says_state_step_code_and_process(tmp_path):
    run = opened(tmp_path / "mine")
    run.set_status("failed", 7, 2, "the reason")
    status = json.loads((run.path / "STATUS.json").read_text())
    assert {k: status[k] for k in ("state", "step", "exit_code", "detail", "pid")} == {
        "state": "failed",
        "step": 7,
        "exit_code": 2,
        "detail": "the reason",
        "pid": os.getpid(),
    }
