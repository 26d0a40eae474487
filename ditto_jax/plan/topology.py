"""The name of a machine or slice → how many devices of which kind.

In: a name such as v5p-8, v6e-16 or h100-8. Out: a `Topology`. Names of TPU slices count as Google's accelerator types
do: TensorCores for v4 and v5p, of which a chip has two, chips for v5e and v6e. For GPUs the number is that of devices.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping

from ditto_jax.errors import ConfigError
from ditto_jax.plan.chips import CHIPS, Chip

# Numbers behind the names of TPU slices; larger slices of v4 and v5p are whole cubes of 64 chips.
_FLAT = (1, 4, 8, 16, 32, 64, 128, 256)
_CUBES = (8, 16, 32, 64, 128, 256, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096)
SIZES: Mapping[str, tuple[int, ...]] = {"v4": _CUBES, "v5p": _CUBES, "v5e": _FLAT, "v6e": _FLAT}
_CORES_A_CHIP = {"v4": 2, "v5p": 2}
_ALSO_CALLED = {"v5litepod": "v5e"}
_MOST_GPUS = 4096
_ONE_HOST = {"TPU v5e": 8, "TPU v6e": 8}  # chips of the largest slice with one host; hosts of larger ones have four


@dataclasses.dataclass(frozen=True)
class Topology:
    """devices: as jax counts them, one a chip."""

    name: str
    chip: Chip
    devices: int

    @property
    def hosts(self) -> int:
        """Processes of a run, one on each host."""
        if self.chip.host:
            return -(-self.devices // self.chip.host)
        return 1 if self.devices <= _ONE_HOST.get(self.chip.name, 4) else -(-self.devices // 4)

    def link(self, devices: int) -> float:
        """Returns bytes/s that a device sends to others in a group of so many: the network's where hosts are left."""
        return self.chip.network if 0 < self.chip.host < devices else self.chip.link


def find_topology(name: str) -> Topology:
    """Returns what a name means. Raises ConfigError saying which names there are."""
    found = re.fullmatch(r"([a-z][a-z0-9]*)-([1-9][0-9]*)", name.strip().lower())
    kind = _ALSO_CALLED.get(found[1], found[1]) if found else ""
    if not found or kind not in CHIPS:
        near = difflib.get_close_matches(name.strip().lower().partition("-")[0], CHIPS, n=1)
        hint = f"did you mean {near[0]}-8? " if near else ""
        raise ConfigError(f"topology={name}: {hint}give KIND-NUMBER, such as v5p-8; {known_topologies()}")
    number = int(found[2])
    if number not in SIZES.get(kind, range(1, _MOST_GPUS + 1)):
        sizes = ", ".join(map(str, SIZES[kind])) if kind in SIZES else f"1 to {_MOST_GPUS}"
        cores = " TensorCores, two a chip" if kind in _CORES_A_CHIP else ""
        raise ConfigError(f"topology={name}: there is no {kind} with {number}; choose one of {sizes}{cores}")
    return Topology(f"{kind}-{number}", CHIPS[kind], number // _CORES_A_CHIP.get(kind, 1))


def known_topologies() -> str:
    """Returns the names that `find_topology` knows, in words."""
    tpus = "; ".join(f"{kind}-N with N of {', '.join(map(str, sizes[:6]))} …" for kind, sizes in SIZES.items())
    gpus = ", ".join(kind for kind in CHIPS if kind not in SIZES)
    return f"known: {tpus}; and any number of {gpus}"
