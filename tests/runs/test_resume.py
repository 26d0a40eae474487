"""The same command continues a run that was killed, preempted or failed at any moment, and ends where a straight run
ends.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ditto_jax import loop
from ditto_jax.config_io import to_yaml
from ditto_jax.runs.run_dir import RunDirectory
from tests.tiny_run import assert_same_run, run_config, status, train_config, train_quietly

STEPS = 8
_ROOT = Path(__file__).resolve().parents[2]
_DEADLINE_S = 240.0


@pytest.fixture(scope="module")
def straight(policy_folder, tmp_path_factory) -> RunDirectory:
    """The run that nothing disturbs, in this process."""
    return train_quietly(_config(policy_folder, tmp_path_factory.mktemp("straight")))


def _config(policy_folder: Path, output_dir: Path):
    return run_config(policy_folder, output_dir, train=train_config(STEPS), save_steps=2)


def _command(policy_folder: Path, folder: Path) -> list[str]:
    config = folder / "tiny.yaml"
    config.write_text(to_yaml(_config(policy_folder, folder)))
    return [sys.executable, "-m", "ditto_jax", "train", "--config", str(config)]


def _start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def _interrupt(command: list[str], moment: Callable[[], bool], delay_s: float, how: signal.Signals) -> tuple[int, str]:
    """Starts the command, sends the signal `delay_s` after `moment` holds; returns exit code and output."""
    process = _start(command)
    give_up = time.monotonic() + _DEADLINE_S
    while process.poll() is None and not moment() and time.monotonic() < give_up:
        time.sleep(0.0005)
    time.sleep(delay_s)
    process.send_signal(how)
    output, _ = process.communicate(timeout=_DEADLINE_S)
    return process.returncode, output


def _rows(run: RunDirectory) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def _is_saving(run: RunDirectory, after: int) -> bool:
    """Whether a checkpoint beyond step `after` is being written."""
    names = os.listdir(run.checkpoints) if run.checkpoints.is_dir() else []
    return any("tmp" in name and int(name.split(".")[0]) > after for name in names if name[0].isdigit())


def test_a_run_killed_three_times_ends_bit_for_bit_like_the_straight_one(policy_folder, tmp_path, straight):
    run, command = RunDirectory(tmp_path / "tiny"), _command(policy_folder, tmp_path)
    rng = random.Random(20)
    moments: list[tuple[Callable[[], bool], float]] = [
        (lambda: _rows(run) >= 1, rng.uniform(0.0, 0.06)),  # within step 2: nothing is saved yet
        (lambda: _is_saving(run, after=2), rng.uniform(0.0, 0.002)),  # while the checkpoint of step 4 is written
        (lambda: run.rollout_file(5).exists(), rng.uniform(0.0, 0.03)),  # at the end of step 5 or in step 6
    ]
    for moment, delay_s in moments:
        code, output = _interrupt(command, moment, delay_s, signal.SIGKILL)
        assert code == -signal.SIGKILL, output
    finished = _start(command)
    output, _ = finished.communicate(timeout=_DEADLINE_S)
    assert finished.returncode == 0, output
    assert "continuing" in output
    assert_same_run(run, straight)


def test_sigterm_saves_exits_with_75_and_the_same_command_finishes_equal(policy_folder, tmp_path, straight):
    run, command = RunDirectory(tmp_path / "tiny"), _command(policy_folder, tmp_path)
    code, output = _interrupt(command, lambda: _rows(run) >= 2, 0.0, signal.SIGTERM)
    assert code == 75, output
    assert "the same command continues" in output
    preempted = status(run)
    assert (preempted["state"], preempted["exit_code"]) == ("preempted", 75)
    assert 2 <= preempted["step"] < STEPS and (run.checkpoints / str(preempted["step"])).is_dir()
    assert _rows(run) == preempted["step"]
    assert_same_run(train_quietly(_config(policy_folder, tmp_path)), straight)


@pytest.mark.parametrize(("part", "moment"), [("evaluate_tasks", STEPS), ("write_report", None)])
def test_a_run_that_dies_after_its_last_step_is_completed(part, moment, policy_folder, tmp_path, straight, monkeypatch):
    """The last checkpoint is there, the last evaluation or the report is not."""
    original = getattr(loop, part)

    def dies(*arguments, **keywords):
        if moment is None or arguments[5] == moment:
            raise OSError("the machine is going down")
        return original(*arguments, **keywords)

    config = _config(policy_folder, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, part, dies)
        with pytest.raises(OSError, match="going down"):
            train_quietly(config)
    run = train_quietly(config)
    assert status(run)["state"] == "finished" and run.report.is_file()
    assert_same_run(run, straight)


def test_a_finished_run_is_left_as_it_is(policy_folder, tmp_path):
    config = run_config(policy_folder, tmp_path)
    run = train_quietly(config)
    before = {path: path.read_bytes() for path in _learned_files(run)}
    train_quietly(config)
    assert {path: path.read_bytes() for path in _learned_files(run)} == before


def _learned_files(run: RunDirectory) -> list[Path]:
    folders = (run.checkpoints, run.rollouts, run.evaluations)
    return [run.metrics, *itertools.chain.from_iterable((p for p in f.rglob("*") if p.is_file()) for f in folders)]
