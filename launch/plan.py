"""`ditto-jax plan --config FILE --topology NAME`: what a run needs on hardware that is not here.

In: a run's settings, names of topologies, assumptions. Out: an exit code, tables on the terminal, and JSON where asked
for. Loads no weights and touches no device. The figures are `ditto_jax.plan`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ditto_jax.plan.chips import in_gib
from launch import environment
from launch.flags import parse

if TYPE_CHECKING:
    from rich.console import Console

    from ditto_jax.plan.plan import Plan
    from ditto_jax.plan.topology import Topology

    ToFit = tuple[tuple[str, ...], Plan]  # settings that are enough, and the plan with them

_TOPOLOGY = Annotated[
    str, tyro.conf.arg(help="machine or slice, such as v5p-8, v6e-16, h100-8; several with commas are compared")
]
_OUTPUT = Annotated[Path | None, tyro.conf.arg(help="JSON file to write (default: nothing is written)")]
_BAR = 24  # columns of a bar that stands for the whole memory of a device


def main(args: list[str], command: list[str]) -> int:
    """Prints the plan of each topology; a run that does not fit is an answer and no failure."""
    environment.prepare_allocator()
    from rich.console import Console

    from ditto_jax.config import RunConfig
    from ditto_jax.plan.assumptions import Assumptions
    from ditto_jax.plan.changes import first_change, first_topology
    from ditto_jax.plan.memory import in_dtypes, model_of
    from ditto_jax.plan.plan import CLOSE, make_plan
    from ditto_jax.plan.topology import find_topology
    from ditto_jax.runs.run_dir import write_atomically

    about = "Predict memory, hours, calls of judges and cost of a run, without the hardware."
    assume = Annotated[Assumptions, tyro.conf.arg(help="what no configuration says")]
    options = [("topology", _TOPOLOGY, ""), ("output", _OUTPUT, None), ("assume", assume, Assumptions())]
    parsed = parse(RunConfig, args, "plan", about, options)
    config, console = parsed.config, Console(highlight=False)
    topologies = [find_topology(name) for name in parsed.options["topology"].split(",")]
    model = model_of(config)
    found = []
    for topology in topologies:
        plan, to_fit, larger = make_plan(config, model, topology, parsed.options["assume"]), None, None
        if not plan.fits:
            memory, kernel = CLOSE * topology.chip.memory, topology.chip.kernel
            if change := first_change(config, model, topology.devices, memory, kernel):
                sizes = in_dtypes(model, change.config)
                to_fit = change.settings, make_plan(change.config, sizes, topology, parsed.options["assume"])
            larger = first_topology(config, model, topology, CLOSE)
        found.append((plan, to_fit, larger))
        if len(topologies) == 1:
            _show(console, plan)
        print("\n".join([*plan.lines(), *_advice(plan, to_fit, larger)]))
    if len(topologies) > 1:
        console.print(_comparison([plan for plan, _, _ in found]))
    if parsed.options["output"] is not None:
        text = json.dumps({"plans": [_as_json(*one) for one in found]}, indent=1)
        parsed.options["output"].parent.mkdir(parents=True, exist_ok=True)
        write_atomically(parsed.options["output"], text + "\n")
        print(f"written: {parsed.options['output']}")
    return 0


def _advice(plan: Plan, to_fit: ToFit | None, larger: Topology | None) -> list[str]:
    """What makes a run fit that does not, in lines."""
    if plan.fits:
        return []
    enough = "no change of settings that is known here is enough"
    if to_fit is not None:
        settings, changed = to_fit
        enough = f"to fit, set {' '.join(settings)} ({in_gib(changed.peak)} GiB a device, {changed.hours:.1f} hours)"
    return [f"{enough}{f'; or take {larger.name}' if larger else ''}."]


def _show(console: Console, plan: Plan) -> None:
    from rich.text import Text

    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    console.print(Text(f"{plan.topology.name}: {plan.topology.devices} devices, mesh {mesh}", style="bold"))
    for table in (_memory(plan), _times(plan), _calls(plan)):
        if table is not None:
            console.print(table)
    console.print(Text(f"not counted: {'; '.join(plan.left_out)}", style="dim"))


def _table(*columns: str, title: str, left: int = 1) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return table


def _memory(plan: Plan) -> Any:
    """Held parts, then those of the larger peak; a bar of full length is the whole memory of a device."""
    peak = "update" if sum(plan.update.values()) >= sum(plan.sampling.values()) else "sampling"
    table = _table("a device", "GiB", "", title=f"memory of a device, fullest while {_DOING[peak]}")
    table.columns[2].justify = "left"
    parts = {**plan.held, **{f"{peak}: {name}": size for name, size in getattr(plan, peak).items() if size}}
    memory = plan.topology.chip.memory
    for name, size in (*parts.items(), ("together", plan.peak), (f"of {plan.topology.chip.name}", memory)):
        table.add_row(name, in_gib(size, 2), _bar(size / memory))
    return table


_DOING = {"update": "it updates", "sampling": "it samples"}


def _bar(share: float) -> str:
    """`share` of `_BAR` columns; what is beyond is marked, and a little is a dot."""
    length = min(_BAR, round(share * _BAR))
    return ("█" * length or "·") + ("▶" if share > 1.0 else "")


def _times(plan: Plan) -> Any:
    title = f"a mean step of {plan.steps}"
    if plan.evaluations:
        title += f"; {plan.evaluations} evaluations take {plan.evaluation:,.0f} s each"
    table = _table("phase", "seconds", "share", "", title=title)
    table.columns[3].justify = "left"
    whole = sum(plan.step.values())
    for name, seconds in (*plan.step.items(), ("together", whole)):
        share = seconds / whole if whole else 0.0
        table.add_row(name, f"{seconds:,.1f}", f"{share:.0%}", _bar(share) if name != "together" else "")
    return table


def _calls(plan: Plan) -> Any:
    if not plan.calls:
        return None
    columns = ("for", "asked", "a step", "the run", "in", "out", "s", "cost")
    title = "calls of judges and partners; tokens of one in and out, least seconds of a step, cost of the run"
    table = _table(*columns, title=title, left=2)
    for one in plan.calls:
        tokens = (f"{size:,.0f}" if size else "-" for size in one.tokens)
        cost = "no price" if one.cost is None else f"{one.cost:,.0f}"
        table.add_row(
            one.purpose, one.who, f"{one.a_step:,.0f}", f"{one.run:,.0f}", *tokens, f"{one.seconds:,.0f}", cost
        )
    return table


def _comparison(plans: Sequence[Plan]) -> Any:
    columns = ("topology", "chips", "GiB", "fits", "s a step", "hours", "chip-hours", "cost")
    table = _table(*columns, title="compared")
    for plan in plans:
        cost = "no price" if plan.chip_cost is None else f"{plan.chip_cost:,.0f}"
        step, chip_hours = sum(plan.step.values()), plan.hours * plan.topology.devices
        figures = (f"{step:,.0f}", f"{plan.hours:,.1f}", f"{chip_hours:,.0f}", cost)
        sizes = plan.topology.name, str(plan.topology.devices), in_gib(plan.peak)
        table.add_row(*sizes, "yes" if plan.fits else "no", *figures)
    return table


def _as_json(plan: Plan, to_fit: ToFit | None, larger: Topology | None) -> dict[str, Any]:
    """Everything of a plan, sizes in bytes and times in seconds."""
    import dataclasses

    return {
        **dataclasses.asdict(plan),
        "peak": plan.peak,
        "fits": plan.fits,
        "verdict": plan.verdict,
        "hours": plan.hours,
        "chip_cost": plan.chip_cost,
        "calls_cost": plan.calls_cost,
        "to_fit": None if to_fit is None else {"settings": to_fit[0], "peak": to_fit[1].peak, "hours": to_fit[1].hours},
        "larger": None if larger is None else larger.name,
    }
