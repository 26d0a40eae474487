"""A scene of our own in the benchmark's schema, and ports that say their lines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditto_jax.tasks.coser.files import released_circumstance
from ditto_jax.tasks.coser.task import CoSER, CoSEROptions
from ditto_jax.types import Chat, Conversation, Example, FinishReason, Reply

ROW: dict[str, Any] = {
    "book": "The Lamp Shop",
    "plot": {
        "summary": "Two sisters have inherited a shop and disagree about it.",
        "key_characters": [{"name": "Ada", "description": "The elder, who kept the shop."}],
    },
    "i_p": 3,
    "i_c": 0,
    "character_profiles": {"Ada": "Careful and proud.", "Bea": "Quick, restless, kind.", "Cob": ""},
    "dialogues": [
        {"character": "Environment", "message": "Rain runs down the shop window."},
        {
            "character": "Ada",
            "message": "[She will ask again.] (polishing a lamp) You are late; the shutters are up.",
        },
        {"character": "Bea", "message": "(shaking her umbrella) I have found a buyer for the shop."},
        {"character": "Ada", "message": "Then you may lose him again before supper is on the table."},
    ],
    "speaking_characters_w_env": ["Ada", "Bea", "Cob", "Environment"],
    "major_characters": ["Ada", "Bea", "Nobody"],
    "key_characters": [
        {"name": "Ada", "thought": "Hopes that Bea stays."},
        {"name": "Bea", "motivation": "Wants out."},
    ],
    "scenario": "Evening in the shop. The sisters are about to close.",
    "tag": "ood",
}


def example_of(**changes: Any) -> Example:
    """The scene as a released row, some of its fields or of the row's flags changed."""
    flags = {name: changes.pop(name) for name in ("wo_thought", "continue_from") if name in changes}
    return released_circumstance(Path("f.parquet"), "row[0]", "coser-0", {"circumstance": {**ROW, **changes}, **flags})


class Port:
    """Says its lines in turn, the last one again and again; keeps the chats it was shown. Exceptions are raised."""

    def __init__(self, *lines: str | Exception):
        self.lines, self.seen = list(lines), []

    async def reply(self, chat: Chat) -> Reply:
        if self.seen:
            assert tuple(chat[: len(self.seen[-1])]) == self.seen[-1], "chats only grow"
        self.seen.append(tuple(chat))
        line = self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]
        if isinstance(line, Exception):
            raise line
        return Reply(line, FinishReason.STOP)


class Company:
    """Ports by role; asking for one that is not there fails."""

    def __init__(self, policy: Mapping[str, Port], llm: Mapping[str, Port]):
        self._policy, self._llm = policy, llm

    def policy(self, role: str = "policy") -> Port:
        return self._policy[role]

    def llm(self, role: str) -> Port:
        return self._llm[role]


def play(
    policy: Mapping[str, Port], llm: Mapping[str, Port], example: Example, feedback: str | None = None, **options: Any
) -> Conversation:
    """One episode."""
    return asyncio.run(CoSER(CoSEROptions(**options)).episode(example, Company(policy, llm), feedback))


def named(*names: str) -> Port:
    """A director who names these in turn."""
    return Port(*(f"Reasoning: so.\nNext speaker: {name}" for name in names))
