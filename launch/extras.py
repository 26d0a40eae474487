"""Packages that only some verbs need: asked for by name before anything else happens."""

from __future__ import annotations

import importlib.util

from ditto_jax.errors import MissingInputError


def require_packages(verb: str, *names: str) -> None:
    """Raises MissingInputError, with the command that installs them, if one of the packages is not there."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingInputError(f"{verb} needs {' and '.join(missing)}: pip install 'ditto-jax[serve]'")
