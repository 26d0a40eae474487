"""Before a run: whether the devices that are here have the memory that its plan says it needs.

configuration, devices → **a warning in words, or ""**

The same account that `ditto-jax plan` prints. It warns and stops nothing: some of its figures are upper bounds.
"""

from __future__ import annotations

from typing import Any

from ditto_jax.config import RunConfig
from ditto_jax.plan.changes import first_change
from ditto_jax.plan.chips import in_gib
from ditto_jax.plan.memory import Memory, mesh_over, model_of


def memory_warning(config: RunConfig, device: Any, devices: int, kernel: str) -> str:
    """Returns what is lacking and the first change that would do; "" where it is enough, or where a device does not say
    how much it has, as CPUs do not.

    device: one of this process; devices: how many the run has, all alike. kernel: the attention kernel that they have.
    Raises ConfigError if the mesh does not fit them, MissingInputError if there is no such model.
    """
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if not limit or config.policy.kind != "local":
        return ""
    model = model_of(config)
    peak = Memory(config, model, mesh_over(config.mesh, devices), kernel).peak
    if peak <= limit:
        return ""
    change = first_change(config, model, devices, limit, kernel)
    advice = f"; enough would be {' '.join(change.settings)}" if change else "; take more devices (ditto-jax plan)"
    return f"predicted to need {in_gib(peak)} of {in_gib(limit)} GiB a device, and may run out of memory{advice}"
