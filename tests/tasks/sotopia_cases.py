"""A scene, ports that say their lines, and plays of both, for the tests of the task `sotopia`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

from ditto_jax.tasks.sotopia.actions import Action
from ditto_jax.tasks.sotopia.released import released_scene
from ditto_jax.tasks.sotopia.task import Sotopia, SotopiaOptions
from ditto_jax.types import Chat, Conversation, Example, FinishReason, Reply

ROW = {
    "scenario": "Agent1 and agent2 share a kitchen.",
    "agent1_name": "Ada",
    "agent2_name": "Bo",
    "agent1_background": "Ada is a cook. Secret: she cannot stand the smell of garlic.",
    "agent2_background": "Bo is a pilot. Secret: he broke the blue teapot of his grandmother.",
    "agent1_goal": "Get Agent2 to wash the dishes.",
    "agent2_goal": "Avoid every question about the missing teapot until tomorrow evening.",
    "relationship": "flatmates",
    "eval_position": "agent1",
}
TASK = Sotopia(SotopiaOptions())


def example(**changes: object) -> Example:
    return released_scene(Path("f.parquet"), "row[0]", "sotopia-0", {**ROW, **changes})


def say(text: str, kind: str = "speak") -> str:
    return Action(kind, text).as_json()


class Port:
    """Says its lines in turn, the last one for ever; keeps the chats it was shown. Exceptions are raised."""

    def __init__(self, *lines: str | Exception):
        self.lines, self.seen = list(lines), []

    async def reply(self, chat: Chat) -> Reply:
        self.seen.append(tuple(chat))
        line = self.lines.pop(0) if len(self.lines) > 1 else self.lines[0]
        if isinstance(line, Exception):
            raise line
        return Reply(line, FinishReason.STOP)


class Script:
    """The embedded partner."""

    def __init__(self, task: Sotopia, scene: Example):
        self.task, self.scene, self.rng = task, scene, random.Random(0)

    async def reply(self, chat: Chat) -> Reply:
        text = self.task.scripted_reply(self.scene, "partner", chat, self.rng)
        assert text is not None
        return Reply(text, FinishReason.STOP)


class Company:
    def __init__(self, own: Port, partner: Port | Script):
        self.own, self.partner = own, partner

    def policy(self, role: str = "policy") -> Port:
        return self.own

    def llm(self, role: str) -> Port | Script:
        assert role == "partner"
        return self.partner


def play(
    own: Port | Sequence[str],
    partner: Port | Script | None = None,
    scene: Example | None = None,
    task: Sotopia = TASK,
    feedback: str | None = None,
) -> Conversation:
    port = own if isinstance(own, Port) else Port(*own)
    company = Company(port, partner or Port(say("Hm.")))
    return asyncio.run(task.episode(scene or example(), company, feedback))
