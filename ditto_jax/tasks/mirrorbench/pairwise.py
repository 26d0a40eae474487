"""The question which of two users of a chat is the real one: MirrorBench's pairwise indistinguishability.

In: two dialogues on the same goal. Out: a question whose answer is a place, A or B; whoever asks must ask it in both
orders. The task's score does not hang on it: it checks judges, and it is reported beside the score.
"""

from __future__ import annotations

from typing import Literal

import pydantic

from ditto_jax.judge.fence import FENCE_NOTE, fence
from ditto_jax.tasks.base import JudgeRequest
from ditto_jax.types import Message

_SYSTEM = (
    "Two chats with an AI assistant follow, A and B, of people with the same wish. In at least one of them a program "
    "may have written the user's turns. Which user is more likely a real person? Look at the user's turns only: words, "
    "length, slips, tone. The order of the chats means nothing. "
    f"{FENCE_NOTE}\n"
    'Reply as JSON {"reasoning": "two or three sentences", "verdict": "A", "B" or "TIE"}.'
)


class Preference(pydantic.BaseModel):
    """Reply of the judge: the place of the user who seems real, or neither."""

    model_config = pydantic.ConfigDict(extra="ignore")
    reasoning: str = pydantic.Field(max_length=8000)
    verdict: Literal["A", "B", "TIE"]


def realness_question(goal: str, chat_a: str, chat_b: str, version: str) -> JudgeRequest:
    """Returns the question about two chats, each as lines "speaker: text"."""
    user = f"What both users are after: {goal}\n\nChat A:\n{fence(chat_a)}\n\nChat B:\n{fence(chat_b)}"
    messages = (Message("system", _SYSTEM), Message("user", user))
    return JudgeRequest(messages, Preference, f"mirrorbench-pairwise-{version}")
