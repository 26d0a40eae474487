"""Settings that NVIDIA GPUs want before jax starts; a value that the user has set stays.

In: the environment. Out: the same with more of it. Does nothing where no NVIDIA driver is to be seen.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

DRIVER_FILE = "/dev/nvidiactl"

# Sends run while kernels compute, which only matters on several GPUs. Every jaxlib that is supported knows the flag.
XLA_FLAG, XLA_VALUE = "--xla_gpu_enable_latency_hiding_scheduler", "true"
# Of the memory that is there at the start, taken at once. With jax's own 0.75 what `plan` says fits would not.
MEMORY = ("XLA_CLIENT_MEM_FRACTION", "0.9")
_OTHER_MEMORY_SETTINGS = (
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
)


def prepare_gpu(environment: MutableMapping[str, str], driver_file: str = DRIVER_FILE) -> None:
    """Changes `environment` where a driver is there and the process may use it."""
    wanted = environment.get("JAX_PLATFORMS", "cuda")
    if not os.path.exists(driver_file) or not ("cuda" in wanted or "gpu" in wanted):
        return
    flags = environment.get("XLA_FLAGS", "")
    if XLA_FLAG not in flags:
        environment["XLA_FLAGS"] = f"{flags} {XLA_FLAG}={XLA_VALUE}".strip()
    name, value = MEMORY
    if not any(setting in environment for setting in (name, *_OTHER_MEMORY_SETTINGS)):
        environment[name] = value
