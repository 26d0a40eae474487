"""Keys that one sampler call leaves to the next: prefixes of groups, and what their rows ran after them.

A refined prompt starts as its draft's prompt did, and a later turn of an episode as the turns before it. How much of a
new request is there already is found by comparing token ids, never assumed: templates and token merges decide. Keys are
valid for the weights that made them, which the sampler checks. Runs nothing on a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ditto_jax.text.chat import common_prefix


@dataclasses.dataclass(frozen=True)
class KeptRow:
    """A row of an earlier call, of `slot`: ids int32[n] of the tokens that it ran after the slot's prefix, and the
    `columns` int32[n] of its ring that hold their keys.
    """

    slot: int
    row: int
    ids: np.ndarray
    columns: np.ndarray


NOTHING_KEPT = KeptRow(0, 0, np.zeros(0, np.int32), np.zeros(0, np.int32))


@dataclasses.dataclass(frozen=True)
class KeptGroup:
    """Where an earlier call left the keys of a group: the slot that holds its prefix `ids`, and the rows beside it."""

    slot: int
    ids: np.ndarray
    rows: tuple[KeptRow, ...] = ()


def kept_row(slot: int, row: int, ids: np.ndarray, start: int, positions: np.ndarray) -> KeptRow:
    """Returns what the ring still holds of a row that ran `ids` from position `start` on.

    positions int32[C]: of the row's columns, -1 where there is no token. A ring may have been written over.
    """
    columns = np.full(len(ids), -1, np.int32)
    of_row = np.flatnonzero((positions >= start) & (positions < start + len(ids)))
    columns[positions[of_row] - start] = of_row
    missing = np.flatnonzero(columns < 0)
    held = int(missing[0]) if len(missing) else len(ids)
    return KeptRow(slot, row, ids[:held], columns[:held])


def longest_kept(rows: Sequence[KeptRow], ids: np.ndarray) -> tuple[KeptRow, int] | None:
    """Returns the row that shares most leading tokens with `ids`, and how many; at least one token is left to run."""
    shared = [min(common_prefix(row.ids, ids), len(ids) - 1) for row in rows]
    if not shared or max(shared) < 1:
        return None
    best = int(np.argmax(shared))
    return rows[best], shared[best]
