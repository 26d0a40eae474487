"""What is missing where a machine has an accelerator and jax does not use it.

In: device files, the driver's version, installed packages and JAX_PLATFORMS. Out: one sentence that says what to do.
Touches no device.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_GOOGLE = Path("/sys/class/dmi/id/product_name")
_NAMES = {"nvidia": "an NVIDIA GPU", "tpu": "a TPU", "amd": "an AMD GPU"}
_OLDEST_DRIVER = {"cuda13": 580, "cuda12": 525}  # of the CUDA libraries that the wheels bring
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What can be seen of accelerators: kind ("nvidia", "tpu", "amd" or ""), driver (its major version, 0 if unknown),
    plugins (installed package → version), jaxlib's version, and JAX_PLATFORMS.
    """

    kind: str
    driver: int
    plugins: dict[str, str]
    jaxlib: str
    platforms: str


def seen_hardware() -> Hardware:
    """Returns what this machine shows."""
    installed = {name: found for name in (*_PLUGINS, "jaxlib") if (found := _installed(name))}
    jaxlib = installed.pop("jaxlib", "")
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return Hardware(_kind(), _driver(), installed, jaxlib, platforms)


def _kind() -> str:
    if os.path.exists("/dev/nvidiactl") or _NVIDIA_DRIVER.exists():
        return "nvidia"
    if os.path.exists("/dev/kfd"):
        return "amd"
    # Newer TPU VMs show their chips as vfio devices, which elsewhere are any hardware lent to a virtual machine.
    is_google = _GOOGLE.exists() and _GOOGLE.read_text(errors="replace").startswith("Google")
    return "tpu" if glob.glob("/dev/accel[0-9]*") or (is_google and glob.glob("/dev/vfio/[0-9]*")) else ""


def missing_plugin(seen: Hardware) -> str:
    """Returns what to do on a machine where jax found nothing but the CPU; "" if nothing else can be seen there."""
    asked = seen.platforms.split(",")[0]
    kind = seen.kind or {"cuda": "nvidia", "gpu": "nvidia", "tpu": "tpu"}.get(asked, "")
    if asked == "cpu" and kind:
        return f"the machine has {_NAMES[kind]}, and JAX_PLATFORMS=cpu keeps jax from it; unset JAX_PLATFORMS to use it"
    if kind == "nvidia":
        return _nvidia(seen)
    if kind == "tpu":
        return _tpu(seen)
    if kind == "amd":
        return "an AMD GPU is there; jax needs its ROCm plugin for it, with which nothing here was tried"
    return ""


def _nvidia(seen: Hardware) -> str:
    if seen.kind != "nvidia":
        return "no NVIDIA driver is to be seen: in a container, start it with --gpus all; else install the driver"
    newest = next((extra for extra, oldest in _OLDEST_DRIVER.items() if seen.driver >= oldest), "")
    if seen.driver and not newest:
        return f"NVIDIA driver {seen.driver} is too old: update it to {_OLDEST_DRIVER['cuda12']} or newer"
    plugin = next((name for name in seen.plugins if "cuda" in name), "")
    extra = newest or "cuda12"
    if not plugin:
        return f"an NVIDIA GPU is there, but not jax's plugin for it: pip install 'ditto-jax[{extra}]'"
    if seen.plugins[plugin] != seen.jaxlib:
        fitting = "cuda13" if "cuda13" in plugin else "cuda12"
        return (
            f"{plugin} {seen.plugins[plugin]} does not fit jaxlib {seen.jaxlib}: pip install --upgrade "
            f"'ditto-jax[{fitting}]'"
        )
    if "cuda13" in plugin and newest == "cuda12":
        return (
            f"{plugin} needs NVIDIA driver {_OLDEST_DRIVER['cuda13']} or newer, here is {seen.driver}: update it, or "
            "pip uninstall jax-cuda13-plugin jax-cuda13-pjrt, then pip install 'ditto-jax[cuda12]'"
        )
    return (
        f"{plugin} is installed and jax does not use the GPU: see what nvidia-smi says, and unset LD_LIBRARY_PATH, "
        "which can put other CUDA libraries before those of the plugin"
    )


def _tpu(seen: Hardware) -> str:
    if "libtpu" not in seen.plugins:
        return "a TPU is there, but not its library: pip install 'ditto-jax[tpu]'"
    return (
        "libtpu is installed and jax does not use the TPU: another process may hold it (sudo lsof -w /dev/accel* "
        "/dev/vfio/*), or it has more hosts, and the command must run on all of them"
    )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _driver() -> int:
    """The major version of the NVIDIA driver; 0 where none is loaded."""
    try:
        found = re.search(r"Kernel Module(?:\s+for \S+)?\s+(\d+)\.", _NVIDIA_DRIVER.read_text(errors="replace"))
    except OSError:
        return 0
    return int(found.group(1)) if found else 0
