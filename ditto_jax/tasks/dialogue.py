"""Helpers of episodes with several turns: a chat that only grows, and texts cut to what a model can read.

In: a port and an opening. Out: its next message, with everything that was said to it in between as one user message,
as chat templates and append-only ports demand. Decides neither who speaks next nor when to stop.
"""

from __future__ import annotations

from collections.abc import Iterable

from ditto_jax.tasks.base import ReplyPort
from ditto_jax.types import Chat, Message, Reply, Turn

_GAP = "[…]"


class Voice:
    """One participant behind a port, the policy in one role or an auxiliary model, and the chat as it sees it."""

    def __init__(self, port: ReplyPort, opening: Chat):
        self._port = port
        self._chat = list(opening)
        self._heard: list[str] = []

    @property
    def chat(self) -> tuple[Message, ...]:
        """Everything said so far, replies included; what is heard but not yet answered is left out."""
        return tuple(self._chat)

    def hear(self, text: str) -> None:
        """Adds an observation; all of them before a reply become one user message."""
        self._heard.append(text)

    async def speak(self) -> Reply:
        """Returns the next reply. An opening that ends with a user message needs no observation for the first one."""
        if self._heard:
            text = "\n".join(self._heard)
            self._heard.clear()
            if self._chat and self._chat[-1].role == "user":
                self._chat[-1] = Message("user", f"{self._chat[-1].content}\n{text}")
            else:
                self._chat.append(Message("user", text))
        reply = await self._port.reply(tuple(self._chat))
        self._chat.append(Message("assistant", reply.text))
        return reply


def cut_middle(text: str, max_words: int) -> str:
    """Returns `text`, or its first and last words around a sign of omission if it has more than `max_words`.

    Line breaks inside the kept parts stay. The same text and limit always give the same result, so that x and (x, h)
    are cut alike.
    """
    if max_words < 2:
        raise ValueError(f"max_words={max_words}: keep at least 2")
    starts = list(_word_starts(text))
    if len(starts) <= max_words:
        return text
    head = max_words - max_words // 2
    tail_start = starts[len(starts) - max_words // 2]
    return f"{text[: starts[head]].rstrip()} {_GAP} {text[tail_start:]}"


def _word_starts(text: str) -> Iterable[int]:
    inside = False
    for i, character in enumerate(text):
        if character.isspace():
            inside = False
        elif not inside:
            inside = True
            yield i


def transcript(turns: Iterable[Turn]) -> str:
    """Returns a dialogue as lines "speaker: text"."""
    return "\n".join(f"{turn.speaker}: {turn.text}" for turn in turns)
