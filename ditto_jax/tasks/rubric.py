"""Rubrics as data: dimensions with ranges and weights → the judge's reply schema, its instructions, and the score.

In: dimensions as a task defines them. Out: a pydantic model whose fields are {reasoning, score} with enforced ranges, a
section for the prompt, and scores read back from a validated reply. A score outside its range is an unreadable reply,
never clipped. Which dimensions there are, and what they are worth, is the task's business.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import pydantic


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One aspect of a rollout: its field name, range (both ends allowed), weight, and what the judge looks for."""

    name: str
    low: float
    high: float
    meaning: str
    weight: float = 1.0
    whole: bool = True  # only whole numbers


@dataclasses.dataclass(frozen=True)
class Rubric:
    """Dimensions that one reply scores together."""

    name: str
    dimensions: tuple[Dimension, ...]

    @functools.cached_property
    def reply_model(self) -> type[pydantic.BaseModel]:
        """The schema of the judge's reply: {dimension: {"reasoning": text, "score": number in range}}."""
        fields: dict[str, Any] = {}
        for dimension in self.dimensions:
            kind: Any = int if dimension.whole else float
            score = (kind, pydantic.Field(ge=dimension.low, le=dimension.high, allow_inf_nan=False))
            if dimension.whole:
                score = (int, pydantic.Field(ge=int(dimension.low), le=int(dimension.high)))
            part = pydantic.create_model(
                f"{self.name.title()}{dimension.name.title().replace('_', '').replace(' ', '')}",
                __config__=pydantic.ConfigDict(extra="ignore"),
                reasoning=(str, pydantic.Field(max_length=8000)),
                score=score,
            )
            fields[_identifier(dimension.name)] = (part, pydantic.Field(alias=dimension.name))
        return pydantic.create_model(
            f"{self.name.title()}Reply", __config__=pydantic.ConfigDict(extra="ignore", populate_by_name=True), **fields
        )

    @property
    def instructions(self) -> str:
        """What stands in the prompt: each dimension with its range and meaning."""
        lines = [f"- {d.name} ({_number(d.low)} to {_number(d.high)}): {d.meaning}" for d in self.dimensions]
        return "Score each of these independently, and give your reasoning first:\n" + "\n".join(lines)

    def scores(self, reply: pydantic.BaseModel) -> dict[str, float]:
        """Returns dimension → score of a validated reply."""
        return {d.name: float(getattr(reply, _identifier(d.name)).score) for d in self.dimensions}

    def critique(self, reply: pydantic.BaseModel) -> str:
        """Returns the judge's reasoning, a line for each dimension."""
        parts = [(d.name, getattr(reply, _identifier(d.name)).reasoning) for d in self.dimensions]
        return "\n".join(f"{name}: {text}" for name, text in parts if text)

    def weighted(self, scores: Mapping[str, float]) -> float:
        """Returns the weighted mean of the scores, each mapped from its range to 0 … 1."""
        total = sum(d.weight for d in self.dimensions)
        return sum(d.weight * (scores[d.name] - d.low) / (d.high - d.low) for d in self.dimensions) / total


def _identifier(name: str) -> str:
    return name.lower().replace(" ", "_")


def _number(value: float) -> str:
    return f"{value:g}"
