"""Presets state what the command in their comments prints, and the documents repeat it."""

from __future__ import annotations

import dataclasses

import pytest

from ditto_jax.config import RunConfig
from ditto_jax.config_io import load_config
from ditto_jax.plan.memory import model_of
from ditto_jax.plan.plan import make_plan
from ditto_jax.plan.topology import find_topology
from launch.cli import main
from tests.planned_runs import PLANNED, SOUL_ROWS, command_of, plan_of

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


@pytest.mark.parametrize(("topology", "rows"), SOUL_ROWS.items())
def test_the_paper_s_setting_has_the_figures_of_the_documents_on_every_slice(topology, rows):
    config, _ = load_config(RunConfig, ["soul_8b.yaml"])
    config = dataclasses.replace(config, sampler=dataclasses.replace(config.sampler, max_rows=rows))
    plan = make_plan(config, model_of(config), find_topology(topology))
    (row,) = [line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{topology}` | {rows} |")]
    devices, figures = plan.topology.devices, (sum(plan.step.values()), plan.hours)
    memory = f"{plan.peak / 2**30:.1f} of {plan.topology.chip.memory / 2**30:.0f} GiB"
    times = f"{figures[0]:.0f} | {figures[1]:.1f} | {figures[1] * devices:,.0f}"
    assert row == f"| `{topology}` | {rows} | {devices} | {memory} | {times} |"
    assert plan.verdict == "fits"
