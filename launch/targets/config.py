"""Where a run is started and with what: one dataclass a target. The run's own settings are those of its verb.

In: flags of `ditto-jax launch`, or a file with them. Values that end up in scripts are refused here unless they are
plain names; everything else is quoted where it is inserted (`templates.py`).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from ditto_jax.errors import ConfigError

Target = Literal["local", "ssh", "slurm", "gke-jobset", "tpu-queued-resource"]
Verb = Literal["train", "eval", "sft", "doctor"]

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_DNS_LABEL = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
_LIST = r"[A-Za-z0-9][A-Za-z0-9_.,:&|*-]*"
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW", re.IGNORECASE)
_SECRET_IS_A_NAME = re.compile(r"_(ENV|FILE|PATH|COMMAND)$", re.IGNORECASE)


def _require(section: str, name: str, value: str, pattern: str, example: str) -> None:
    if value and not re.fullmatch(pattern, value):
        raise ConfigError(f"{section}{name}={value!r}: give a plain name, for example {example}")


def _at_least(section: str, name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{section}{name}={value}: must be at least {least}")


@dataclasses.dataclass(frozen=True)
class InstallConfig:
    """What hosts without a container install, with a Python of their own.

    requirement: for example "ditto-jax[cuda13]==0.1.0"; "" is this version with the extra of the target. wheel: a file
    that is copied to the hosts and installed instead. extra: of either. python: "" is the version of this machine.
    """

    requirement: str = ""
    wheel: str = ""
    extra: Literal["auto", "none", "tpu", "cuda12", "cuda13"] = "auto"
    python: str = ""

    def __post_init__(self):
        if self.requirement and self.wheel:
            raise ConfigError("install.requirement and install.wheel: both say what to install; give one")
        if self.wheel and not self.wheel.endswith(".whl"):
            raise ConfigError(
                f"install.wheel={self.wheel!r}: name a wheel, for example dist/ditto_jax-0.1.0-py3-none-any.whl"
            )
        if "\n" in self.requirement:
            raise ConfigError("install.requirement: give one requirement, for example ditto-jax[cuda13]==0.1.0")
        _require("install.", "python", self.python, r"3\.1[1-3](\.\d+)?", "3.12")


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    """Processes on this machine.

    platform: cpu simulates devices, cuda gives each process GPUs of its own. port: of process 0; 0 takes a free one.
    grace_s: how long the others may take to save once one has ended.
    """

    processes: int = 2
    platform: Literal["cpu", "cuda"] = "cpu"
    devices_per_process: int = 1
    port: int = 0
    grace_s: float = 60.0

    def __post_init__(self):
        _at_least("local.", "processes", self.processes, 1)
        _at_least("local.", "devices_per_process", self.devices_per_process, 1)
        if not 0 <= self.port < 65536:
            raise ConfigError(f"local.port={self.port}: give 0 for a free one, or one below 65536")


@dataclasses.dataclass(frozen=True)
class SshConfig:
    """Hosts that ssh reaches without asking; the first one coordinates. folder: of jobs, below the home of each."""

    hosts: tuple[str, ...] = ()
    coordinator: str = ""  # address of the first host as the others see it; "": its name in `hosts`
    port: int = 8476
    folder: str = "ditto-jobs"

    def __post_init__(self):
        for host in self.hosts:
            _require("ssh.", "hosts", host, r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*", "ann@10.0.0.2")
        _require("ssh.", "coordinator", self.coordinator, r"[A-Za-z0-9][A-Za-z0-9.-]*", "10.0.0.2")
        _require("ssh.", "folder", self.folder, r"[A-Za-z0-9_][A-Za-z0-9_./-]*", "ditto-jobs")
        if not 0 < self.port < 65536:
            raise ConfigError(f"ssh.port={self.port}: give a port that is free on the first host, for example 8476")


@dataclasses.dataclass(frozen=True)
class SlurmConfig:
    """A batch job. One task a node takes all its GPUs; signal_s: seconds before the time limit at which it saves."""

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 8
    cpus_per_task: int = 0
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    mem: str = ""
    time: str = "24:00:00"
    signal_s: int = 300

    def __post_init__(self):
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("gpus_per_node", 0), ("cpus_per_task", 0)):
            _at_least("slurm.", name, getattr(self, name), least)
        for name in ("partition", "account", "qos", "constraint", "mem"):
            _require("slurm.", name, getattr(self, name), _LIST, "gpu")
        _require("slurm.", "time", self.time, r"[0-9:-]+", "24:00:00")
        if not 1 <= self.signal_s <= 65535:
            raise ConfigError(f"slurm.signal_s={self.signal_s}: Slurm takes 1 to 65535 seconds; set 300")


@dataclasses.dataclass(frozen=True)
class GkeConfig:
    """A JobSet on GKE. accelerator: the node label, tpu-… with a topology, or nvidia-… with hosts.

    slices: of that topology each (TPU). devices_per_host: TPU chips or GPUs of a node. volume_claim: a
    PersistentVolumeClaim, mounted at work_folder, that outlives the pods. secret: whose entries become environment
    variables, for keys of judges. queue: of Kueue.
    """

    image: str = ""
    accelerator: str = "tpu-v5p-slice"
    topology: str = "2x2x1"
    slices: int = 1
    hosts: int = 1
    devices_per_host: int = 4
    volume_claim: str = ""
    secret: str = ""
    service_account: str = ""
    namespace: str = "default"
    queue: str = ""
    spot: bool = False
    max_restarts: int = 10
    grace_s: int = 300

    def __post_init__(self):
        _require(
            "gke.", "image", self.image, r"[a-z0-9][A-Za-z0-9_.:/@-]*", "europe-docker.pkg.dev/my-project/ditto/tpu:1"
        )
        _require(
            "gke.", "accelerator", self.accelerator, r"(tpu|nvidia)[a-z0-9-]*", "tpu-v5p-slice or nvidia-h100-80gb"
        )
        _require("gke.", "topology", self.topology, r"\d+x\d+(x\d+)?", "2x2x4")
        for name in ("volume_claim", "secret", "service_account", "namespace", "queue"):
            _require("gke.", name, getattr(self, name), r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", "ditto-runs")
        for name in ("slices", "hosts", "devices_per_host"):
            _at_least("gke.", name, getattr(self, name), 1)
        for name in ("max_restarts", "grace_s"):
            _at_least("gke.", name, getattr(self, name), 0)

    @property
    def is_tpu(self) -> bool:
        return self.accelerator.startswith("tpu")

    @property
    def hosts_per_slice(self) -> int:
        """Returns the pods of a slice (TPU), or all (GPU). Raises ConfigError for a topology of no whole host."""
        if not self.is_tpu:
            return self.hosts
        chips = 1
        for side in self.topology.split("x"):
            chips *= int(side)
        if chips % self.devices_per_host:
            raise ConfigError(
                f"gke.topology={self.topology}: {chips} chips are no multiple of gke.devices_per_host="
                f"{self.devices_per_host}; set it to the chips of a node of that pool"
            )
        return chips // self.devices_per_host


@dataclasses.dataclass(frozen=True)
class TpuConfig:
    """TPU VMs as a queued resource. accelerator_type: such as v5p-8 or v6e-16, once for each of `slices`.

    runtime_version: "" is that of the type. nfs: SERVER:/SHARE, mounted at work_folder; without it what a run wrote is
    lost with the VM. restarts: how often it is asked for again after a preemption.
    """

    project: str = ""
    zone: str = ""
    accelerator_type: str = "v5p-8"
    runtime_version: str = ""
    slices: int = 1
    spot: bool = False
    reserved: bool = False
    network: str = ""
    subnetwork: str = ""
    service_account: str = ""
    nfs: str = ""
    restarts: int = 10

    def __post_init__(self):
        for name in ("zone", "runtime_version", "network", "subnetwork"):
            _require("tpu.", name, getattr(self, name), _NAME, "us-east5-a")
        _require("tpu.", "project", self.project, r"[a-z0-9][a-z0-9.:-]*", "my-project")
        _require(
            "tpu.",
            "service_account",
            self.service_account,
            r"[A-Za-z0-9][A-Za-z0-9@.-]*",
            "ditto@my-project.iam.gserviceaccount.com",
        )
        _require("tpu.", "nfs", self.nfs, r"[A-Za-z0-9][A-Za-z0-9.-]*:/[A-Za-z0-9_./-]+", "10.0.0.2:/runs")
        _at_least("tpu.", "slices", self.slices, 1)
        _at_least("tpu.", "restarts", self.restarts, 0)
        if self.spot and self.reserved:
            raise ConfigError("tpu.spot and tpu.reserved: a queued resource is one or the other; drop one")
        if re.match(r"tpu7|v7", self.accelerator_type):
            raise ConfigError(
                f"tpu.accelerator_type={self.accelerator_type}: there are no queued resources of this generation; use "
                "--target gke-jobset"
            )
        if not re.fullmatch(r"(v[2-4]|v5p|v5litepod|v6e)-\d+", self.accelerator_type):
            raise ConfigError(
                f"tpu.accelerator_type={self.accelerator_type!r}: give one such as v5p-8, v5litepod-16 or v6e-8"
            )

    @property
    def runtime(self) -> str:
        """The VM image: as set, or the one that is documented for the generation."""
        generation = self.accelerator_type.partition("-")[0]
        known = {"v5p": "v2-alpha-tpuv5", "v5litepod": "v2-alpha-tpuv5-lite", "v6e": "v2-alpha-tpuv6e"}
        return self.runtime_version or known.get(generation, "tpu-ubuntu2204-base")

    @property
    def hosts_per_slice(self) -> int:
        """VMs of a slice. Names of v2 to v5p count cores, 8 a host; those of v5e and v6e chips, 4 a host beyond 8."""
        generation, _, count = self.accelerator_type.partition("-")
        if generation in ("v5litepod", "v6e"):
            return 1 if int(count) <= 8 else -(-int(count) // 4)
        return -(-int(count) // 8)


@dataclasses.dataclass(frozen=True)
class LaunchConfig:
    """Where and how; all other flags are those of the verb that is launched, and are checked before anything starts."""

    target: Target = "local"
    verb: Verb = "train"
    name: str = ""  # of the job; "": the run's
    folder: str = ""  # where the files are written; "": launched/NAME
    work_folder: str = ""  # where the command runs, and relative paths start; "": beside the files (local: here)
    env: dict[str, str] = dataclasses.field(default_factory=dict)  # variables; written into scripts, so nothing secret
    install: InstallConfig = dataclasses.field(default_factory=InstallConfig)
    local: LocalConfig = dataclasses.field(default_factory=LocalConfig)
    ssh: SshConfig = dataclasses.field(default_factory=SshConfig)
    slurm: SlurmConfig = dataclasses.field(default_factory=SlurmConfig)
    gke: GkeConfig = dataclasses.field(default_factory=GkeConfig)
    tpu: TpuConfig = dataclasses.field(default_factory=TpuConfig)

    def __post_init__(self):
        _require("", "name", self.name, _DNS_LABEL, "soul-8b (lower case, at most 40 characters)")
        for name in self.env:
            _require("", "env", name, r"[A-Za-z_][A-Za-z0-9_]*", "SOUL_DATA_DIR")
            if _SECRET.search(name) and not _SECRET_IS_A_NAME.search(name):
                raise ConfigError(
                    f"env.{name}: values are written into scripts, and this looks secret. Let the settings name a "
                    "source on the hosts instead: judge.api_key_file, judge.api_key_command, or gke.secret"
                )
        needed = {
            "ssh": [("ssh.hosts", self.ssh.hosts, "--ssh.hosts ann@10.0.0.2 ann@10.0.0.3")],
            "gke-jobset": [("gke.image", self.gke.image, "europe-docker.pkg.dev/my-project/ditto/tpu:1")],
            "tpu-queued-resource": [("tpu.zone", self.tpu.zone, "--tpu.zone us-east5-a")],
        }
        for setting, value, example in needed.get(self.target, []):
            if not value:
                raise ConfigError(f"{setting}: needed for target={self.target}, for example {example}")
        if self.target == "gke-jobset" and self.verb == "train" and not self.gke.volume_claim:
            raise ConfigError(
                "gke.volume_claim: name a PersistentVolumeClaim for the run, for example ditto-runs; on the disk of a "
                "pod nothing would be left after a restart"
            )

    @property
    def processes(self) -> int:
        """How many processes will compute together."""
        return {
            "local": self.local.processes,
            "ssh": len(self.ssh.hosts),
            "slurm": self.slurm.nodes * self.slurm.tasks_per_node,
            "gke-jobset": self.gke.hosts_per_slice * (self.gke.slices if self.gke.is_tpu else 1),
            "tpu-queued-resource": self.tpu.hosts_per_slice * self.tpu.slices,
        }[self.target]
