"""Task name → task. The built-in tasks, those that installed packages add by entry point, and files of one's own.

In: a name and options as plain values. Out: the task. A package adds tasks with the entry point group
"ditto_jax.tasks", each naming a subclass of `Task`; "path.py:MyTask" names one in a file. Unknown names are errors: no
row is ever handed to some default task.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from ditto_jax.errors import ConfigError
from ditto_jax.own_code import from_file
from ditto_jax.tasks.base import Task, options_from
from ditto_jax.tasks.released import SOUL, canonical, unusable

GROUP = "ditto_jax.tasks"

# Loaded when asked for: a task may need packages that others do not.
_BUILT_IN: Mapping[str, str] = {
    "hitom": "ditto_jax.tasks.hitom.task:HiToM",
    "paratomi": "ditto_jax.tasks.paratomi.task:ParaToMi",
    "fantom": "ditto_jax.tasks.fantom.task:Fantom",
    "lifechoices": "ditto_jax.tasks.lifechoices.task:LifeChoices",
    "mistakes": "ditto_jax.tasks.mistakes.task:Mistakes",
    "mirrorbench": "ditto_jax.tasks.mirrorbench.task:MirrorBench",
    "coser": "ditto_jax.tasks.coser.task:CoSER",
    "userllm": "ditto_jax.tasks.userllm.task:UserLLM",
    "twinvoice": "ditto_jax.tasks.twinvoice.task:TwinVoice",
    "sotopia": "ditto_jax.tasks.sotopia.task:Sotopia",
}


def built_in_names() -> tuple[str, ...]:
    """Returns the names of the tasks of the suite that this package has."""
    return tuple(_BUILT_IN)


def task_names() -> tuple[str, ...]:
    """Returns the names of all tasks that can be used here, built-in ones first."""
    return (*_BUILT_IN, *sorted(set(entry_points(group=GROUP).names) - set(_BUILT_IN)))


def task_type(name: str) -> type[Task]:
    """Returns the class of a task. Raises ConfigError for unknown names and for what names no task."""
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if ".py:" in name:
        return _from_file(name)
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        if name in SOUL or canonical(name) != name or "not yet" in unusable(name):
            raise ConfigError(f"task {name!r} is known but not yet here; known tasks: {', '.join(task_names())}")
        near = difflib.get_close_matches(name, task_names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"task {name!r} is unknown; {hint}known tasks: {', '.join(task_names())}")
    return _checked(found[0].load(), name, f"the entry point {found[0].value!r}")


def get_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Returns a task with options built from plain values.

    Raises ConfigError naming the nearest known task or option for unknown ones, and the rule for values that cannot
    work.
    """
    found = task_type(name)
    return found(options_from(found, options or {}))


def _checked(loaded: object, name: str, where: str) -> type[Task]:
    if not (isinstance(loaded, type) and issubclass(loaded, Task)):
        raise ConfigError(f"task {name!r}: {where} must name a subclass of Task")
    return loaded


def _from_file(name: str) -> type[Task]:
    found = from_file(name, f"task {name!r}", "a subclass of Task", "path.py:MyTask")
    return _checked(found, name, name)
