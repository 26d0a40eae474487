"""Planned memory is as near to what compilers reserve as docs/planning.md says, for TPUs and for simulated devices."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from benchmarks.plan_check import (
    PUBLISHED,
    RESULTS,
    compare,
    described,
    predicted,
    predicted_speed,
    reserved,
    simulated,
)
from benchmarks.plan_check import speeds as speed_table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "planning.md"
TPU = [pytest.param(plan, real, id=name) for name, plan, real in compare()]
FOUND = json.loads(RESULTS.read_text())["results"]
CASES = {case.name: case for case in simulated()} | {
    f"{chip}, 8 chips: {case.name}": case for chip, case in described()
}


@pytest.mark.parametrize(("plan", "real"), TPU)
def test_programs_compiled_for_tpus_reserve_what_is_planned(plan, real):
    assert plan["arguments"] == pytest.approx(real["arguments"], rel=0.005)
    assert 0.93 <= sum(plan.values()) / sum(real.values()) <= 1.05


@pytest.mark.parametrize(("plan", "real"), [one for one in TPU if str(one.id).endswith("update")])
def test_what_an_update_takes_beside_is_planned_within_15_percent_on_tpus(plan, real):
    assert 0.95 <= plan["temporaries"] / real["temporaries"] <= 1.15


@pytest.mark.parametrize("name", FOUND)
def test_updates_of_other_shapes_stay_within_the_stated_bound(name):
    plan, real = predicted(CASES[name]), FOUND[name]
    assert plan["arguments"] == pytest.approx(real["arguments"], rel=0.02)
    assert 0.9 <= plan["temporaries"] / real["temporaries"] <= 1.6


@pytest.mark.slow
@pytest.mark.parametrize("case", list(simulated())[3:5], ids=lambda case: case.name)
def test_updates_compiled_for_eight_simulated_devices_stay_within_it_too(case):
    if len(jax.devices()) < 8:
        pytest.fail(f"{len(jax.devices())} devices are present: start jax with JAX_NUM_CPU_DEVICES=8")
    plan, real = predicted(case), reserved(case, jax.devices()[:8])
    assert plan["arguments"] == pytest.approx(real["arguments"], rel=0.02)
    assert 0.9 <= plan["temporaries"] / real["temporaries"] <= 1.6
    assert 0.95 <= sum(plan.values()) / sum(real.values()) <= 1.5


def test_the_documents_state_the_speeds_that_the_formulas_give():
    text = DOCUMENT.read_text()
    assert all(line in text for line in speed_table().splitlines())
    assert all(0.7 <= predicted_speed(one) / one.speed <= 1.5 for one in PUBLISHED)
