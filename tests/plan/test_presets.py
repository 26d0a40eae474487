"""Presets state what the command in their comments prints, and the documents repeat it."""

from __future__ import annotations

import pytest

from launch.cli import main
from tests.planned_runs import PLANNED, command_of, plan_of

DOCUMENT = next(iter(PLANNED.values())).parent.parent / "docs" / "planning.md"


def test_the_presets_of_sizes_have_a_plan():
    assert set(PLANNED) == {"one_gpu_0.6b", "one_gpu_1.7b", "one_gpu_8b", "tpu_v5e_8", "tpu_pod_8b", "soul_8b"}


@pytest.mark.parametrize("name", PLANNED)
def test_a_preset_states_what_the_command_in_its_comment_prints(name, capsys):
    preset = PLANNED[name]
    assert main(command_of(preset)) == 0
    printed = capsys.readouterr().out.splitlines()
    stated = [line.removeprefix("# ") for line in preset.read_text().splitlines() if line.startswith("# ")]
    assert printed[-3:] == stated[-3:]


@pytest.mark.parametrize("name", PLANNED)
def test_the_table_of_the_documents_has_the_figures_of_the_plan(name):
    plan = plan_of(PLANNED[name])
    (row,) = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert row.endswith(f"| {plan.topology.name} | {plan.peak / 2**30:.1f} GiB | {plan.hours:.1f} |")


@pytest.mark.parametrize("name", PLANNED)
def test_a_preset_fits_its_chip_with_a_tenth_to_spare(name):
    plan = plan_of(PLANNED[name])
    assert plan.verdict == "fits"
    assert 0 < plan.hours < 24
