"""Recorded and regenerated rollouts → where they differ, down to the first token. Equal means equal bit for bit.

In: two lists of records (`records.rollout_rows`) of one step. Out: one `Difference` for every rollout that is not the
same; fields that the record does not have, and what a shadow judge thought, are not compared.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ditto_jax.replay.past import Row

ONLY_THEN, ONLY_NOW = "only in the record", "not in the record"
_NOT_COMPARED = frozenset({"shadow"})


@dataclasses.dataclass(frozen=True)
class TokenDifference:
    """The first token that differs. position: in the transcript named `transcript`, from 0; then, now: ids, None past
    the end.
    """

    transcript: str
    position: int
    then: int | None
    now: int | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """A rollout that was not regenerated. fields: what differs; token: None where all tokens are equal. logprob: the
    largest difference of log-probabilities of equal tokens, in nats.
    """

    step: int
    prompt: int
    prompt_id: str
    sample: int
    role: str
    fields: tuple[str, ...]
    token: TokenDifference | None
    logprob: float


def differences(step: int, recorded: Sequence[Row], regenerated: Sequence[Row]) -> list[Difference]:
    """Returns the rollouts that differ, those of the record first and in its order."""
    then = {_slot(row): row for row in recorded}
    now = {_slot(row): row for row in json.loads(json.dumps(list(regenerated)))}  # as a record holds values
    found = []
    for slot in {**then, **now}:
        old, new = then.get(slot), now.get(slot)
        if old is None or new is None:
            known = old or new or {}
            found.append(_difference(step, known, (ONLY_THEN if new is None else ONLY_NOW,), None, 0.0))
            continue
        fields = tuple(name for name in old if name not in _NOT_COMPARED and old[name] != new.get(name))
        if fields:
            token = _first_token(old["tokens"], new["tokens"])
            found.append(_difference(step, old, fields, token, _logprob_gap(old, new)))
    return found


def _slot(row: Row) -> tuple[Any, ...]:
    return row["prompt_index"], row["role"], row["sample"]


def _difference(
    step: int, row: Row, fields: tuple[str, ...], token: TokenDifference | None, logprob: float
) -> Difference:
    return Difference(step, row["prompt_index"], row["prompt_id"], row["sample"], row["role"], fields, token, logprob)


def _first_token(old: Mapping[str, Sequence[int]], new: Mapping[str, Sequence[int]]) -> TokenDifference | None:
    for name in {**old, **new}:
        mine, theirs = old.get(name, []), new.get(name, [])
        if mine != theirs:
            position = _agreement(mine, theirs)
            at = [ids[position] if position < len(ids) else None for ids in (mine, theirs)]
            return TokenDifference(name, position, at[0], at[1])
    return None


def _agreement(mine: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = enumerate(zip(mine, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(mine), len(theirs)))


def _logprob_gap(old: Row, new: Row) -> float:
    gaps = [0.0]
    for name, ids in old["tokens"].items():
        same = _agreement(ids, new["tokens"].get(name, []))
        pairs = zip(old["logprobs"][name][:same], new["logprobs"].get(name, [])[:same], strict=False)
        gaps += [abs(a - b) for a, b in pairs]
    return max(gaps)
