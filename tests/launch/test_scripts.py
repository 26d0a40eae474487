"""The scripts, run for real, with stand-ins for the programs of a cluster: ssh, gcloud, sbatch, srun, kubectl.

A stand-in does what a script relies on (ssh runs the command in a folder that is a host's home), or notes how it was
called. What the real programs do beyond that is not tested.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
from pathlib import Path

import pytest

from launch.supervisor import supervise
from launch.targets.config import LaunchConfig, SlurmConfig, SshConfig, TpuConfig
from launch.targets.job import Job
from launch.targets.render import Rendering, render

# Says what it was given, then runs until SIGTERM, upon which it saves, or ends as the file `end` beside it says.
_READY = """\
trap 'echo saved; exit 75' TERM
echo "ready $* ${JAX_PROCESS_ID:-alone} ${JAX_NUM_PROCESSES:-} ${JAX_COORDINATOR_ADDRESS:-}"
touch "${0%/*}/ready"
"""
_PROGRAM = f"""\
{_READY}\
for ((turn = 0; turn < 600; turn++)); do
  if [[ -f "${{0%/*}}/end" ]]; then exit "$(cat "${{0%/*}}/end")"; fi
  sleep 0.05
done
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Adds stand-ins to the PATH; every call of one that notes is a line of `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def add(name: str, text: str) -> None:
        write_program(folder / name, text)

    return add


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}")
    path.chmod(0o755)


def rendered(config: LaunchConfig, folder: Path) -> Rendering:
    """Writes the files of a small job to `folder`."""
    job = Job("job", (config.verb,), "run_name: job\n", "python3", str(folder), "3.12", "ditto-jax", ())
    made = render(config, job)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.files.items():
        (folder / name).write_text(text)
    return made


def install(folder: Path) -> None:
    """Puts the stand-in of the program where `setup.sh` would, which then finds nothing to do."""
    write_program(folder / "env" / "bin" / "ditto-jax", _PROGRAM)
    wanted = "".join((folder / name).read_text() for name in ("requirements.txt", "constraints.txt", "uv.txt"))
    (folder / "env" / ".installed").write_text(wanted.rstrip("\n"))


def calls(tmp_path: Path) -> list[str]:
    file = tmp_path / "calls"
    return file.read_text().splitlines() if file.exists() else []


TPU = LaunchConfig(target="tpu-queued-resource", tpu=TpuConfig(zone="z"))


def test_a_worker_passes_sigterm_on_and_keeps_the_exit_code(tmp_path):
    folder = tmp_path / "it's here"
    rendered(TPU, folder)
    install(folder)
    words = ["bash", str(folder / "worker.sh"), "10.0.0.2:8476", "2", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == f"ready train --config {folder}/run.yaml 1 2 10.0.0.2:8476\n"
        worker.send_signal(signal.SIGTERM)
        assert worker.stdout.read() == "saved\n"
    assert worker.returncode == 75
    assert (folder / "exit_code").read_text() == "75\n"


def test_a_stop_that_comes_before_the_process_waits_for_it(tmp_path):
    rendered(TPU, tmp_path)
    with (
        subprocess.Popen(["sleep", "60"]) as process,
        subprocess.Popen(["bash", tmp_path / "stop.sh"]) as stop,
    ):
        with pytest.raises(subprocess.TimeoutExpired):
            stop.wait(0.3)
        (tmp_path / "pid").write_text(f"{process.pid}\n")
        assert stop.wait(30) == 0
        assert process.wait(30) == -signal.SIGTERM


def test_hosts_over_ssh_are_installed_started_and_stopped_together(tmp_path, programs, monkeypatch):
    """The second host's program fails; the first one is told to stop, and saves."""
    homes = tmp_path / "homes"
    monkeypatch.setenv("HOMES", str(homes))
    programs("ssh", 'while [[ "$1" != -- ]]; do shift; done; cd "$HOMES/$2" && shift 2 && exec bash -c "$*"')
    programs(
        "scp", 'while [[ "$1" != -- ]]; do shift; done; shift; to="${*: -1}"; cp -r "${@:1:$#-1}" "$HOMES/${to/:/\\/}"'
    )
    config = LaunchConfig(target="ssh", ssh=SshConfig(hosts=("ann@first", "second")))
    made = rendered(config, tmp_path / "files")
    for host in config.ssh.hosts:
        (homes / host / "ditto-jobs" / "job").mkdir(parents=True)
        for name in ("requirements.txt", "constraints.txt", "uv.txt"):
            (homes / host / "ditto-jobs" / "job" / name).write_text(made.files[name])
        install(homes / host / "ditto-jobs" / "job")
    (install_command,) = made.first
    subprocess.run(["bash", tmp_path / "files" / install_command[1]], check=True)
    assert (homes / "second" / "ditto-jobs" / "job" / "run.yaml").read_text() == made.files["run.yaml"]
    first, second = (homes / host / "ditto-jobs" / "job" / "env" / "bin" for host in config.ssh.hosts)
    until = f'until [[ -f "{first}/ready" ]]; do sleep 0.05; done\n'
    write_program(second / "ditto-jax", _READY + until + "exit 3\n")
    out = io.StringIO()
    code = supervise([["bash", str(tmp_path / "files" / name)] for _, name in made.together], 30.0, out)
    assert code == 3
    told = out.getvalue()
    assert "[0] ready train --config " in told and "run.yaml 0 2 first:8476" in told
    assert "run.yaml 1 2 first:8476" in told
    assert "[0] saved" in told


# Takes the next line of `states` as the state (none: there is no such resource), and of `results` how the run ended.
_GCLOUD = """\
echo "$*" >>"$CALLS"
next() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$*" in
  *describe*) now="$(next "$STATES")"; [[ -n "$now" ]] || exit 1; echo "$now" ;;
  *=bash*/worker.sh) exit "$(next "$RESULTS")" ;;
  *'cat '*exit_code*) echo "$LEFT" ;;
esac
"""


def run_on_tpu(
    tmp_path, programs, monkeypatch, states: list[str], results: list[int], left: str = ""
) -> tuple[int, list[str]]:
    """Returns the exit code of run.sh and the calls of gcloud that change something, in short."""
    for name, lines in (("STATES", states), ("RESULTS", results)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("LEFT", left)
    programs("gcloud", _GCLOUD)
    programs("sleep", "exit 0\n")
    rendered(TPU, tmp_path / "files")
    done = subprocess.run(["bash", tmp_path / "files" / "run.sh"], capture_output=True, text=True)
    short = {
        "resources create": "create",
        "resources delete": "delete",
        "=bash ditto-jobs/job/worker.sh": "run",
        "tpu-vm scp": "copy",
        "job/setup.sh": "install",
    }
    changes = [word for call in calls(tmp_path) for sign, word in short.items() if sign in call]
    return done.returncode, changes


def test_a_tpu_that_is_taken_away_is_asked_for_again(tmp_path, programs, monkeypatch):
    states = ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"]
    code, changes = run_on_tpu(tmp_path, programs, monkeypatch, states, [1, 0])
    assert code == 0
    assert changes == ["create", "copy", "install", "run", "delete", "create", "copy", "install", "run"]


def test_a_run_that_saved_goes_on_where_the_tpu_still_is(tmp_path, programs, monkeypatch):
    states = ["ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE"]
    code, changes = run_on_tpu(tmp_path, programs, monkeypatch, states, [75, 0], left="75")
    assert code == 0
    assert changes == ["copy", "install", "run", "copy", "install", "run"]


def test_a_run_that_failed_is_not_started_again_and_the_tpu_is_kept(tmp_path, programs, monkeypatch):
    code, changes = run_on_tpu(tmp_path, programs, monkeypatch, ["", "ACTIVE", "ACTIVE"], [1], left="4")
    assert code == 4
    assert changes == ["create", "copy", "install", "run"]


def test_a_tpu_that_cannot_be_had_ends_the_script(tmp_path, programs, monkeypatch):
    code, changes = run_on_tpu(tmp_path, programs, monkeypatch, ["", "FAILED"], [])
    assert code == 1
    assert changes == ["create"]


@pytest.mark.parametrize(("ended", "requeued"), [(0, False), (1, False), (75, True)])
def test_a_slurm_job_requeues_itself_after_a_preemption_alone(tmp_path, programs, monkeypatch, ended, requeued):
    programs("srun", f'echo "srun $*" >>"$CALLS"; exit {ended}\n')
    programs("scontrol", 'echo "scontrol $*" >>"$CALLS"\n')
    programs("sbatch", 'export SLURM_JOB_ID=41 SLURM_SUBMIT_DIR="$PWD"; cp "$1" "$CALLS.copy"; bash "$CALLS.copy"\n')
    folder = tmp_path / "shared disk"
    rendered(LaunchConfig(target="slurm", slurm=SlurmConfig(gpus_per_node=1)), folder)
    install(folder)
    done = subprocess.run(["bash", folder / "run.sh"], capture_output=True, text=True)
    assert done.returncode == ended, done.stderr
    started, *rest = calls(tmp_path)
    assert started.endswith(f"{folder}/env/bin/ditto-jax train --config {folder}/run.yaml")
    assert rest == (["scontrol requeue 41"] if requeued else [])


def test_the_manifest_is_applied(tmp_path, programs):
    from tests.rendered_jobs import CASES

    programs("kubectl", 'echo "$*" >>"$CALLS"\n')
    rendered(CASES["gke_tpu"], tmp_path / "files")
    done = subprocess.run(["bash", tmp_path / "files" / "run.sh"], capture_output=True, text=True, check=True)
    assert calls(tmp_path) == [f"apply --filename {tmp_path}/files/jobset.yaml"]
    assert "kubectl delete --namespace default jobset/job configmap/job" in done.stdout
