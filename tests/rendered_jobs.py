"""Jobs and settings of targets of which `golden/` holds the files; `python -m tests.rendered_jobs` writes them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

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
from launch.targets.render import Rendering, render

GOLDEN = Path(__file__).parent / "launch" / "golden"

# Words that would be more than words if one of them were not quoted.
HOSTILE = 'it\'s "$(touch pwned)" `id`; rm -rf / & #\n{{ x }} %s'

CASES = {
    "local": LaunchConfig(verb="doctor", local=LocalConfig(devices_per_process=2, port=8476)),
    "local_cuda": LaunchConfig(local=LocalConfig(platform="cuda", devices_per_process=4, port=8476)),
    "ssh": LaunchConfig(
        target="ssh", ssh=SshConfig(hosts=("ann@10.0.0.2", "ann@10.0.0.3")), env={"SOUL_DATA_DIR": HOSTILE}
    ),
    "slurm": LaunchConfig(
        target="slurm",
        slurm=SlurmConfig(nodes=2, partition="gpu", account="lab", constraint="a100|h100", mem="0", cpus_per_task=16),
        env={"SOUL_DATA_DIR": HOSTILE},
        work_folder="/scratch/with space",
    ),
    "gke_tpu": LaunchConfig(
        target="gke-jobset",
        gke=GkeConfig(
            image="europe-docker.pkg.dev/my-project/ditto/tpu:1",
            topology="2x2x4",
            slices=2,
            volume_claim="ditto-runs",
            secret="judge-key",
            queue="team",
            spot=True,
        ),
        env={"SOUL_DATA_DIR": HOSTILE},
    ),
    "gke_gpu": LaunchConfig(
        target="gke-jobset",
        gke=GkeConfig(
            image="europe-docker.pkg.dev/my-project/ditto/cuda:1",
            accelerator="nvidia-h100-80gb",
            hosts=2,
            devices_per_host=8,
            volume_claim="ditto-runs",
            service_account="trainer",
        ),
    ),
    "tpu": LaunchConfig(
        target="tpu-queued-resource",
        install=InstallConfig(wheel="dist/ditto_jax-0.1.0-py3-none-any.whl"),
        tpu=TpuConfig(zone="us-east5-a", project="my-project", spot=True, nfs="10.0.0.2:/runs"),
        env={"SOUL_DATA_DIR": HOSTILE},
    ),
    "tpu_slices": LaunchConfig(
        target="tpu-queued-resource",
        tpu=TpuConfig(zone="us-east5-b", accelerator_type="v6e-16", slices=2, reserved=True, network="tpu-net"),
    ),
}


def rendering(name: str, **changes: Any) -> Rendering:
    """The files of a case, for a job whose settings are a short text; versions are fixed. changes: of the launcher's
    settings.
    """
    config = dataclasses.replace(CASES[name], **changes)
    flags = ["--skip_canaries"] if config.verb == "doctor" else []
    job = Job(
        name="soul-8b",
        words=(config.verb, *flags),
        settings=f"run_name: soul_8b\noutput_dir: {HOSTILE!r}\n",
        python="/opt/ditto/bin/python",
        here="/home/ann",
        python_version="3.12",
        requirement=requirement(config).partition("==")[0],
        packages=("flax==0.12.12", "jax==0.12.0"),
    )
    return render(config, job)


def write_golden() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for name in CASES:
        folder = GOLDEN / name
        folder.mkdir(parents=True)
        for file, text in rendering(name).files.items():
            (folder / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_golden()
