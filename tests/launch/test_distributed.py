"""Who takes part in a run, told from flags and environments; and two real processes that compute together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ditto_jax.config import RunConfig
from ditto_jax.errors import ClusterError, ConfigError
from ditto_jax.evaluation.run import run_evaluation
from ditto_jax.processes import ALONE, refusal, require_one_process
from launch import distributed
from launch.cli import main
from launch.distributed import Cluster, find_cluster, first_node, join
from launch.launch import free_port

NOBODY = {"cluster": "auto", "coordinator_address": "", "num_processes": 0, "process_id": -1}
SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "node[003-005,9],other",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def no_tpu(monkeypatch):
    monkeypatch.setattr(distributed, "_TPU_CHIPS", ("/nothing/here/*",))


def test_a_process_without_others_joins_nobody():
    assert find_cluster({}) is None
    assert find_cluster({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1", "JAX_NUM_PROCESSES": "1"}) is None
    assert find_cluster({}, num_processes=1) is None
    assert join(NOBODY) is None


def test_flags_win_over_the_environment():
    environment = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}
    assert find_cluster(environment) == Cluster("flags or JAX_ variables", "10.0.0.1:8476", 4, 0)
    assert find_cluster(environment, process_id=3) == Cluster("flags or JAX_ variables", "10.0.0.1:8476", 4, 3)
    assert find_cluster({**SLURM, **environment}) == Cluster("flags or JAX_ variables", "10.0.0.1:8476", 4, 0)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"num_processes": 2}, ["coordinator_address and process_id", "--coordinator_address 10.0.0.1:8476"]),
        ({"coordinator_address": "h", "num_processes": 2, "process_id": 0}, ["'h'", "10.0.0.1:8476"]),
        ({"coordinator_address": "h:1", "num_processes": 2, "process_id": 2}, ["process_id=2", "from 0 to 1"]),
        ({"cluster": "slurm"}, ["cluster=slurm", "srun"]),
        ({"cluster": "none", "num_processes": 2}, ["cluster=none", "drop one"]),
    ],
)
def test_settings_that_name_no_run_are_refused(settings, parts):
    with pytest.raises(ConfigError) as told:
        find_cluster({}, **settings)
    assert all(part in str(told.value) for part in parts)


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES='two'"):
        find_cluster({"JAX_NUM_PROCESSES": "two"})


def test_a_task_of_a_slurm_step_finds_the_first_node_and_takes_all_its_gpus():
    found = find_cluster({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert found == Cluster("Slurm", f"node003:{61440 + 4100 % 4096}", 3, 2)
    assert found.arguments()["local_device_ids"] is None
    assert find_cluster({**SLURM, "JAX_COORDINATOR_PORT": "7000"}) == Cluster("Slurm", "node003:7000", 3, 2)


def test_several_slurm_tasks_that_see_the_same_gpus_take_one_each():
    environment = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_LOCALID": "3", "SLURM_STEP_NUM_TASKS": "8"}
    several = find_cluster({**environment, "CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert several is not None and several.devices == (3,)
    one_each = find_cluster({**environment, "CUDA_VISIBLE_DEVICES": "3"})
    assert one_each is not None and one_each.devices == ()


@pytest.mark.parametrize("absent", ["SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS"])
def test_a_batch_script_and_a_single_task_are_alone(absent):
    assert find_cluster({name: value for name, value in SLURM.items() if name != absent}) is None
    assert find_cluster({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("one", "one"),
        ("a-1,b", "a-1"),
        ("n[07,09-11]", "n07"),
        ("n[1-2]-ib,x", "n1-ib"),
        ("rack-a[001-004]", "rack-a001"),
    ],
)
def test_the_first_node_of_a_slurm_list(nodes, first):
    assert first_node(nodes) == first


def test_hosts_of_a_tpu_on_gke_are_left_to_jax_and_a_single_one_is_alone():
    two = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
    assert find_cluster(two) == Cluster("the TPU's environment")
    assert Cluster("the TPU's environment").arguments() == {}
    assert find_cluster({"TPU_WORKER_HOSTNAMES": "a"}) is None
    assert find_cluster({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}) is not None
    assert find_cluster({**two, "JAX_PLATFORMS": "cpu"}) is None


def test_a_tpu_vm_asks_its_metadata(monkeypatch):
    monkeypatch.setattr(distributed, "_TPU_CHIPS", (__file__,))
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    assert find_cluster({}) == Cluster("the TPU's metadata")
    assert find_cluster({"TPU_SKIP_MDS_QUERY": "1"}) is None
    assert find_cluster({}, cluster="none") is None


def test_only_this_machine_is_offered_a_coordinator_of_this_machine():
    local, remote = (
        Cluster("flags or JAX_ variables", "127.0.0.1:8476", 2, 0),
        Cluster("flags or JAX_ variables", "10.0.0.1:8476", 2, 0),
    )
    assert local.arguments()["coordinator_bind_address"] == "127.0.0.1:8476"
    assert remote.arguments()["coordinator_bind_address"] is None


def test_others_that_are_not_there_are_one_message(monkeypatch, capsys):
    def refuse(**arguments):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody came\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    options = {**NOBODY, "coordinator_address": "10.0.0.1:8476", "num_processes": 2, "process_id": 1}
    with pytest.raises(ClusterError) as told:
        join(options)
    for part in ("process 1 of 2", "10.0.0.1:8476", "nobody came", "--cluster none"):
        assert part in str(told.value)
    assert "and more" not in str(told.value)
    assert "joining as process 1 of 2" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "eval", "sft", "doctor"])
def test_the_others_are_joined_before_a_device_is_touched(verb, monkeypatch, tmp_path):
    """The compile cache is the first that asks for a device, so it must come later; the run itself does not begin."""
    calls = []
    monkeypatch.setattr(
        f"launch.{'doctor' if verb == 'doctor' else 'verbs'}.join", lambda _: calls.append("join"), raising=False
    )
    monkeypatch.setattr(distributed, "join", lambda _: calls.append("join"))

    def compile_cache():
        calls.append("device")
        raise ConfigError("far enough")

    monkeypatch.setattr("launch.environment.use_compile_cache", compile_cache)
    config = ["--config", "tiny_sft.yaml"] if verb == "sft" else []
    assert main([verb, *config, "--output_dir", str(tmp_path)]) == 2
    assert calls == ["join", "device"]


def test_what_needs_one_process_is_refused_with_several_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    settings = {"output_dir": str(tmp_path), "model_name_or_path": "tiny-tom"}
    from ditto_jax.config import EvalConfig, TaskConfig

    with pytest.raises(ConfigError, match="eval with 2 processes"):
        run_evaluation(RunConfig(**settings, evaluation=EvalConfig(tasks=(TaskConfig("hitom"),))), [])
    assert not list(tmp_path.iterdir())
    for verb in ALONE:
        with pytest.raises(ConfigError, match="one process"):
            require_one_process(verb)
        assert refusal(verb, 1) == ""
    assert refusal("doctor", 2) == ""


_TOGETHER = """
import sys
import time
from ditto_jax.canaries import devices_add_up
from launch.cli import guarded, leave_other_processes
from launch.distributed import CLUSTER_FLAGS, join

def together():
    join({name: default for name, _, default in CLUSTER_FLAGS})
    result = devices_add_up()
    print(result.ok, result.detail, flush=True)
    import jax
    if sys.argv[1] == "saved":
        time.sleep(2 * jax.process_index())
        raise SystemExit(75)
    if jax.process_index() == 1:
        raise SystemExit(3)
    devices_add_up()  # waits for the other one, in vain
    return 0

code = guarded(together)
leave_other_processes(code)
sys.exit(code)
"""


def two_processes(folder: Path, how: str) -> list[list[str]]:
    shared = (
        f"JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 JAX_COORDINATOR_ADDRESS=127.0.0.1:{free_port()} JAX_NUM_PROCESSES=2"
    )
    program = folder / "together.py"
    program.write_text(_TOGETHER)
    return [
        ["env", *shared.split(), f"JAX_PROCESS_ID={number}", sys.executable, str(program), how] for number in range(2)
    ]


def test_processes_that_saved_a_state_end_after_one_another(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    started = [subprocess.Popen(command) for command in two_processes(tmp_path, "saved")]
    assert [process.wait(timeout=120) for process in started] == [75, 75]


def test_two_processes_compute_together_and_end_together(capsys, tmp_path, monkeypatch):
    """All four devices take part in a sum; then one process fails while the other waits for it in the next."""
    from launch.supervisor import supervise

    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    code = supervise(two_processes(tmp_path, "failed"), grace_s=30.0)
    out = capsys.readouterr().out
    assert code == 3, out
    assert "[0] True 4 devices of 2 processes: 10, expected 10" in out
    assert "[1] True 4 devices of 2 processes: 10, expected 10" in out
    assert "process 1 ended with 3" in out and "stopping process 0" in out


def test_launch_starts_doctor_as_two_real_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--target", "local", "--local.devices_per_process", "2", "--verb", "doctor", "--skip_canaries", "--yes"]
    done = subprocess.run(
        [sys.executable, "-m", "ditto_jax", "launch", *words, "--folder", str(tmp_path / "files")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(2):
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"[{number}] ")]
        assert any("4 x cpu" in line for line in lines), done.stdout
        assert any(f"process {number} of 2; 2 of 4 devices are here" in line for line in lines), done.stdout
