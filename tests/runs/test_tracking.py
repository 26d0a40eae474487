"""Trackers get the numbers of metrics.jsonl under their names, go on where a run goes on, and cannot harm it."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from ditto_jax.config import RunConfig
from ditto_jax.config_io import to_yaml
from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.judge.config import JudgeConfig, RoleConfig
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.tracking import RunIdentity, Trackers, require_trackers, tracked
from ditto_jax.tracking import report_to as tracking
from tests.tiny_run import run_config, train_quietly

RECORD = {"label": "held-out", "value": 0.5, "interval": {"low": 0.4, "high": 0.6}}


def needs(*packages: str) -> pytest.MarkDecorator:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)} (extra `tracking`)")


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    """A run directory with a configuration that knows an endpoint."""
    judge = JudgeConfig(kind="openai", model="m", base_url="https://judge.internal/v1", api_key_env="SOME_KEY_VARIABLE")
    role = RoleConfig(roles=("feedback",), kind="openai", model="m", base_url="https://other.internal/v1")
    config = RunConfig(run_name="demo", judge=judge, endpoints=(role,))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    return RunDirectory(tmp_path)


class Recorder:
    """A tracker that keeps what it was told; `failing` makes each call raise."""

    opened: list[RunIdentity]
    sent: list[tuple[int, dict[str, float]]]

    def __init__(self, failing: bool = False):
        self.opened, self.sent, self.closed, self.failing = [], [], 0, failing

    def __call__(self, run: RunIdentity) -> Recorder:
        self.opened.append(run)
        return self

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.failing:
            raise ConnectionError("no route to tracker")
        self.sent.append((step, dict(numbers)))

    def close(self) -> None:
        self.closed += 1


def row(step: int) -> dict[str, object]:
    return {"step": step, "reward": 0.1 * step, "rewards/hitom/mean": 0.2, "note": "text", "flag": True}


def test_numbers_keep_their_names_and_everything_else_stays_behind(run):
    there = Recorder()
    trackers = Trackers(["wandb"], run, 1, {"wandb": there})
    trackers.step(row(1))
    trackers.evaluated(1, [RECORD])
    trackers.close()
    assert there.sent == [
        (1, {"reward": 0.1, "rewards/hitom/mean": 0.2}),
        (1, {"eval/held-out": 0.5, "eval/held-out/low": 0.4, "eval/held-out/high": 0.6}),
    ]
    assert there.closed == 1


def test_a_continued_run_is_the_same_one_and_sends_no_step_twice(run):
    there = Recorder()
    first = Trackers(["wandb"], run, 1, {"wandb": there})
    for step in (1, 2, 3):
        first.step(row(step))
    second = Trackers(["wandb"], run, 2, {"wandb": there})  # killed after 3, continued after the checkpoint of 1
    for step in (2, 3, 4):
        second.step(row(step))
    assert [step for step, _ in there.sent] == [1, 2, 3, 4]
    assert len({identity.identifier for identity in there.opened}) == 1
    assert [identity.next_step for identity in there.opened] == [1, 2]


def test_settings_that_are_sent_name_no_address_and_no_source_of_a_key(run):
    there = Recorder()
    Trackers(["wandb"], run, 1, {"wandb": there})
    sent = json.dumps(dict(there.opened[0].settings))
    assert '"judge.model": "m"' in sent
    assert "internal" not in sent and "SOME_KEY_VARIABLE" not in sent


def test_a_tracker_that_fails_is_told_once_and_counted_and_the_others_go_on(run, caplog, monkeypatch):
    broken, there, told = Recorder(failing=True), Recorder(), []
    monkeypatch.setattr(tracking, "TRACKERS", {"wandb": broken, "trackio": there})
    with caplog.at_level(logging.WARNING), tracked(["wandb", "trackio"], run, 1, told.append) as trackers:
        for step in (1, 2, 3):
            trackers.step(row(step))
    assert trackers.failed == {"wandb": 3} and len(there.sent) == 3
    assert [record.message for record in caplog.records] == [
        "report_to=wandb failed (ConnectionError: no route to tracker); the run goes on without it"
    ]
    assert told == ["report_to=wandb: 3 call(s) failed, first reason: ConnectionError: no route to tracker"]


def test_a_tracker_that_cannot_be_opened_is_left_out(run, caplog):
    def refuses(identity: RunIdentity) -> Recorder:
        raise PermissionError("not logged in")

    trackers = Trackers(["wandb"], run, 1, {"wandb": refuses})
    trackers.step(row(1))
    assert trackers.failed == {"wandb": 1} and "not logged in" in caplog.text


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingInputError, match=r"package tensorboardX is not installed; pip install 'ditto-jax\[tensorboard\]'"
    ):
        require_trackers(["tensorboard"])
    require_trackers(["none"])


def test_none_stands_alone():
    with pytest.raises(ConfigError, match="none stands alone"):
        RunConfig(report_to=("none", "wandb"))


def test_training_reports_every_step_and_every_evaluation(policy_folder, tmp_path, monkeypatch):
    there = Recorder()
    monkeypatch.setattr(tracking, "TRACKERS", {"tensorboard": there})
    monkeypatch.setattr(tracking, "_PACKAGES", {})
    run = train_quietly(run_config(policy_folder, tmp_path, report_to=("tensorboard",)))
    rows = run.read_metrics()
    steps = [(step, numbers) for step, numbers in there.sent if "reward" in numbers]
    assert [step for step, _ in steps] == [row["step"] for row in rows]
    assert steps[-1][1]["reward"] == rows[-1]["reward"]
    assert [step for step, numbers in there.sent if "eval/hitom" in numbers] == [0, len(rows)]
    assert there.closed == 1


# --- with the packages themselves -------------------------------------------------------------------------------------


@needs("tensorboardX", "tensorboard")
@pytest.mark.filterwarnings("ignore")  # of TensorBoard's own imports
def test_event_files_are_read_back_and_purged_where_a_run_is_continued(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for next_step, last, shift in ((1, 3, 0.0), (2, 4, 1.0)):
        with tracked(["tensorboard"], run, next_step, pytest.fail) as trackers:
            for step in range(next_step, last + 1):
                trackers.step({"step": step, "reward": step + shift, "rewards/hitom/mean": 0.5})
    read = EventAccumulator(str(run.path / "tb")).Reload()
    assert set(read.Tags()["scalars"]) == {"reward", "rewards/hitom/mean"}
    assert [(event.step, event.value) for event in read.Scalars("reward")] == [(1, 1.0), (2, 3.0), (3, 4.0), (4, 5.0)]


_TWICE = """
    from pathlib import Path
    from ditto_jax.runs.run_dir import RunDirectory
    from ditto_jax.tracking import tracked

    run = RunDirectory(Path({folder!r}))
    def fail(text):
        raise SystemExit(text)
    for next_step, last in ((1, 3), (2, 4)):
        with tracked([{name!r}], run, next_step, fail) as trackers:
            for step in range(next_step, last + 1):
                trackers.step({{"step": step, "reward": float(step)}})
"""


def in_a_process(run: RunDirectory, name: str, **environment: str) -> None:
    """Sends four steps, two of them twice, in a process of its own: these packages keep threads and servers."""
    program = textwrap.dedent(_TWICE.format(folder=str(run.path), name=name))
    known = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO"))}
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (root, known.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**known, "PYTHONPATH": paths, "HOME": str(run.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + done.stdout


@needs("trackio")
def test_trackio_keeps_one_run_with_each_step_once(run, tmp_path):
    in_a_process(run, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "ditto-jax.db") as database:
        found = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    database.close()
    assert [step for _, step, _ in found] == [1, 2, 3, 4]
    assert len({name for name, _, _ in found}) == 1 and found[0][0].startswith("demo-")
    assert [json.loads(metrics)["reward"] for _, _, metrics in found] == [1.0, 2.0, 3.0, 4.0]


@needs("wandb")
def test_wandb_writes_offline_runs_of_one_identifier(run):
    in_a_process(run, "wandb", WANDB_MODE="offline")
    identifier = json.loads((run.path / "tracking.json").read_text())["identifier"]
    files = sorted((run.path / "wandb").glob(f"offline-run-*/run-{identifier}.wandb"))
    assert files and all(b"reward" in file.read_bytes() for file in files)
    texts = [path.read_bytes() for path in (run.path / "wandb").rglob("*") if path.is_file()]
    assert not any(b"SOME_KEY_VARIABLE" in text or b"judge.internal" in text for text in texts)
