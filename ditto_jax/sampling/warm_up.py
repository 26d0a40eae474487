"""Every program that sampler calls of given shapes may run, run once on empty slots, so that none is compiled later.

In: the shapes of all calls (`slot_shapes.reachable`), and how slots of them are made. Out: nothing but compiled
programs. Slots go through the sizes, ring widths and admissions that a call can bring them to; nothing is drawn.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from ditto_jax.sampling.slot_shapes import CallShapes, SamplerShapes
from ditto_jax.sampling.slot_state import SlotState, no_prompts
from model.generate import Kept

MakeSlots = Callable[[CallShapes, Kept | None], SlotState]


def visit(classes: Sequence[CallShapes], make: MakeSlots, many_turns: bool) -> None:
    """Runs on empty slots whatever calls of these shapes may run, one after the other.

    many_turns: whether a call may leave the keys of its rows, and not of prefixes alone, to the next.
    """
    for shapes in classes:
        for size in range(1 + len(shapes.fewer_slots)):
            _through_all_widths(make(shapes, None), size)
        for width in range(1, len(shapes.ring)):
            state = make(shapes, None)
            _widen(state, width)
            for _ in shapes.fewer_slots:
                _shrink(state)
    for number, earlier in enumerate(_different_in_what_they_leave(classes, many_turns)):
        for width in range(len(earlier.ring) if many_turns else 1):
            state = make(earlier, None)
            _widen(state, width)
            _copying(classes, make, state.leaves_behind(many_turns), admits=not number and not width)


def visit_open(buckets: SamplerShapes, shapes: CallShapes, make: MakeSlots) -> int:
    """Runs on empty slots whatever a call that takes requests while it runs may run; returns how many admissions."""
    state = make(shapes, None)
    widths = list(itertools.product(buckets.prefix, buckets.tail))
    for prefix, tail in widths:
        prompts = no_prompts(dataclasses.replace(shapes, prefix=prefix, tail=tail), shapes.admissions[0])
        state.admit(prompts, copies=False)
    state.decode(np.ones(state.rows, bool), state.rows)
    return len(widths)


def _through_all_widths(state: SlotState, shrunk: int) -> None:
    """Decodes at every width of the ring, in slots made smaller `shrunk` times; only whole slots admit prompts."""
    for _ in range(shrunk):
        _shrink(state)
    for width in state.shapes.ring:
        if width > state.ring:
            state.widen()
        for size in set(state.shapes.admissions) if not shrunk else ():
            state.admit(no_prompts(state.shapes, size), copies=False)
        state.decode(np.ones(state.rows, bool), state.rows)


def _copying(classes: Sequence[CallShapes], make: MakeSlots, kept: Kept, admits: bool) -> None:
    """Copies keys from a call that has left `kept`; `admits`: and prompts with them, which does not depend on it."""
    for shapes in classes:
        state = make(shapes, kept)
        for size in set(shapes.admissions):
            state.carried_over(no_prompts(shapes, size))
        for width in shapes.ring if admits else ():
            if width > state.ring:
                state.widen()
            for size in set(shapes.admissions):
                state.admit(no_prompts(shapes, size), copies=True)


def _different_in_what_they_leave(classes: Sequence[CallShapes], with_rows: bool) -> list[CallShapes]:
    """Returns one of all shapes whose calls leave arrays of the same shapes."""
    left = {(one.slots, one.prefix, *((one.rows_per_slot, one.ring) if with_rows else ())): one for one in classes}
    return list(left.values())


def _widen(state: SlotState, times: int) -> None:
    for _ in range(times):
        state.widen()


def _shrink(state: SlotState) -> None:
    fewer = state.fewer_slots
    assert fewer is not None
    state.shrink([0] * fewer)
