"""What a compiled program moves between devices: its collectives, read from the text of the compiled HLO.

compiled program → **list of collectives** → which of them break a rule

A collective inside a loop is listed once, whatever the number of turns. Bytes are those of the result on one device.
Three rules for all-gathers: none is larger than the parameters of one layer, none yields logits over the vocabulary,
none yields keys or values. Knows shapes and names only; measures nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterator, Sequence

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_OPERATION = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(KINDS)}|ragged-all-to-all)(-start)?\(")
_ARRAY = re.compile(r"(?P<type>pred|token|[a-z]+\d+[a-z0-9]*)\[(?P<sizes>[\d,]*)\]")
_NAME = re.compile(r'op_name="(?P<name>[^"]*)"')
_MARKS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "LayoutConstraint", "Sharding"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation: what it yields on one device, and the traced operation that it comes from."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    origin: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.dtype}{list(self.shape)} ({self.bytes / 2**20:.2f} MiB) of {self.origin or 'unnamed'}"
        )


def collectives(hlo: str) -> list[Collective]:
    """Returns the collectives in `hlo`, the text of a compiled program (`compiled.as_text()`), in its order.

    Of a collective over several arrays each array is listed; of an asynchronous start, whose result repeats the
    operands, the largest array alone.
    """
    found = []
    for line in hlo.splitlines():
        match = _OPERATION.search(line)
        if match is None:
            continue
        name = _NAME.search(line)
        origin = name["name"] if name else ""
        arrays = [_collective(match["kind"], array, origin) for array in _ARRAY.finditer(match["result"])]
        found += [max(arrays, key=lambda one: one.bytes)] if f"{match['kind']}-start(" in line else arrays
    return found


def custom_calls(hlo: str) -> dict[str, int]:
    """Returns the targets of custom calls in a compiled program and how often each is written there.

    "tpu_custom_call" is a Pallas kernel. Marks that hold no code are left out.
    """
    targets = re.findall(r'custom_call_target="([^"]+)"', hlo)
    return {name: targets.count(name) for name in sorted(set(targets) - _MARKS)}


def _collective(kind: str, array: re.Match[str], origin: str) -> Collective:
    shape = tuple(int(size) for size in array["sizes"].split(",") if size)
    return Collective(kind, array["type"], shape, math.ceil(math.prod(shape) * _bits(array["type"]) / 8), origin)


def _bits(dtype: str) -> int:
    """Of an element as it is stored: s4 is 4, f8e4m3fn is 8, pred is a byte."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


def largest(found: Sequence[Collective]) -> dict[str, Collective]:
    """Returns the largest collective of each kind that occurs."""
    kinds = sorted({one.kind for one in found})
    return {kind: max((one for one in found if one.kind == kind), key=lambda one: one.bytes) for kind in kinds}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the rules measure by.

    layer_bytes: of one layer's parameters as stored, over all devices. vocab and hidden: of the model. head_dim, and
    columns: how many key columns the arrays of keys and values have, in all devices together.
    """

    layer_bytes: int
    vocab: int
    hidden: int
    head_dim: int
    columns: Collection[int]


def forbidden(found: Sequence[Collective], sizes: Sizes) -> dict[str, list[Collective]]:
    """Returns the all-gathers that break each rule, by the rule's name: "larger than a layer", "logits", "keys"."""
    gathers = [one for one in found if one.kind == "all-gather"]
    return {
        "larger than a layer": [one for one in gathers if one.bytes > sizes.layer_bytes],
        "logits": [one for one in gathers if _is_logits(one.shape, sizes)],
        "keys": [one for one in gathers if _is_keys(one.shape, sizes)],
    }


def _is_logits(shape: tuple[int, ...], sizes: Sizes) -> bool:
    """Whether neighbouring dimensions span the vocabulary (up to padding) and the others are not a table's width."""
    padded = sizes.vocab * 1.01
    for run in _runs(shape):
        others = math.prod(shape) // math.prod(run)
        if sizes.vocab <= math.prod(run) <= padded and others % sizes.hidden:
            return True
    return False


def _runs(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for start, end in itertools.combinations(range(len(shape) + 1), 2):
        yield shape[start:end]


def _is_keys(shape: tuple[int, ...], sizes: Sizes) -> bool:
    """Whether one dimension is a head's width and another counts key columns."""
    rest = list(shape)
    if sizes.head_dim not in rest:
        return False
    rest.remove(sizes.head_dim)
    return any(size in sizes.columns for size in rest)
