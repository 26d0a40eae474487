"""The run directory: who owns it, what stands in it, and how a resumed run cuts back to its last checkpoint.

Metrics and rollouts are appended as steps finish; on resume, everything after the restored step is cut, so that the
files of a killed and resumed run equal those of a straight one. Small files are written to a temporary name and
renamed. Checkpoints are `checkpoint.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import platform
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from ditto_jax.config_io import flatten, read_yaml, to_yaml
from ditto_jax.errors import ConfigError, RunDirectoryError
from ditto_jax.runs import run_owner
from ditto_jax.strict import build

# Settings that may differ between a run and its resumption: they change how it is run, not what is learned.
_ENDPOINTS = ("judge", "judge.members", "shadow", "partner", "endpoints")
_OF_ENDPOINTS = (
    *("base_url", "api_key_env", "api_key_command", "api_key_file", "max_concurrent", "max_rpm", "max_tpm"),
    *("timeout_s", "max_retries", "unparsable_retries", "hedge_percentile", "outage_after", "max_outage_s"),
    *("input_price", "output_price", "max_cost", "cache", "cache_path"),
)
_MAY_DIFFER = (
    *(
        "resume",
        "overwrite",
        "output_dir",
        "run_name",
        "profile_steps",
        "save_total_limit",
        "log_completions",
        "report_to",
    ),
    *(f"{part}.{name}" for part in _ENDPOINTS for name in _OF_ENDPOINTS),
    "judge.max_error_rate",
)

_STATUS = "STATUS.json"


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path` so that a reader sees the old file or the new one, never half of either."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another output_dir"
        ) from error


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Paths and files of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval"

    @property
    def report(self) -> Path:
        return self.path / "report" / "index.html"

    def rollout_file(self, step: int) -> Path:
        return self.rollouts / f"step_{step:06d}.jsonl.gz"

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        with _told(self.metrics), open(self.metrics, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, sort_keys=True) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl; a torn last line (the run was killed while writing it) is left out."""
        return _read_lines(self.metrics)

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the rollouts of one step; the file's bytes depend on its content alone."""
        path = self.rollout_file(step)
        # ASCII escapes: a model may write half a surrogate pair, which UTF-8 cannot hold.
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        temporary = path.with_name(f".{path.name}.tmp")
        with _told(path):
            temporary.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
            os.replace(temporary, path)

    def read_rollouts(self, step: int) -> list[dict[str, Any]]:
        """Returns the rollouts of one step, or an empty list if none were written."""
        path = self.rollout_file(step)
        if not path.exists():
            return []
        return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()]

    def rollout_steps(self) -> list[int]:
        return sorted(int(p.name[5:11]) for p in self.rollouts.glob("step_*.jsonl.gz"))

    def set_status(self, state: str, step: int, exit_code: int | None = None, detail: str = "") -> None:
        """Writes STATUS.json: state is running, finished, preempted or failed."""
        status = {
            "state": state,
            "step": step,
            "exit_code": exit_code,
            "detail": detail,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "updated_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_atomically(self.path / _STATUS, json.dumps(status, indent=1) + "\n")

    def read_status(self) -> dict[str, Any]:
        """Returns what `set_status` wrote last; nothing if it never did."""
        path = self.path / _STATUS
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def cut_after(self, step: int) -> None:
        """Removes metrics, rollouts and evaluations of steps after `step`: they will be written again, equal."""
        kept = [row for row in self.read_metrics() if row["step"] <= step]
        write_atomically(self.metrics, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept))
        for later in self.rollout_steps():
            if later > step:
                self.rollout_file(later).unlink()
        for file in self.evaluations.glob("*/*_*.json*"):
            if int(file.stem.rpartition("_")[2]) > step:
                file.unlink()


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class _told:
    """Turns an OSError while writing into one message with the path and what to do."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError) and not isinstance(error, RunDirectoryError):
            raise RunDirectoryError(
                f"cannot write {self._path}: {error.strerror or error}; free space, then repeat the command to continue"
            ) from error
        return False


def check_run(path: Path, config: Any, *, resume: str, overwrite: bool) -> bool:
    """Returns whether `path` holds an earlier run to continue. Changes nothing.

    Raises RunDirectoryError if it belongs to a run of another config (naming what differs), if resume is "never" and
    it is not empty, if resume is "must" and it is, or if it is no run directory.
    """
    if path.exists() and not path.is_dir():
        raise RunDirectoryError(f"{path} is a file, not a run directory; choose another --run_name or --output_dir")
    saved = path / "config.yaml"
    if not saved.exists():
        if path.exists() and any(p.name not in (".config.yaml.tmp", run_owner.FILE_NAME) for p in path.iterdir()):
            advice = "--overwrite will not delete it" if overwrite else "choose another --run_name or --output_dir"
            raise RunDirectoryError(f"{path} exists and is not a run directory (no config.yaml): {advice}")
        if resume == "must":
            raise RunDirectoryError(f"{path}: resume=must, but there is no run to continue; use resume=auto")
        return False
    if overwrite:
        return False
    if resume == "never":
        raise RunDirectoryError(
            f"{path} holds a run and resume=never; add --overwrite to replace it or change --run_name"
        )
    _same_config(saved, config)
    return True


def open_run(
    path: Path, config: Any, command: list[str], *, resume: str, overwrite: bool, uses_devices: bool = True
) -> tuple[RunDirectory, bool]:
    """Returns (run directory, whether it holds an earlier run to continue). Raises as `check_run` does.

    With `overwrite` an earlier run is deleted here. uses_devices: whether jax computes in this run; else no device is
    looked for.
    """
    run, saved = RunDirectory(path), path / "config.yaml"
    holds_run = check_run(path, config, resume=resume, overwrite=overwrite)
    with _told(path):
        if saved.exists() and not holds_run:
            _empty(path)
        path.mkdir(parents=True, exist_ok=True)
        if not holds_run:  # first of all: from here on this is a run directory, whatever interrupts what follows
            write_atomically(saved, to_yaml(config))
        for folder in (run.checkpoints, run.rollouts, run.evaluations):
            folder.mkdir(exist_ok=True)
    for name, text in (
        ("cli.txt", " ".join(command) + "\n"),
        ("env.json", json.dumps(environment(uses_devices), indent=1) + "\n"),
    ):
        if not (path / name).exists():
            write_atomically(path / name, text)
    return run, holds_run


def _empty(path: Path) -> None:
    """Deletes what is in a run directory, but for the lock that whoever deletes it holds."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == "config.yaml"):  # which says what this is
        if entry.name == run_owner.FILE_NAME:
            continue
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _same_config(saved: Path, config: Any) -> None:
    old, new = flat_settings(_as_read_now(saved, type(config))), flat_settings(yaml.safe_load(to_yaml(config)))
    differing = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not _may_differ(key)
    ]
    if differing:
        shown = "; ".join(differing[:6]) + (f"; and {len(differing) - 6} more" if len(differing) > 6 else "")
        raise RunDirectoryError(
            f"{saved.parent} belongs to a run with other settings ({shown}). Change --run_name or add --overwrite"
        )


def _as_read_now(saved: Path, kind: type) -> Mapping[str, Any]:
    """The saved settings; those that a later version brought have its defaults, which keep what was done before."""
    values = read_yaml(saved)
    try:
        return yaml.safe_load(to_yaml(build(kind, values)))
    except ConfigError:  # of a version with other settings, or of another kind of run
        return values


def _may_differ(key: str) -> bool:
    plain = re.sub(r"\.\d+\.", ".", key)  # `endpoints.0.timeout_s` like `endpoints.timeout_s`
    return plain.split(".")[0] in _MAY_DIFFER or plain in _MAY_DIFFER


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns dotted keys → values, with the entries of lists of records (tasks) as keys of their own."""
    flat: dict[str, Any] = {}
    for key, value in flatten(values).items():
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            for number, entry in enumerate(value):
                flat.update({f"{key}.{number}.{inner}": found for inner, found in flat_settings(entry).items()})
        else:
            flat[key] = value
    return flat


def environment(uses_devices: bool = True) -> dict[str, Any]:
    """Returns versions and machine facts that a reported number depends on; no secrets and no user names.

    uses_devices: whether to name jax's devices, for which jax has to start them.
    """
    packages = (
        "ditto-jax",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
        "numpy",
        "sentencepiece",
    )
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    import jax

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()] if uses_devices else [],
        "flags": {
            name: os.environ[name] for name in ("XLA_FLAGS", "JAX_PLATFORMS", "LIBTPU_INIT_ARGS") if name in os.environ
        },
    }
