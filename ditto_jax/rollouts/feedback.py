"""Feedback words → the prompt of a refined rollout: where h stands in (x, h), and a control arm without content.

In: a chat x and words h. Out: the same chat with h at the end of its last user message (so that x and (x, h) share
their longest prefix) or in a private system block. It does not ask for feedback, filter it, or show the draft.
"""

from __future__ import annotations

import random

from ditto_jax.errors import ConfigError
from ditto_jax.types import Chat, Message

PLACEMENTS = ("end_of_user", "system")

_CONTENT_FREE = (
    "that is not right, look again.",
    "this is wrong, try again.",
    "not right yet, think again.",
    "no, look at it again.",
    "wrong, go over it again.",
    "that was not it, try again.",
    "look again, that is wrong.",
    "think again, this is not right.",
    "try once more, that was wrong.",
    "no, that is not it.",
)


def with_feedback(chat: Chat, feedback: str, placement: str = "end_of_user") -> tuple[Message, ...]:
    """Returns the chat (x, h).

    placement: "end_of_user" appends a line "Hint: h" to the last user message; "system" adds a private note to the
    system message, which is created if there is none. Raises ConfigError for another placement, ValueError without a
    user message.
    """
    messages = list(chat)
    if placement == "end_of_user":
        last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
        if last is None:
            raise ValueError("with_feedback: the chat has no user message to append to")
        messages[last] = Message("user", f"{messages[last].content}\nHint: {feedback}")
    elif placement == "system":
        note = f"Private note, for you alone: {feedback}"
        if messages and messages[0].role == "system":
            old = messages[0].content
            messages[0] = Message("system", f"{old}\n\n{note}" if old else note)
        else:
            messages.insert(0, Message("system", note))
    else:
        raise ConfigError(f"feedback_placement={placement!r}: must be one of {', '.join(PLACEMENTS)}")
    return tuple(messages)


def content_free_feedback(rng: random.Random) -> str:
    """Returns words that say only that the draft is wrong: the control that shows whether content matters."""
    return rng.choice(_CONTENT_FREE)
