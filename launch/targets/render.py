"""A job and a target → the files that start it, and what is run in their folder. Writes and runs nothing.

In: `LaunchConfig`, `Job`. Out: a `Rendering`: texts by file name, commands, and what a person should know. The
texts are the Jinja2 templates beside this file.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping

from ditto_jax.errors import ConfigError
from ditto_jax.processes import refusal
from launch.targets.config import LaunchConfig
from launch.targets.job import SETTINGS_FILE, Job
from launch.targets.templates import render_template

# With the hashes that PyPI lists for its wheels of Linux on x86-64 and on ARM.
UV = (
    "uv==0.13.9 \\\n"
    "  --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19 \\\n"
    "  --hash=sha256:5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe\n"
)
# Exit codes after which another start would end the same way: settings, missing input, gates, budgets.
FINAL_CODES = (2, 3, 4, 5)
_MOUNT = "/mnt/ditto-jax"
_VOLUME = "/runs"
_K8S_PORT = 8476


@dataclasses.dataclass(frozen=True)
class Rendering:
    """Files, and commands that run in their folder: `first` one after the other, then `together` under supervision."""

    files: Mapping[str, str]
    first: tuple[tuple[str, ...], ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


def render(config: LaunchConfig, job: Job, port: int = 0) -> Rendering:
    """Returns everything that starting the job takes. port: of the coordinator of a local run, where none is set.

    Raises ConfigError for settings of the target that cannot work.
    """
    made = {
        "local": _local,
        "ssh": _ssh,
        "slurm": _slurm,
        "gke-jobset": _gke,
        "tpu-queued-resource": _tpu,
    }[config.target](config, job, port)
    why = refusal(config.verb, config.processes)
    files = {SETTINGS_FILE: job.settings, **made.files}
    return dataclasses.replace(made, files=files, notes=(*((f"will be refused: {why}",) if why else ()), *made.notes))


def _env(config: LaunchConfig) -> list[tuple[str, str]]:
    return sorted(config.env.items())


def _install_files(config: LaunchConfig, job: Job, **values: object) -> dict[str, str]:
    """What hosts without a container need."""
    return {
        "requirements.txt": f"{job.requirement}\n",
        "constraints.txt": "".join(f"{line}\n" for line in job.packages),
        "uv.txt": UV,
        "setup.sh": render_template("setup.sh.j2", python=job.python_version),
    }


def _worker_files(config: LaunchConfig, job: Job, work_folder: str, nfs: str = "") -> dict[str, str]:
    worker = render_template("worker.sh.j2", words=job.words, env=_env(config), work_folder=work_folder, nfs=nfs)
    return {"worker.sh": worker, "stop.sh": render_template("stop.sh.j2")}


def _local(config: LaunchConfig, job: Job, port: int) -> Rendering:
    local = config.local
    files = {}
    for number in range(local.processes):
        own = range(number * local.devices_per_process, (number + 1) * local.devices_per_process)
        files[f"process_{number}.sh"] = render_template(
            "process.sh.j2",
            number=number,
            processes=local.processes,
            address=f"127.0.0.1:{local.port or port}",
            platform=local.platform,
            devices=local.devices_per_process,
            visible=",".join(map(str, own)),
            env=_env(config),
            work_folder=config.work_folder or job.here,
            python=job.python,
            words=job.words,
        )
    return Rendering(files, together=tuple(("bash", name) for name in files))


def _ssh(config: LaunchConfig, job: Job, port: int) -> Rendering:
    ssh = config.ssh
    folder = f"{ssh.folder}/{job.name}"
    address = f"{ssh.coordinator or ssh.hosts[0].rpartition('@')[2]}:{ssh.port}"
    files = _install_files(config, job) | _worker_files(config, job, config.work_folder)
    files["install.sh"] = render_template("ssh_install.sh.j2", hosts=ssh.hosts, **_on_host(folder))
    hosts = {}
    for number, host in enumerate(ssh.hosts):
        arguments = [address, len(ssh.hosts), number] if len(ssh.hosts) > 1 else []
        hosts[f"host_{number}.sh"] = render_template(
            "ssh_host.sh.j2",
            number=number,
            processes=len(ssh.hosts),
            host=host,
            start=shlex.join(["bash", f"{folder}/worker.sh", *map(str, arguments)]),
            stop=f"{folder}/stop.sh",
        )
    return Rendering(files | hosts, (("bash", "install.sh"),), tuple(("bash", name) for name in hosts))


def _on_host(folder: str) -> dict[str, str]:
    """Commands that a host is given, for a folder below its home."""
    return {
        "folder": folder,
        "make_folder": f"mkdir -p -- {shlex.quote(folder)} && rm -f -- {shlex.quote(folder)}/exit_code",
        "install": shlex.join(["bash", f"{folder}/setup.sh"]),
    }


def _slurm(config: LaunchConfig, job: Job, port: int) -> Rendering:
    batch = render_template(
        "slurm_job.sbatch.j2",
        name=job.name,
        slurm=dataclasses.asdict(config.slurm),
        words=job.words,
        env=_env(config),
        work_folder=config.work_folder,
    )
    files = _install_files(config, job) | {"job.sbatch": batch, "run.sh": render_template("slurm_run.sh.j2")}
    return Rendering(files, (("bash", "run.sh"),))


def _gke(config: LaunchConfig, job: Job, port: int) -> Rendering:
    gke, hosts = config.gke, config.gke.hosts_per_slice
    work_folder = config.work_folder or _VOLUME
    if not work_folder.startswith("/"):
        raise ConfigError(f"work_folder={work_folder!r}: a path in the container starts with /, for example {_VOLUME}")
    manifest = render_template(
        "jobset.yaml.j2",
        name=job.name,
        settings=job.settings,
        gke=gke,
        hosts=hosts,
        slices=gke.slices if gke.is_tpu else 1,
        final_codes=FINAL_CODES,
        arguments=[*map(_literal, job.words), "--config", f"/etc/ditto-jax/{SETTINGS_FILE}"],
        coordinator=f"{job.name}-worker-0-0.{job.name}:{_K8S_PORT}",
        resource="google.com/tpu" if gke.is_tpu else "nvidia.com/gpu",
        work_folder=work_folder,
        env=[(name, _literal(value)) for name, value in _env(config)],
    )
    run = render_template("gke_run.sh.j2", name=job.name, namespace=gke.namespace)
    return Rendering({"jobset.yaml": manifest, "run.sh": run}, (("bash", "run.sh"),))


def _literal(text: str) -> str:
    """The text as Kubernetes takes it for itself: $(NAME) in a value or an argument would be replaced."""
    return text.replace("$", "$$")


def _tpu(config: LaunchConfig, job: Job, port: int) -> Rendering:
    tpu = config.tpu
    work_folder = config.work_folder or (_MOUNT if tpu.nfs else "")
    folder = f"ditto-jobs/{job.name}"
    scope = [f"--zone={tpu.zone}", *([f"--project={tpu.project}"] if tpu.project else [])]
    several = tpu.slices > 1
    nodes = [f"{job.name}-{number}" for number in range(tpu.slices)] if several else [job.name]
    create = [f"--accelerator-type={tpu.accelerator_type}", f"--runtime-version={tpu.runtime}"]
    create += [f"--node-count={tpu.slices}", f"--node-prefix={job.name}"] if several else [f"--node-id={job.name}"]
    create += [flag for flag, wanted in (("--spot", tpu.spot), ("--reserved", tpu.reserved)) if wanted]
    for option in ("network", "subnetwork", "service_account"):
        if getattr(tpu, option):
            create.append(f"--{option.replace('_', '-')}={getattr(tpu, option)}")
    common = {"name": job.name, "scope": scope}
    run = render_template(
        "tpu_run.sh.j2",
        **common,
        **_on_host(folder),
        nodes=nodes,
        restarts=tpu.restarts,
        create=create,
        start=shlex.join(["bash", f"{folder}/worker.sh"]),
        read_code=shlex.join(["cat", f"{folder}/exit_code"]),
    )
    files = _install_files(config, job) | _worker_files(config, job, work_folder, tpu.nfs)
    files |= {"run.sh": run, "delete.sh": render_template("tpu_delete.sh.j2", **common)}
    notes = ["costs money from the moment the TPU is there until delete.sh has run"]
    if not tpu.nfs:
        notes.append("without tpu.nfs what the run writes is lost when the TPU is taken away or deleted")
    return Rendering(files, (("bash", "run.sh"),), notes=tuple(notes))
