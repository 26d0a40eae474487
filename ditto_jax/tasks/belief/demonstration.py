"""Belief trace → a worked reply: the object's places, latest first, until one that the whole chain took over.

In: the trace of a question. Out: short text such as "crate Ann: Bob away; basket Cid: all saw." It never looks at the
gold answer: what it concludes is what the oracle concludes. The careless variant is the common mistake of answering
with reality.
"""

from __future__ import annotations

from ditto_jax.tasks.belief.oracle import COMMUNICATIONS, PLACINGS, Step, Trace

# Who is named where no character moved the object.
_NARRATED = {"first": "first", "noted": "again"}


def worked_steps(trace: Trace, careful: bool = True) -> tuple[str, str]:
    """Returns the worked steps, and the container they end in.

    careful=False: the shortcut of a reader without a theory of mind: the latest placing counts as seen by all.
    Questions about the beginning have no such shortcut. Raises ValueError if the chain never learnt a place.
    """
    if trace.question.memory:
        first = trace.steps[0]
        return f"{first.container} first.", first.container
    if not careful:
        latest = [step for step in trace.steps if step.kind in PLACINGS][-1]
        return f"{_who(latest)}: all saw.", latest.container
    if trace.decisive is None:
        raise ValueError(f"{trace.question}: no character of the chain ever learnt a place")
    decisive = trace.steps[trace.decisive]
    passed = [f"{_who(step)}: {_reason(step)};" for step in reversed(trace.steps[trace.decisive + 1 :])]
    return " ".join([*passed, f"{_who(decisive)}: {_verdict(decisive, trace)}."]), decisive.container


def _who(step: Step) -> str:
    return f"{step.container} {step.actor or _NARRATED[step.kind]}"


def _reason(step: Step) -> str:
    return f"says, {step.absent[0]} doubts" if step.kind in COMMUNICATIONS else f"{step.absent[0]} away"


def _verdict(step: Step, trace: Trace) -> str:
    if step.kind not in COMMUNICATIONS:
        return "all saw"
    chain = trace.question.chain
    believer = chain[1] if len(chain) == 2 and chain[0] == step.actor else chain[0]
    return f"says, {believer} trusts"
