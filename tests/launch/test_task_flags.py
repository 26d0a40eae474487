"""Tasks named on the command line: what is spelled out, what a mistake is told, a table of all, and a task of one's
own from outside the package.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ditto_jax.evaluation.table import COLUMNS
from ditto_jax.tasks.registry import built_in_names
from ditto_jax.tasks.released import SOUL
from launch.cli import main
from launch.task_flags import spelled_out
from tests.judge.server import obliges, serving

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "last_speaker.py"
TINY = ("--model_name_or_path", "tiny-tom", "--evaluation.bootstrap", "50")


def records(words: list[str], flag: str = "evaluation.tasks") -> list[dict]:
    return yaml.safe_load(words[words.index(f"--{flag}") + 1])


def test_all_names_every_task_and_takes_the_presets_settings_for_it():
    words = spelled_out(["--tasks", "all", "--limit", "5", "--seed", "3"], "eval")
    assert words[:4] == ["--config", "soul_eval_tiny.yaml", "--seed", "3"]
    tasks = records(words)
    assert [task["name"] for task in tasks] == list(built_in_names())
    assert {task["source"]["limit"] for task in tasks} == {5}
    assert {task["source"]["kind"] for task in tasks} == {"auto"}
    assert next(task for task in tasks if task["name"] == "hitom")["options"] == {"prompt_style": "compact"}


def test_a_model_of_ones_own_is_asked_the_whole_tasks():
    words = spelled_out(["--tasks", "hitom,fantom", "--model_name_or_path=folder"], "eval")
    assert words[:2] == ["--config", "soul_eval.yaml"]
    assert [(task["name"], task.get("options")) for task in records(words)] == [("hitom", None), ("fantom", None)]


def test_a_config_that_lists_a_task_says_how_it_is_measured(tmp_path):
    file = tmp_path / "own.yaml"
    listed = {"name": "hitom", "label": "mine", "source": {"limit": 9, "seed": 4}, "options": {"orders": [0]}}
    file.write_text(yaml.safe_dump({"evaluation": {"tasks": [listed]}}))
    words = spelled_out(["--config", str(file), "--task", "hitom", "--task", "mistakes", "--limit", "2"], "eval")
    first, second = records(words)
    assert first == {**listed, "source": {"limit": 2, "seed": 4}}
    assert second["name"] == "mistakes" and second["source"]["optional"] is True
    assert spelled_out(["--config", str(file), "--task", "mine"], "eval")[-1].count("limit: 9") == 1


def test_training_on_a_named_task_also_measures_its_held_out_split():
    words = spelled_out(["--config", "quickstart.yaml", "--task", "mistakes", "--limit", "7"], "train")
    (trained,), (measured,) = records(words, "tasks"), records(words)
    assert (trained["source"]["split"], trained["source"]["limit"]) == ("train", 7)
    assert (measured["source"]["split"], measured["source"]["limit"]) == ("test", 7)


def test_limit_and_split_alone_are_for_the_tasks_that_a_config_evaluates(tmp_path):
    file = tmp_path / "own.yaml"
    listed = [{"name": "hitom", "label": "mine", "source": {"limit": 9, "seed": 4}}, {"name": "mistakes"}]
    file.write_text(yaml.safe_dump({"evaluation": {"tasks": listed}}))
    words = spelled_out(["--config", str(file), "--limit", "3", "--split", "validation"], "eval")
    assert [task.get("label") or task["name"] for task in records(words)] == ["mine", "mistakes"]
    assert records(words)[0]["source"] == {"limit": 3, "seed": 4, "split": "validation"}
    named = spelled_out(["--tasks", "hitom", "--split", "train"], "eval")
    assert records(named)[0]["source"]["split"] == "train"


def test_short_names_set_what_they_stand_for():
    words = spelled_out(["--num_trials", "4", "--max-concurrency", "2", "--evaluation.temperature", "1"], "eval")
    assert words == [
        *("--evaluation.temperature", "1", "--evaluation.num_samples", "4"),
        *("--policy.max_concurrent", "2", "--judge.max_concurrent", "2", "--partner.max_concurrent", "2"),
    ]


@pytest.mark.parametrize("words", [["--seed", "1"], ["--tasks", "[{name: hitom}]"], ["--config", "quickstart.yaml"]])
def test_words_that_name_no_task_are_left_alone(words):
    assert spelled_out(words, "train") == words


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--tasks", "hitmo"], 2, "did you mean 'hitom'?"),
        (["--tasks", "social_r1"], 2, "'social_r1' is known but not yet here; known tasks: hitom"),
        (["--tasks", "humanual_book"], 2, "'humanual_book' is known but not yet here"),
        (["--task", "nowhere.py:Mine"], 3, "no such file"),
        (["--task", f"{EXAMPLE}:Nobody"], 2, "has no 'Nobody'"),
        (["--task", f"{EXAMPLE}:Options"], 2, "must name a subclass of Task"),
        (["--tasks", "all,hitom"], 2, "'all' already names every task"),
        (["--tasks", "all", "--limit", "0"], 2, "--limit: '0' must be a positive number"),
        (["--limit", "5"], 2, "name the tasks that it is for"),
        (["--split", "test"], 2, "--split test: name the tasks that it is for"),
        (["--tasks", "hitom", "--split", "dev"], 2, "invalid choice: 'dev'"),
        (["--num_trials", "0"], 2, "--num_trials: '0' must be a positive number"),
        (["--num_trials", "2", "--evaluation.num_samples", "3"], 2, "give one of the two"),
        (["--tasks", "hitom", "--num_trials", "2"], 2, "set evaluation.temperature to 1.0"),
        (["--tasks", "hitom", "--evaluation.tasks", "[{name: hitom}]"], 2, "give one of the two"),
        (["--tasks", "lifechoices"], 3, "task 'lifechoices' has no generator"),
    ],
)
def test_a_mistake_is_told_in_one_line(words, code, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)
    assert main(["eval", *words]) == code
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert not (tmp_path / "runs").exists()


def test_help_names_the_flags(capsys):
    assert main(["eval", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--task NAME" in printed and "--limit N" in printed


def evaluate_all(folder: Path, *words: str) -> list[dict]:
    command = ["eval", "--tasks", "all", "--limit", "2", "--output_dir", str(folder), "--run_name", "all"]
    assert main([*command, *words]) == 0
    written = json.loads((folder / "all" / "evaluation.json").read_text())
    assert written["schema_version"] == 1 and written["soul_average"]["is_complete"] is False
    rows = written["tasks"]
    lines = (folder / "all" / "evaluation.md").read_text().split("\n\n")[0].splitlines()
    assert lines[0] == f"| {' | '.join(COLUMNS)} |" and len(lines) == len(rows) + 2
    assert sorted(row["task"] for row in rows) == sorted(SOUL)
    return rows


@pytest.mark.slow
def test_all_tasks_without_data_or_server_are_measured_on_stand_ins_or_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)
    rows = {row["task"]: row for row in evaluate_all(tmp_path)}
    absent = {task for task, row in rows.items() if "not_measured" in row}
    assert absent == {"coser", "lifechoices", "mirrorbench", "twinvoice"}  # those without a generator
    printed = capsys.readouterr().out
    for task, row in rows.items():
        assert task in printed
        if task in absent:
            assert f"task '{task}' has no generator" in row["not_measured"]
        else:
            assert row["source"]["stand_in"] and row["used"] == sum(row["outcomes"].values()) == 2
            assert row["scored_by"] and all(judge.partition("@")[0] in ("rules", "proxy") for judge in row["scored_by"])
            assert all(partner.startswith("scripted@") for partner in row["partners"].values())


@pytest.mark.slow
def test_all_tasks_on_public_files_are_measured_with_a_model_as_judge_and_partner(soul_data_dir, tmp_path):
    with serving(obliges) as server:
        words = [
            f"--{part}.{name}={value}"
            for part in ("judge", "partner")
            for name, value in (("kind", "openai"), ("model", "small"), ("base_url", server.base_url))
        ]
        rows = {row["task"]: row for row in evaluate_all(tmp_path, *words)}
    assert [task for task, row in rows.items() if "not_measured" in row] == ["lifechoices"]  # no public file is there
    measured = [row for task, row in rows.items() if task != "lifechoices"]
    assert {row["source"]["kind"] for row in measured} == {"files"}
    assert all(row["used"] + row["too_long"] == 2 and row["outcomes"] for row in measured)
    assert {partner for row in measured for partner in row["partners"].values()} == {"openai:small"}
    assert any(judge.startswith("openai:small") for row in measured for judge in row["scored_by"])


def program(folder: Path, *words: str) -> str:
    """Standard output of `ditto-jax` in a process of its own, started in `folder`; it must succeed."""
    paths = os.pathsep.join([str(ROOT), str(folder / "installed")])
    ended = subprocess.run(
        [sys.executable, "-m", "ditto_jax", *words, *TINY],
        cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_a_task_of_ones_own_is_trained_on_and_measured_from_its_file(tmp_path):
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    small = ("--train.max_steps", "1", "--rollout.prompts_per_step", "2", "--rollout.num_generations", "2")
    named = ("--task", "mine.py:LastSpeaker", "--limit", "4")
    program(tmp_path, "train", "--config", "quickstart.yaml", *named, *small, "--run_name", "own")
    records = [json.loads(file.read_text()) for file in (tmp_path / "runs/own/eval/LastSpeaker").glob("step_*.json")]
    assert sorted(record["step"] for record in records) == [0, 1]
    assert {(record["task"], record["n"]) for record in records} == {("last_speaker", 4)}


@pytest.mark.slow
def test_a_task_of_an_installed_package_is_found_by_its_name(tmp_path):
    package = tmp_path / "installed"
    (package / "mine-1.dist-info").mkdir(parents=True)
    (package / "mine-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    entry = "[ditto_jax.tasks]\nlast_speaker = mine:LastSpeaker\n"
    (package / "mine-1.dist-info" / "entry_points.txt").write_text(entry)
    shutil.copy(EXAMPLE, package / "mine.py")
    printed = program(tmp_path, "eval", "--task", "last_speaker", "--limit", "2", "--config", "soul_eval_tiny.yaml")
    assert "last_speaker  score" in printed and "scored by rules@last_speaker-1" in printed
