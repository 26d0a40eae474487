"""The chat with which a role began → the same chat under other words: its opening exchanged, the rest as it was.

In: a task, an example, a role, the chat before the role's first reply. Out: that chat, or None where the episode
did not begin with the task's opening. Encodes nothing.
"""

from __future__ import annotations

from typing import Any

from ditto_jax.tasks.base import Task
from ditto_jax.types import Chat, Example, Message


def reopened(
    task: Task[Any], example: Example, role: str, chat: Chat, was: str | None, now: str | None
) -> tuple[Message, ...] | None:
    """Returns `chat` as it would be under the words `now` (None: under x alone); `was`: the words that it began under.

    None if the chat does not begin with the opening that the task gives the role.
    """
    old, new = task.openings(example, was).get(role), task.openings(example, now).get(role)
    if old is None or new is None or tuple(chat[: len(old)]) != tuple(old):
        return None
    return (*new, *chat[len(old) :])
