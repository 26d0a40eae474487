"""Task name → task. The built-in tasks, and those that installed packages add by entry point.

In: a name and options as plain values. Out: the task. A package adds tasks with the entry point group
"ditto_jax.tasks", each naming a subclass of `Task`. Unknown names are errors: no row is ever handed to some default
task.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from ditto_jax.errors import ConfigError
from ditto_jax.tasks.base import Task, options_from

GROUP = "ditto_jax.tasks"


def _hitom() -> type[Task]:
    from ditto_jax.tasks.hitom.task import HiToM

    return HiToM


def _paratomi() -> type[Task]:
    from ditto_jax.tasks.paratomi.task import ParaToMi

    return ParaToMi


# Loaded when asked for: a task may need packages that others do not.
_BUILT_IN: Mapping[str, Callable[[], type[Task]]] = {"hitom": _hitom, "paratomi": _paratomi}


def task_names() -> tuple[str, ...]:
    """Returns the names of all tasks that can be used here, built-in ones first."""
    return (*_BUILT_IN, *sorted(set(entry_points(group=GROUP).names) - set(_BUILT_IN)))


def task_type(name: str) -> type[Task]:
    """Returns the class of a task. Raises ConfigError for unknown names and for entry points that hold no task."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        near = difflib.get_close_matches(name, task_names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"task {name!r} is unknown; {hint}known tasks: {', '.join(task_names())}")
    loaded = found[0].load()
    if not (isinstance(loaded, type) and issubclass(loaded, Task)):
        raise ConfigError(f"task {name!r}: the entry point {found[0].value!r} must name a subclass of Task")
    return loaded


def get_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Returns a task with options built from plain values.

    Raises ConfigError naming the nearest known task or option for unknown ones, and the rule for values that cannot
    work.
    """
    found = task_type(name)
    return found(options_from(found, options or {}))
