"""path.py:name → the object of that name: code that a user writes beside the project, such as a task or a judge.

In: a place as settings name it. Out: what stands there. The file is imported, so it is trusted like the project itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ditto_jax.errors import ConfigError, MissingInputError


def from_file(place: str, where: str, wanted: str, example: str) -> Any:
    """Returns what `place` names. Raises MissingInputError (no such file) or ConfigError (nothing of that name).

    where, wanted, example: for people, such as "task 'a.py:B'", "a subclass of Task" and "path.py:MyTask".
    """
    file, _, attribute = place.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise MissingInputError(f"{where}: no such file; give the path of a Python file, as in {example}")
    module = _module(path)
    if not hasattr(module, attribute):
        raise ConfigError(f"{where}: {path} has no {attribute!r}; name {wanted} in it")
    return getattr(module, attribute)


def _module(path: Path) -> ModuleType:
    """The module of a file, loaded once: dataclasses and pydantic look their module up by name."""
    unique = f"ditto_jax_own_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module
