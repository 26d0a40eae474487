"""Forms of replies, before a run begins: which tasks have any, and whether each can be kept to.

prompt → draft rollout, under `evaluation.constrained` or `rollout.constrained`

In: loaded tasks, and a check of one form. Out: nothing, or an error that names task and example. Only first replies are
looked at: what later ones must look like may depend on what was said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ditto_jax.errors import ConfigError
from ditto_jax.reply_form import FormError, ReplyForm
from ditto_jax.rollouts.prompts import LoadedTask

_CHECKED = 64  # different forms of a task


def is_held(loaded: LoadedTask) -> bool:
    """Returns whether a task says what replies to its examples look like."""
    task = loaded.task
    return any(task.reply_form(example, role, 0) for example in loaded.examples for role in task.openings(example))


def require_forms(tasks: Sequence[LoadedTask], where: str, check: Callable[[ReplyForm], None]) -> None:
    """Returns nothing; raises ConfigError if no task has forms, FormError for one that `check` refuses.

    where: the setting that asks for forms.
    """
    if not any(map(is_held, tasks)):
        labels = ", ".join(loaded.label for loaded in tasks)
        raise ConfigError(f"{where}: none of the tasks {labels} says what its replies look like; set it to false")
    for loaded in tasks:
        found: dict[ReplyForm, str] = {}
        for example in loaded.examples:
            for role in loaded.task.openings(example):
                form = loaded.task.reply_form(example, role, 0)
                if form is not None and len(found) < _CHECKED:
                    found.setdefault(form, example.id)
        for form, example_id in found.items():
            try:
                check(form)
            except FormError as error:
                raise FormError(f"{where}: {loaded.label}, example {example_id}: {error}") from None
