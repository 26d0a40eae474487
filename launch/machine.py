"""What this machine has, as facts for people: versions, devices, memory, disk, data, judge, policies.

In: a run's config and the environment. Out: `Fact`s, each with a warning where something is missing or unlikely to
work. Changes nothing and asks no network; of a judge's key it says only where it would come from.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ditto_jax.config import RunConfig
from ditto_jax.errors import DittoError
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.endpoint import BASE_URL_ENV, resolve_endpoint
from ditto_jax.policy import PACKAGED
from ditto_jax.tasks.registry import task_names
from launch.environment import ditto_home
from launch.plugins import missing_plugin, seen_hardware

_GIB = 2**30
_LITTLE_DISK = 2 * _GIB
_LITTLE_MEMORY = 4 * _GIB  # what the quick start is allowed to use


@dataclasses.dataclass(frozen=True)
class Fact:
    """One line about the machine; `warning` says what to do, or is empty."""

    topic: str
    value: str
    warning: str = ""


def facts(config: RunConfig) -> Iterator[Fact]:
    """Yields everything in the order of printing; the first use of a device happens here."""
    yield Fact("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _versions()
    yield from _devices()
    yield _memory()
    yield _disk("output_dir", Path(config.output_dir))
    yield _disk("DITTO_HOME", ditto_home())
    yield from _data()
    yield _judge(config.judge)
    names = sorted(folder.name for folder in PACKAGED.glob("*") if folder.is_dir())
    yield Fact("packaged policies", ", ".join(names) or "none")


def version_warning(jax: str, flax: str) -> str:
    """Returns why this pair of versions may not work together, or an empty string for a pair known to be good."""
    jax_parts, flax_parts = _numbers(jax), _numbers(flax)
    if jax_parts < (0, 9, 2) or jax_parts >= (0, 13):
        return f"jax {jax} was not tried; install jax>=0.9.2,<0.13"
    if (0, 11) <= jax_parts < (0, 12):
        return f"jax {jax}: the 0.11 line breaks flax 0.12.9 to 0.12.11 and has CPU faults; install another"
    if jax_parts >= (0, 12) and flax_parts < (0, 12, 12):
        return f"flax {flax} is too old for jax {jax}; install flax>=0.12.12"
    if jax_parts < (0, 11) and not (0, 12, 6) <= flax_parts <= (0, 12, 8):
        return f"flax {flax} was not tried with jax {jax}; install flax>=0.12.6,<=0.12.8"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _versions() -> Iterator[Fact]:
    jax, flax = _installed("jax"), _installed("flax")
    yield Fact("jax, jaxlib, flax", f"{jax}, {_installed('jaxlib')}, {flax}", version_warning(jax, flax))
    others = ("optax", "orbax-checkpoint", "transformers", "sentencepiece", "tensorflow-datasets")
    yield Fact("other packages", ", ".join(f"{name} {_installed(name)}" for name in others))
    yield Fact("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") or "not set")


def _devices() -> Iterator[Fact]:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        advice = missing_plugin(seen_hardware())
        yield Fact("devices", "none", f"JAX_PLATFORMS={wanted!r}: {error}" + (f"; {advice}" if advice else ""))
        return
    kinds: dict[str, int] = {}
    for device in devices:
        kinds[f"{device.platform} ({device.device_kind})"] = (
            kinds.get(f"{device.platform} ({device.device_kind})", 0) + 1
        )
    advice = missing_plugin(seen_hardware()) if jax.default_backend() == "cpu" else ""
    yield Fact("devices", ", ".join(f"{count} x {kind}" for kind, count in kinds.items()), advice)
    if jax.process_count() > 1:
        here = f"{jax.local_device_count()} of {len(devices)} devices are here"
        yield Fact("processes", f"process {jax.process_index()} of {jax.process_count()}; {here}")
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        yield Fact("device memory", f"{_gib(limit)} each")
    yield Fact("processors", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))


def _memory() -> Fact:
    if not hasattr(os, "sysconf"):
        return Fact("memory", "unknown")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    little = total < _LITTLE_MEMORY
    return Fact("memory", _gib(total), f"the quick start may need {_gib(_LITTLE_MEMORY)}" if little else "")


def _disk(name: str, path: Path) -> Fact:
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    warning = ""
    if not os.access(existing, os.W_OK):
        warning = f"{existing} is not writable; choose another folder"
    elif free < _LITTLE_DISK:
        warning = "little space: checkpoints may not fit"
    return Fact(f"disk at {name}", f"{path}: {_gib(free)} free", warning)


def _data() -> Iterator[Fact]:
    folder = os.environ.get("SOUL_DATA_DIR", "")
    if not folder:
        yield Fact("SOUL_DATA_DIR", "not set: generated data only")
        return
    if not Path(folder).is_dir():
        yield Fact("SOUL_DATA_DIR", folder, "no such folder; tasks that read files will not find them")
        return
    held = [name for name in task_names() if any((Path(folder) / name).glob("*"))]
    missing = [name for name in task_names() if name not in held]
    warning = f"no files of {', '.join(missing)}" if missing else ""
    yield Fact("SOUL_DATA_DIR", f"{folder}: {', '.join(held) or 'nothing that a task reads'}", warning)


def _judge(config: JudgeConfig) -> Fact:
    """The judge of the config; without one, the endpoint that the environment would give to judge.kind=openai."""
    if config.kind == "rules":
        if not os.environ.get(BASE_URL_ENV):
            return Fact("judge", "rules (embedded)")
        config = JudgeConfig(kind="openai", model="any")
        kind = "rules (embedded); for judge.kind=openai: "
    elif config.kind == "openai":
        kind = f"openai, model {config.model}, "
    else:
        return Fact("judge", config.function or f"{config.kind} of {len(config.members)}")
    try:
        endpoint = resolve_endpoint(config)
    except DittoError as error:
        return Fact("judge", kind.rstrip(" ,:"), str(error))
    return Fact("judge", f"{kind}{endpoint.url} (from {endpoint.url_origin}), key: {endpoint.key_origin}")


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
