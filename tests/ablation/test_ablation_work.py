"""The runs of an ablation are those of `ditto-jax train`, are trained once, and go on where they were interrupted."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest
import yaml

from ditto_jax.ablation import work as working
from ditto_jax.ablation.config import AblationConfig
from ditto_jax.ablation.plan import Plan, make_plan
from ditto_jax.ablation.work import check_runs, is_finished, work
from ditto_jax.ablation.write import write_results
from ditto_jax.config_io import to_plain
from ditto_jax.errors import Preempted, RunDirectoryError
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.strict import build
from tests.tiny_run import STEPS, assert_same_run, run_config, train_quietly

COMMAND = ["ditto-jax", "ablate"]


def plan_of(folder: Path, policy: Path, **changes) -> Plan:
    """Two arms and one seed of the tiny run, from one warm start."""
    base, starts = folder / "base.yaml", folder / "policies"
    base.write_text(yaml.safe_dump(to_plain(run_config(policy, folder))))
    if not starts.exists():
        starts.mkdir()
        shutil.copytree(policy, starts / "seed-0")
    arms = [
        {"name": "ditto"},
        {"name": "shuffled", "settings": {"judge": {"feedback_content": "shuffled"}}},
    ]
    values = {
        "output_dir": str(folder / "ablations"),
        "base": str(base),
        "seeds": 1,
        "warm_starts": {"folder": str(starts), "count": 1},
        "updates": STEPS,
        "arms": arms,
        **changes,
    }
    return make_plan(build(AblationConfig, values))


def test_runs_are_those_of_train_and_are_trained_once(policy_folder, tmp_path):
    plan = plan_of(tmp_path, policy_folder)
    lines: list[str] = []
    assert work(plan, COMMAND, lines.append) == []
    assert [line.partition(" done")[0] for line in lines] == ["ditto, seed 0", "shuffled, seed 0"]
    straight = train_quietly(run_config(policy_folder, tmp_path / "straight", seed=0))
    assert_same_run(RunDirectory(plan.runs[0].folder), straight)
    counts = [row["feedback/refined_count"] for row in RunDirectory(plan.runs[1].folder).read_metrics()]
    assert len(counts) == STEPS and sum(counts) > 0
    write_results(plan, working_console())
    assert work(plan, COMMAND, lines.append) == [] and len(lines) == 2


def working_console():
    from rich.console import Console

    return Console(quiet=True)


def fake_training(monkeypatch, outcome) -> list[str]:
    """Replaces training by `outcome(run name)`, which may raise; returns the names in the order of their calls."""
    calls: list[str] = []

    def train(config, command):
        calls.append(config.run_name)
        outcome(config.run_name)
        folder = Path(config.output_dir) / config.run_name
        folder.mkdir(parents=True)
        (folder / "STATUS.json").write_text('{"state": "finished"}')
        return folder

    monkeypatch.setattr(working, "train", train)
    return calls


def test_a_run_that_fails_is_told_and_the_others_go_on(policy_folder, tmp_path, monkeypatch):
    def outcome(name):
        if name.startswith("ditto"):
            raise FloatingPointError("not a number")

    calls = fake_training(monkeypatch, outcome)
    plan = plan_of(tmp_path, policy_folder)
    (failure,) = work(plan, COMMAND, lambda line: None)
    assert "ditto, seed 0: FloatingPointError: not a number" in failure
    assert "Traceback" in (plan.folder / "logs" / "ditto-seed0.log").read_text()
    assert calls == ["ditto-seed0", "shuffled-seed0"]
    assert [is_finished(run) for run in plan.runs] == [False, True]


def test_sigterm_ends_the_work_and_the_next_call_continues(policy_folder, tmp_path, monkeypatch):
    def outcome(name):
        raise Preempted("saved")

    with monkeypatch.context() as patch:
        fake_training(patch, outcome)
        with pytest.raises(Preempted):
            work(plan_of(tmp_path, policy_folder), COMMAND, lambda line: None)
    calls = fake_training(monkeypatch, lambda name: None)
    assert work(plan_of(tmp_path, policy_folder), COMMAND, lambda line: None) == []
    assert calls == ["ditto-seed0", "shuffled-seed0"]


def test_a_run_that_another_process_has_claimed_is_left_to_it(policy_folder, tmp_path, monkeypatch):
    calls = fake_training(monkeypatch, lambda name: None)
    plan = plan_of(tmp_path, policy_folder)
    (plan.folder / "logs").mkdir(parents=True)
    with open(plan.folder / "logs" / "ditto-seed0.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        work(plan, COMMAND, lambda line: None)
        assert calls == ["shuffled-seed0"]
    work(plan, COMMAND, lambda line: None)
    assert calls == ["shuffled-seed0", "ditto-seed0"]


def test_an_absent_warm_start_is_made_whole_before_its_runs(policy_folder, tmp_path, monkeypatch):
    made: list[int] = []

    def run_sft(config, command):
        made.append(config.seed)
        folder = Path(config.output_dir)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        return folder

    monkeypatch.setattr(working, "run_sft", run_sft)
    calls = fake_training(monkeypatch, lambda name: None)
    plan = plan_of(tmp_path, policy_folder, seeds=2, warm_starts={"folder": str(tmp_path / "policies"), "count": 2})
    assert work(plan, COMMAND, lambda line: None) == []
    assert made == [1] and (tmp_path / "policies" / "seed-1" / "config.json").is_file()
    assert calls == ["ditto-seed0", "shuffled-seed0", "ditto-seed1", "shuffled-seed1"]


def test_a_warm_start_that_fails_ends_the_work_without_its_runs(policy_folder, tmp_path, monkeypatch):
    def run_sft(config, command):
        raise OSError("no space left")

    monkeypatch.setattr(working, "run_sft", run_sft)
    calls = fake_training(monkeypatch, lambda name: None)
    plan = plan_of(tmp_path, policy_folder, seeds=2, warm_starts={"folder": str(tmp_path / "policies"), "count": 2})
    (failure,) = work(plan, COMMAND, lambda line: None)
    assert "warm start 1" in failure and "no space left" in failure
    assert calls == ["ditto-seed0", "shuffled-seed0"]


def test_a_directory_of_other_settings_is_refused_before_anything_is_trained(policy_folder, tmp_path):
    plan = plan_of(tmp_path, policy_folder)
    folder = plan.runs[1].folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 99\n")
    with pytest.raises(RunDirectoryError, match="other settings"):
        check_runs(plan)
