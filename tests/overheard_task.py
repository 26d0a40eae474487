"""A task in which somebody speaks between two replies of the policy: who that is, the run's partners say."""

from __future__ import annotations

from pathlib import Path

from ditto_jax.config import TaskConfig
from ditto_jax.tasks.base import Ports
from ditto_jax.tasks.hitom.task import HiToM
from ditto_jax.types import Conversation, Example, Message, Turn
from tests.tiny_run import story_task

PLACE = f"{Path(__file__)}:Overheard"


class Overheard(HiToM):
    """Stories of hitom, answered, remarked upon by a bystander, and answered again."""

    name = "overheard"
    many_turns = True

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        chat = list(self.opening(example, feedback))
        first = await ports.policy().reply(chat)
        remark = await ports.llm("bystander").reply([Message("user", first.text or "nothing")])
        chat += [Message("assistant", first.text), Message("user", remark.text)]
        last = await ports.policy().reply(chat)
        turns = (Turn("policy", first.text, "policy"), Turn("bystander", remark.text, "llm"))
        turns += (Turn("policy", last.text, "policy"),)
        return Conversation((*chat, Message("assistant", last.text)), last.text, turns)


def overheard_task() -> TaskConfig:
    """Returns the task as a run's configuration names it."""
    return story_task(name=PLACE, label="overheard")
