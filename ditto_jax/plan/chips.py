"""Kinds of devices as data: memory, arithmetic, bandwidths, and who says so.

Figures are the makers', not measurements; what of them is reached is an assumption of a plan (`assumptions`). Memory is
what a program may use, where that is known to be less than the name says. Prices are not here: they are the user's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

GIB = 2**30

_GOOGLE = "docs.cloud.google.com/tpu/docs/{}, 2026-11"
_NVIDIA = "NVIDIA's data sheet of {} (dense operations), as comparisons quote it, 2026-11"


@dataclasses.dataclass(frozen=True)
class Chip:
    """memory: bytes a program may use. flops: of dense products in bfloat16 (float16 where there is none), a second.
    bandwidth: bytes/s of its memory. link: bytes/s that it sends to others over the interconnect, all links together,
    one way. host: devices that share the interconnect; 0: all of a slice. network: bytes/s that it sends to other
    hosts, where host is not 0. kernel: the attention kernel that `attention: auto` takes on it, "" for none. maker: who
    says so.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    host: int
    network: float
    kernel: str
    maker: str


def in_gib(size: float, digits: int = 1) -> str:
    """Returns bytes as GiB."""
    return f"{size / GIB:.{digits}f}"


def _tpu(name: str, gib: float, tflops: float, gbytes: float, link: float, page: str) -> Chip:
    figures = gib * GIB, tflops * 1e12, gbytes * 1e9, link * 1e9, 0, 0.0
    return Chip(f"TPU {name}", *figures, "splash", _GOOGLE.format(page))


def _gpu(
    name: str, gib: float, tflops: float, gbytes: float, link: float, network: float, kernel: str = "cudnn"
) -> Chip:
    figures = gib * GIB, tflops * 1e12, gbytes * 1e9, link * 1e9, 8, network * 1e9
    return Chip(name, *figures, kernel, _NVIDIA.format(name))


# Compilers give programs 15.75 and 31.25 GiB of v5e and v6e. Interconnects are half of a bandwidth that counts both
# ways; GPUs without NVLink have PCIe. Between hosts, 400, 200 or 25 Gbit/s a GPU, as is usual. That of v4 is not on
# Google's page: six links of 45 GB/s (jax-ml.github.io/scaling-book). Bandwidths of v5e and v6e are those of the page
# before it rounded them.
CHIPS: Mapping[str, Chip] = {
    "t4": _gpu("T4", 15, 65, 320, 16, 3, kernel=""),
    "rtx4080": _gpu("RTX 4080", 16, 97, 717, 32, 3),
    "rtx4090": _gpu("RTX 4090", 24, 165, 1008, 32, 3),
    "l4": _gpu("L4", 22.5, 121, 300, 32, 3),
    "a100": _gpu("A100 SXM, 80 GB", 79, 312, 2039, 300, 25),
    "h100": _gpu("H100 SXM", 79.5, 989, 3350, 450, 50),
    "h200": _gpu("H200 SXM", 139, 989, 4800, 450, 50),
    "v4": _tpu("v4", 31.75, 275, 1200, 270, "v4"),
    "v5e": _tpu("v5e", 15.75, 197, 819, 200, "v5e"),
    "v5p": _tpu("v5p", 95, 459, 2765, 600, "v5p"),
    "v6e": _tpu("v6e", 31.25, 918, 1640, 400, "v6e"),
}
