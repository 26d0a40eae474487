"""Reads released rows of the task `sotopia`: one `extra_info` becomes one example.

In: a mapping with names, backgrounds and goals of both agents. Out: an example, or a DataError with file, row, field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditto_jax.tasks.fields import Fields
from ditto_jax.tasks.sotopia.scene import POSITIONS, Side, scene_payload
from ditto_jax.types import Example


def released_scene(file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
    """Returns one validated example. Raises DataError (file, row, field, rule)."""
    row = Fields(file, where, info)
    first, second = (
        Side(
            name=row.text(f"{agent}_name"),
            background=row.text(f"{agent}_background", empty=True),
            goal=row.text(f"{agent}_goal"),
        )
        for agent in POSITIONS
    )
    if first.name == second.name:
        raise row.error("agent2_name", "must differ from agent1_name: turns are told apart by name")
    payload = scene_payload(
        row.text("scenario"),
        row.text("relationship", empty=True),
        (first, second),
        row.one_of("eval_position", POSITIONS, default=POSITIONS[0]),
        "released",
        hard=row.flag("hard") if row.has("hard") else None,
    )
    return Example(task="sotopia", id=example_id, payload=payload, gold="")
