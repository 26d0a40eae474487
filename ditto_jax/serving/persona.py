"""Persona files → who is simulated: a name, a background, a goal, and the scene they are in.

In: YAML or JSON with the fields of `Persona`, or a request's text. Out: a `Persona`. Writes no prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditto_jax.config_io import read_yaml
from ditto_jax.errors import MissingInputError
from ditto_jax.strict import build


@dataclasses.dataclass(frozen=True)
class Persona:
    """A person and their moment. Fields that are left empty are not mentioned to the model.

    name: who they are. background: what others may see of their life, and what only they know. goal: what they are
    after in this conversation. scenario: where it happens. other: with whom. relationship: how the two stand to each
    other. manner: how they write.
    """

    name: str = ""
    background: str = ""
    goal: str = ""
    scenario: str = ""
    other: str = ""
    relationship: str = ""
    manner: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """What is known, a line for each field."""
        labels = {
            "name": "You are",
            "background": "About you",
            "scenario": "Where you are",
            "other": "You talk with",
            "relationship": "How you stand to each other",
            "goal": "What you are after",
            "manner": "How you write",
        }
        return tuple(f"{label}: {getattr(self, field)}" for field, label in labels.items() if getattr(self, field))


def read_persona(path: str | Path) -> Persona:
    """Returns the persona in a YAML or JSON file; raises MissingInputError or ConfigError naming what is wrong."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingInputError(f"persona={path}: no such file; docs/examples/persona.yaml shows one")
    return build(Persona, read_yaml(path), where=str(path))


def persona_of(value: str | Mapping[str, Any] | None, default: Persona) -> Persona:
    """Returns the persona of a request: fields on top of the default's, or a text as its background.

    Raises ConfigError for unknown fields.
    """
    if value is None:
        return default
    if isinstance(value, str):
        return dataclasses.replace(default, background=value)
    known = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    return build(Persona, {**known, **value}, where="ditto.persona")
