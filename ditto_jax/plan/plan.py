"""A run's plan on one topology: memory a device, seconds a step, hours, calls and cost, and whether it fits.

configuration, sizes of its model, topology, assumptions → **a plan** → terminal, JSON

Puts together what the other files of this room compute; computes no figure of its own but sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ditto_jax.config import RunConfig
from ditto_jax.objective import make_objective
from ditto_jax.plan.assumptions import Assumptions
from ditto_jax.plan.calls import Calls, calls_of, judge_seconds
from ditto_jax.plan.chips import in_gib
from ditto_jax.plan.memory import Memory, mesh_over, peak_of
from ditto_jax.plan.seconds import Clock
from ditto_jax.plan.topology import Topology
from ditto_jax.plan.work import Work, evaluated, evaluations, uncounted, work_of
from ditto_jax.rollouts.pipeline import overlap_of
from ditto_jax.rollouts.prompts import LoadedTask
from ditto_jax.tasks.registry import get_task
from model.config import ModelConfig

CLOSE = 0.9  # of the memory: beyond it a run may fail by the error of these figures


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory in bytes a device: what lies there always (`held`), and beside it at either peak; together: at both, since
    the next step is sampled during the update. step: seconds of a mean step by phase; "judges" is what of their time no
    sampling hides. evaluation: seconds of one. left_out: what is not counted, in words.
    """

    topology: Topology
    mesh: Mapping[str, int]
    held: Mapping[str, float]
    update: Mapping[str, float]
    sampling: Mapping[str, float]
    together: bool
    step: Mapping[str, float]
    steps: int
    evaluation: float
    evaluations: int
    calls: Sequence[Calls]
    chip_hour_price: float | None
    left_out: Sequence[str]

    @property
    def peak(self) -> float:
        """Bytes a device."""
        return peak_of(self.held, self.update, self.sampling, self.together)

    @property
    def share(self) -> float:
        """Of the device's memory."""
        return self.peak / self.topology.chip.memory

    @property
    def fits(self) -> bool:
        return self.share <= 1.0

    @property
    def hours(self) -> float:
        """Of the whole run, evaluations included."""
        return (self.steps * sum(self.step.values()) + self.evaluations * self.evaluation) / 3600

    @property
    def chip_cost(self) -> float | None:
        """None without a price."""
        return None if self.chip_hour_price is None else self.hours * self.topology.devices * self.chip_hour_price

    @property
    def calls_cost(self) -> float | None:
        """Of the endpoints that have a price; None where none has."""
        known = [one.cost for one in self.calls if one.cost is not None]
        return sum(known) if known else None

    @property
    def verdict(self) -> str:
        """Returns whether it fits, in words."""
        if not self.fits:
            return "does not fit"
        return "fits" if self.share <= CLOSE else "fits, closer than the error of these figures"

    def lines(self) -> list[str]:
        """Returns the plan in three lines: memory, what it is for, time."""
        held = " + ".join(f"{name} {in_gib(size)}" for name, size in self.held.items())
        times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.step.items() if seconds >= 0.5)
        update, sampling = (in_gib(sum(part.values())) for part in (self.update, self.sampling))
        chip, memory = self.topology.chip, in_gib(self.topology.chip.memory)
        return [
            f"{self.topology.name}, {self.topology.devices} x {chip.name}: {in_gib(self.peak)} of {memory} GiB a "
            f"device, {self.verdict};",
            f"{held}, then {update} to update {'and' if self.together else 'or'} {sampling} to sample;",
            f"{self.hours:.1f} hours for {self.steps} steps ({times} each) and {self.evaluations} evaluations.",
        ]


def make_plan(config: RunConfig, model: ModelConfig, topology: Topology, assume: Assumptions | None = None) -> Plan:
    """Returns what a run will need on a topology. Raises ConfigError if its mesh does not fit the devices, if it
    trains on nothing, or if a task is unknown.
    """
    assume = assume or Assumptions()
    mesh = mesh_over(config.mesh, topology.devices)
    memory, clock = Memory(config, model, mesh, topology.chip.kernel), Clock(config, model, mesh, topology, assume)
    work = work_of(config, assume)
    calls = calls_of(config, work, assume)
    left_out = ["compiling, loading and saving", *(f"evaluation of {label}: no limit" for label in uncounted(config))]
    if make_objective(config.objective).refinement.words == "policy":
        left_out.append("reflections of the policy")
    return Plan(
        topology=topology,
        mesh=mesh,
        held=memory.held(),
        update=memory.update(),
        sampling=memory.sampling(),
        together=bool(config.rollout.steps_behind),
        step=_step(config, clock, work, calls),
        steps=config.train.max_steps,
        evaluation=_evaluation(config, clock, work, calls, assume),
        evaluations=evaluations(config),
        calls=calls,
        chip_hour_price=assume.chip_hour_price,
        left_out=left_out,
    )


def _step(config: RunConfig, clock: Clock, work: Work, calls: Sequence[Calls]) -> dict[str, float]:
    """Judges are waited for beside sampling where prompts are streamed, which one host can do; beside everything one
    step behind; else after sampling.
    """
    phases, judges = clock.step(work), judge_seconds(calls)
    tasks = [LoadedTask(one.known_as, one.weight, get_task(one.name, one.options), (), one) for one in config.tasks]
    if config.rollout.steps_behind:
        judges = max(0.0, judges - sum(phases.values()))
    elif overlap_of(config, make_objective(config.objective), tasks, clock.topology.hosts) == "streaming":
        judges = max(0.0, judges - phases["prefill"] - phases["decode"])
    return {**phases, "judges": judges}


def _evaluation(config: RunConfig, clock: Clock, work: Work, calls: Sequence[Calls], assume: Assumptions) -> float:
    """Seconds of one evaluation: every item a prompt of its own; judges asked beside."""
    evaluation, times = config.evaluation, evaluations(config)
    rollouts = sum(evaluated(evaluation, task) for task in evaluation.tasks)
    rollouts *= 1 + 2 * assume.refined_share * evaluation.with_feedback
    if not rollouts:
        return 0.0
    sampling = clock.prefill(rollouts * work.prompt, work.prompt) + clock.decode(rollouts * work.reply, work, group=1)
    return max(sampling, *(one.evaluation_seconds / times for one in calls), 0.0)
