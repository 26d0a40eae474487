"""Joins the processes of one run, before jax touches a device: who takes part is told by flags, Slurm or a TPU.

In: the words of a verb that computes, and the environment. Out: `jax.distributed` is initialised, or nothing where this
process is alone. Devices of all hosts are one list afterwards. What several processes can do together is
`ditto_jax/processes.py`; starting them is `launch/targets`.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tyro

from ditto_jax.errors import ClusterError, ConfigError

Detection = Literal["auto", "none", "tpu", "slurm"]

CLUSTER_FLAGS = (
    (
        "cluster",
        Annotated[
            Detection,
            tyro.conf.arg(help="how to find the other processes of the run; none: compute with this host alone"),
        ],
        "auto",
    ),
    (
        "coordinator_address",
        Annotated[str, tyro.conf.arg(metavar="HOST:PORT", help="of process 0; else $JAX_COORDINATOR_ADDRESS")],
        "",
    ),
    (
        "num_processes",
        Annotated[int, tyro.conf.arg(metavar="N", help="processes of the run; else $JAX_NUM_PROCESSES")],
        0,
    ),
    (
        "process_id",
        Annotated[int, tyro.conf.arg(metavar="I", help="number of this one, from 0; else $JAX_PROCESS_ID")],
        -1,
    ),
)

_TPU_CHIPS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# The last 4096 ports; a job always takes the same one, and jobs that share a node different ones.
_FIRST_PORT, _PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run. Without an address, jax finds all of them itself, from the metadata of a TPU.

    devices: which of the devices that it sees belong to this process; () for all.
    """

    found_by: str
    address: str = ""
    processes: int = 0
    number: int = -1
    devices: tuple[int, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """Returns what `jax.distributed.initialize` is called with."""
        if not self.address:
            return {}
        host = self.address.rpartition(":")[0]
        return {
            "coordinator_address": self.address,
            "num_processes": self.processes,
            "process_id": self.number,
            "local_device_ids": self.devices or None,
            "cluster_detection_method": "deactivate",
            # The service asks nobody who they are: without other hosts, it is not offered to them.
            "coordinator_bind_address": self.address if host in _LOOPBACK else None,
        }

    def __str__(self) -> str:
        where = f", coordinator {self.address}" if self.address else ""
        who = f"process {self.number} of {self.processes}" if self.address else "one process on each host"
        return f"{who}{where} (found by {self.found_by})"


def join(options: Mapping[str, Any]) -> Cluster | None:
    """Joins the other processes of the run and returns them; None where there are none. options: of CLUSTER_FLAGS.

    Raises ConfigError for settings that name no run, ClusterError if the others are not there.
    """
    cluster = find_cluster(
        os.environ,
        options["cluster"],
        options["coordinator_address"],
        options["num_processes"],
        options["process_id"],
    )
    if cluster is None:
        return None
    import jax

    print(f"ditto-jax: joining as {cluster}", file=sys.stderr, flush=True)
    # Its handler would swallow SIGTERM wherever training has not set its own.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**cluster.arguments())
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterError(
            f"cannot join as {cluster}: {reason}. Start the same command on every host, and see that they reach the "
            "coordinator; to compute with this host alone, add --cluster none"
        ) from error
    return cluster


def find_cluster(
    environment: Mapping[str, str],
    cluster: Detection = "auto",
    coordinator_address: str = "",
    num_processes: int = 0,
    process_id: int = -1,
) -> Cluster | None:
    """Returns the processes of the run that this one belongs to; None if it is alone. Touches no device.

    Flags win, then the JAX_ variables of the same names, then the TPU, then Slurm.
    """
    if cluster == "none":
        if coordinator_address or num_processes > 1:
            raise ConfigError("cluster=none with other processes named by flags: drop one of the two")
        return None
    given = _given(environment, coordinator_address, num_processes, process_id)
    if given is not None:
        return given if given.processes > 1 else None
    if cluster in ("auto", "tpu") and (found := _tpu(environment, wanted=cluster == "tpu")):
        return found
    if cluster in ("auto", "slurm"):
        found = _slurm(environment)
        if found is None and cluster == "slurm":
            raise ConfigError("cluster=slurm: this is no task of a job step; start it with srun")
        return found if found is not None and found.processes > 1 else None
    return None


def _given(environment: Mapping[str, str], address: str, processes: int, number: int) -> Cluster | None:
    """The run that flags or JAX_ variables name; None where they name none."""
    address = address or environment.get("JAX_COORDINATOR_ADDRESS", "")
    processes = processes or _number(environment, "JAX_NUM_PROCESSES", 0)
    number = number if number >= 0 else _number(environment, "JAX_PROCESS_ID", -1)
    if processes == 1 and number in (-1, 0):
        return Cluster("flags or JAX_ variables", address, 1, 0)
    values = {"coordinator_address": address, "num_processes": processes, "process_id": number}
    missing = [
        name
        for name, absent in (("coordinator_address", ""), ("num_processes", 0), ("process_id", -1))
        if values[name] == absent
    ]
    if len(missing) == len(values):
        return None
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)}: not given, but {' and '.join(n for n in values if n not in missing)}: give all "
            "three, for example --coordinator_address 10.0.0.1:8476 --num_processes 2 --process_id 0"
        )
    if not re.fullmatch(r"\S+:\d{1,5}", address):
        raise ConfigError(f"coordinator_address={address!r}: give host and port, for example 10.0.0.1:8476")
    if not 0 <= number < processes:
        raise ConfigError(f"process_id={number}: of {processes} processes they go from 0 to {processes - 1}")
    return Cluster("flags or JAX_ variables", address, processes, number)


def _number(environment: Mapping[str, str], name: str, absent: int) -> int:
    text = environment.get(name, "")
    if text and not text.isdigit():
        raise ConfigError(f"environment variable {name}={text!r}: must be a number, for example 2")
    return int(text) if text else absent


def _tpu(environment: Mapping[str, str], wanted: bool) -> Cluster | None:
    """All hosts of the TPU; None on one host. GKE names them in the environment, a TPU VM in its metadata."""
    if environment.get("JAX_PLATFORMS", "").startswith("cpu") and not wanted:
        return None
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    if names:
        several = len(names.split(",")) * _number(environment, "MEGASCALE_NUM_SLICES", 1) > 1
        return Cluster("the TPU's environment") if several else None
    has_chips = any(glob.glob(pattern) for pattern in _TPU_CHIPS) and importlib.util.find_spec("libtpu") is not None
    if wanted or (has_chips and "TPU_SKIP_MDS_QUERY" not in environment):
        return Cluster("the TPU's metadata")
    return None


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    """The tasks of this job step; None outside of one, as in a batch script or a login shell."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if any(name not in environment for name in needed):
        return None
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 1)
    port = _number(environment, "JAX_COORDINATOR_PORT", 0)
    port = port or _FIRST_PORT + _number(environment, "SLURM_JOB_ID", 0) % _PORTS
    address = f"{first_node(environment['SLURM_STEP_NODELIST'])}:{port}"
    return Cluster("Slurm", address, tasks, _number(environment, "SLURM_PROCID", 0), _own_devices(environment))


def first_node(nodes: str) -> str:
    """Returns the first host of a Slurm list: node[003-005,9],other → node003."""
    name = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    if name is None:
        raise ConfigError(f"SLURM_STEP_NODELIST={nodes!r}: names no host; give --coordinator_address HOST:PORT")
    return "".join(part or "" for part in name.groups())


def _own_devices(environment: Mapping[str, str]) -> tuple[int, ...]:
    """One GPU for each of several tasks on a node that all see the same ones; else all that the task sees."""
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if tasks and int(tasks.group()) > 1 and len(visible) > 1:
        return (_number(environment, "SLURM_LOCALID", 0),)
    return ()
