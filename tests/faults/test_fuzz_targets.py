"""Every target of the fuzzer holds for its seeds, for what was found in longer runs, and for what is near them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.fuzz_targets import SEEDS, TARGETS, kept


def near(name: str) -> st.SearchStrategy[bytes]:
    """Inputs with a few bytes of a known one replaced."""
    cuts = st.tuples(st.sampled_from([*SEEDS[name], *kept(name)]), st.integers(0, 200), st.integers(0, 8))
    return st.builds(lambda cut, new: cut[0][: cut[1]] + new + cut[0][cut[1] + cut[2] :], cuts, st.binary(max_size=8))


@pytest.mark.parametrize("name", TARGETS)
def test_known_inputs_hold(name: str):
    for data in [*SEEDS[name], *kept(name)]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100)
@given(data=st.data())
def test_inputs_near_known_ones_hold(name: str, data: st.DataObject):
    TARGETS[name](data.draw(near(name) | st.binary(max_size=60)))
