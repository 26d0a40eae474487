"""A row's payload ↔ the scene as one side lives it: what is shared, what is its own, what belongs to the other side.

In: texts of a scenario and two sides. Out: the payload of an example, and back from it a scene seen from the side that
the policy plays, or from its partner's. Reads no file and writes no prompt.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ditto_jax.tasks.dialogue import cut_middle
from ditto_jax.tasks.splits import group_name
from ditto_jax.types import Example

POSITIONS = ("agent1", "agent2")
_PLACEHOLDER = re.compile(r"\b([Aa]gent)[ _]?([12])\b")


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two. background may hold its secrets; `secret` is the one that is known apart, or "".

    facts: what rules know about a generated side (a limit, a calendar), as plain values with text keys.
    """

    name: str
    background: str
    goal: str
    secret: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def cut(self, max_words: int) -> Side:
        """Returns the same side with long texts cut in the middle."""
        background, goal = cut_middle(self.background, max_words), cut_middle(self.goal, max_words)
        return dataclasses.replace(self, background=background, goal=goal)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Two sides and what both know. own: the side that looks; opens: whether it speaks first.

    kind: the generator's kind of scene, "" for scenes from files. note: what only the judge may know.
    """

    scenario: str
    relationship: str
    own: Side
    other: Side
    opens: bool
    kind: str = ""
    note: str = ""

    @property
    def mirrored(self) -> Scene:
        """The same scene as the other side lives it."""
        return dataclasses.replace(self, own=self.other, other=self.own, opens=not self.opens)

    @property
    def known(self) -> str:
        """Everything that the side which looks is told."""
        return "\n".join((self.scenario, self.relationship, self.own.background, self.own.goal))


def scene_payload(
    scenario: str,
    relationship: str,
    sides: tuple[Side, Side],
    position: str,
    source: str,
    *,
    group: str = "",
    kind: str = "",
    note: str = "",
    hard: bool | None = None,
) -> dict[str, Any]:
    """Returns the payload of an example; "Agent1" and "Agent2" become the names wherever a player reads them.

    position: which side the policy plays. group: what tells scenarios apart; default: the scenario before names.
    """
    names = tuple(side.name for side in sides)
    payload: dict[str, Any] = {
        "scenario": with_names(scenario, names),
        "relationship": with_names(relationship, names),
        "eval_position": position,
        "group": group_name("scenario", group or scenario),
        "source": source,
        "kind": kind,
        "note": note,
        "hard": "unknown" if hard is None else "yes" if hard else "no",
    }
    for key, side in zip(POSITIONS, sides, strict=True):
        payload[key] = {**dataclasses.asdict(side), "goal": with_names(side.goal, names)}
    return payload


def scene_of(example: Example, max_words: int) -> Scene:
    """Returns an example's scene from the policy's side; texts longer than `max_words` words lose their middle."""
    payload = example.payload
    own, other = POSITIONS if payload["eval_position"] == "agent1" else POSITIONS[::-1]
    return Scene(
        scenario=cut_middle(payload["scenario"], max_words),
        relationship=cut_middle(payload["relationship"], max_words),
        own=Side(**payload[own]).cut(max_words),
        other=Side(**payload[other]).cut(max_words),
        opens=own == "agent1",
        kind=payload["kind"],
        note=payload["note"],
    )


def with_names(text: str, names: tuple[str, ...]) -> str:
    """Returns `text` with the names in place of Agent1, Agent2, agent1 and agent2."""
    return _PLACEHOLDER.sub(lambda found: names[int(found[2]) - 1], text)
