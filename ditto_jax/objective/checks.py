"""Checks that the parts of an objective share: one sentence each, with a value that works."""

from __future__ import annotations

import difflib
import math
from typing import Annotated, Any, get_args

import pydantic

from ditto_jax.errors import ConfigError
from ditto_jax.types import ViewRole


def _role_named(value: Any) -> Any:
    """Returns the role that a word names; anything else as it is, for pydantic to judge."""
    if not isinstance(value, str):
        return value
    known = {role.name.lower(): role for role in ViewRole}
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"objective.roles: unknown role {value!r}; {hint}known roles: {', '.join(known)}")
    return known[value]


# A role as a word in YAML: draft, refined_plain, ...
Role = Annotated[
    ViewRole, pydantic.BeforeValidator(_role_named), pydantic.PlainSerializer(lambda role: ViewRole(role).name.lower())
]
Roles = tuple[Role, ...]


def role_names(roles: tuple[ViewRole, ...]) -> str:
    """Returns the roles as one word, such as "draft+refined_plain"; names metrics and messages."""
    return "+".join(role.name.lower() for role in roles)


def check(holds: bool, field: str, value: Any, rule: str, works: Any) -> None:
    """Returns nothing; raises ConfigError with the field, its value, the rule and a value that works."""
    if not holds:
        raise ConfigError(f"objective.{field}={value!r}: {rule}; {works} works")


def check_choice(field: str, value: str, choices: Any) -> None:
    """Returns nothing; raises ConfigError for a value that the Literal `choices` does not list."""
    known = get_args(choices)
    check(value in known, field, value, f"must be one of {', '.join(known)}", known[0])


def check_roles(owner: str, roles: tuple[ViewRole, ...]) -> None:
    """Returns nothing; raises ConfigError for no role or the same twice."""
    if not roles or len(set(roles)) != len(roles):
        raise ConfigError(
            f"objective, {owner}: roles={roles!r} must be non-empty and distinct; (ViewRole.DRAFT,) works"
        )


def at_least(value: float, smallest: float) -> bool:
    """Returns whether the value is finite and no smaller."""
    return math.isfinite(value) and value >= smallest
