"""Runs of several processes on this machine: real ones, which meet over loopback, with simulated devices each."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ditto_jax.config import RunConfig
from ditto_jax.config_io import to_yaml
from ditto_jax.runs.run_dir import RunDirectory
from launch.launch import free_port

_ROOT = Path(__file__).resolve().parent.parent
_DEADLINE_S = 300.0


@contextlib.contextmanager
def started(
    config: RunConfig, folder: Path, count: int, devices: int, own: Sequence[Mapping[str, str]] = ()
) -> Iterator[list[subprocess.Popen[str]]]:
    """Yields `count` processes that train together; whatever is left of them is killed in the end.

    own: environment variables of single processes.
    """
    file = folder / "several.yaml"
    file.write_text(to_yaml(config))
    command = [sys.executable, "-m", "ditto_jax", "train", "--config", str(file)]
    command += ["--coordinator_address", f"127.0.0.1:{free_port()}", "--num_processes", str(count)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "JAX_NUM_CPU_DEVICES": str(devices)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [
        subprocess.Popen(
            [*command, "--process_id", str(number)],
            env={**environment, **(own[number] if own else {})},
            **pipes,  # type: ignore[call-overload]
        )
        for number in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Returns exit code and output of every process."""
    outputs = [process.communicate(timeout=_DEADLINE_S)[0] for process in processes]
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def train_together(
    config: RunConfig, folder: Path, count: int, devices: int, own: Sequence[Mapping[str, str]] = ()
) -> RunDirectory:
    """Returns the run of `count` processes with `devices` devices each, all of which must end well."""
    with started(config, folder, count, devices, own) as processes:
        for code, output in ended(processes):
            assert code == 0, output
    return RunDirectory(Path(config.output_dir) / config.run_name)
