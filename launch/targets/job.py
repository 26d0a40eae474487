"""What is launched: the command with its settings in one file, and the versions that hosts install for it.

In: the verb's words, parsed and checked as the verb itself would. Out: a `Job`. Where it goes is `render.py`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from ditto_jax.config_io import to_yaml
from ditto_jax.errors import ConfigError
from launch.flags import parse
from launch.targets.config import LaunchConfig
from launch.task_flags import EVAL_FLAGS, TASK_FLAGS, spelled_out

SETTINGS_FILE = "run.yaml"


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that is started on every host.

    words: the verb and those of its flags that are no settings. settings: YAML of all that are. python: the interpreter
    of this machine. here: its working folder. packages: versions here, as lines that pip takes.
    """

    name: str
    words: tuple[str, ...]
    settings: str
    python: str
    here: str
    python_version: str
    requirement: str
    packages: tuple[str, ...]


def make_job(config: LaunchConfig, words: Sequence[str]) -> Job:
    """Returns the job; raises what the verb would raise for `words`, before anything is started anywhere."""
    settings, flags = _read(config.verb, words)
    python_version = config.install.python or f"{sys.version_info.major}.{sys.version_info.minor}"
    return Job(
        config.name or _name(settings, config.verb),
        (config.verb, *flags),
        to_yaml(settings),
        sys.executable,
        os.getcwd(),
        python_version,
        requirement(config),
        _packages(),
    )


def _read(verb: str, words: Sequence[str]) -> tuple[Any, list[str]]:
    """The settings that the verb would have, and its flags beside them."""
    if verb == "sft":
        from ditto_jax.sft_run import SFTConfig

        return parse(SFTConfig, words, verb, "").config, []
    from ditto_jax.config import RunConfig

    if verb == "train":
        return parse(RunConfig, spelled_out(words, verb), verb, "", TASK_FLAGS).config, []
    if verb == "eval":
        options = [("fail_under", float | None, None), *EVAL_FLAGS]
        parsed = parse(RunConfig, spelled_out(words, verb), verb, "", options)
        gate = parsed.options["fail_under"]
        return parsed.config, [] if gate is None else ["--fail_under", str(gate)]
    parsed = parse(RunConfig, words, verb, "", [("skip_canaries", bool, False)])
    return parsed.config, ["--skip_canaries"] if parsed.options["skip_canaries"] else []


def _name(settings: Any, verb: str) -> str:
    """The name of the run as one that Kubernetes, Slurm and Google Cloud take."""
    given = (verb if verb == "doctor" else str(getattr(settings, "run_name", "") or verb)).lower()
    name = re.sub(r"^[^a-z]+|[^a-z0-9]+$", "", re.sub(r"[^a-z0-9]+", "-", given)[:40])
    if not name:
        raise ConfigError(f"run_name={given!r}: gives no name for the job; add --name, for example my-run")
    return name


def requirement(config: LaunchConfig) -> str:
    """Returns the line of requirements.txt: what was configured, or this version with the extra of the target."""
    install = config.install
    if install.requirement:
        return install.requirement
    chosen = {"tpu-queued-resource": "tpu", "slurm": "cuda12", "ssh": "cuda12"}.get(config.target, "none")
    extra = chosen if install.extra == "auto" else install.extra
    extras = "" if extra == "none" else f"[{extra}]"
    if install.wheel:
        return f"./{os.path.basename(install.wheel)}{extras}"
    try:
        return f"ditto-jax{extras}=={version('ditto-jax')}"
    except PackageNotFoundError:
        return f"ditto-jax{extras}"


def _packages() -> tuple[str, ...]:
    """The packages that this project asks for, as they are installed here: what runs here is what runs there."""
    try:
        wanted = requires("ditto-jax") or []
    except PackageNotFoundError:
        return ()
    found = set()
    for line in wanted:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name is not None and "extra ==" not in line:
            try:
                found.add(f"{name.group()}=={version(name.group())}")
            except PackageNotFoundError:
                continue
    return tuple(sorted(found))
