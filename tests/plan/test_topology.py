"""Names of machines and slices mean the devices that their makers mean; others are refused with those there are."""

from __future__ import annotations

import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.plan.chips import CHIPS
from ditto_jax.plan.topology import SIZES, find_topology


@pytest.mark.parametrize(
    ("name", "chip", "devices"),
    [
        ("v5p-8", "v5p", 4),  # eight TensorCores on four chips
        ("v5p-128", "v5p", 64),
        ("v4-32", "v4", 16),
        ("v6e-16", "v6e", 16),
        ("v5litepod-8", "v5e", 8),
        ("h100-8", "h100", 8),
        ("rtx4090-1", "rtx4090", 1),
        (" H200-16 ", "h200", 16),
    ],
)
def test_a_name_means_devices_of_a_kind(name, chip, devices):
    found = find_topology(name)
    assert (found.chip, found.devices) == (CHIPS[chip], devices)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v5p-7", r"topology=v5p-7: there is no v5p with 7; choose one of 8, 16, .* TensorCores, two a chip"),
        ("v6e-2", r"there is no v6e with 2; choose one of 1, 4, 8"),
        ("h10-8", r"did you mean h100-8\? give KIND-NUMBER, such as v5p-8; known: v4-N .* and any number of .*h100"),
        ("abacus", r"topology=abacus: give KIND-NUMBER"),
        ("h100-0", r"give KIND-NUMBER"),
        ("h100-99999", r"there is no h100 with 99999; choose one of 1 to 4096"),
        ("", r"topology=: give KIND-NUMBER"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name, text):
    with pytest.raises(ConfigError, match=text):
        find_topology(name)


def test_every_slice_size_is_a_topology_and_every_chip_has_all_figures():
    for kind, sizes in SIZES.items():
        assert all(find_topology(f"{kind}-{size}").chip is CHIPS[kind] for size in sizes)
    for chip in CHIPS.values():
        assert min(chip.memory, chip.flops, chip.bandwidth, chip.link) > 0 and chip.maker
        assert chip.bandwidth > chip.link > chip.network


def test_groups_larger_than_a_host_of_gpus_use_the_network():
    found = find_topology("h100-16")
    assert found.link(8) == found.chip.link and found.link(16) == found.chip.network
    assert find_topology("v5p-128").link(64) == CHIPS["v5p"].link
