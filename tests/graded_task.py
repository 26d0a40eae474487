"""A task whose drafts only a language model can score, and a server that grades them: the same text, the same grade."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pydantic

from ditto_jax.config import TaskConfig
from ditto_jax.judge.fence import fence
from ditto_jax.tasks.base import JudgeRequest
from ditto_jax.tasks.hitom.task import HiToM
from ditto_jax.types import Conversation, Example, Message, Outcome, Verdict
from tests.judge.server import says
from tests.tiny_run import story_task

WORDS = "who was there?"
PLACE = f"{Path(__file__)}:Graded"


class Grade(pydantic.BaseModel):
    grade: int = pydantic.Field(ge=0, le=10)


class Graded(HiToM):
    """Stories of hitom, graded from 0 to 10."""

    name = "graded"

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        return None

    def score_requests(self, example: Example, conversation: Conversation) -> dict[str, JudgeRequest]:
        message = Message("user", f"Grade this answer.\n{fence(conversation.reply)}")
        return {"grade": JudgeRequest((message,), Grade, "graded-1")}

    def judged_score(self, example: Example, conversation: Conversation, replies: Any) -> Verdict:
        return Verdict(Outcome.OK, score=replies["grade"].grade / 10)


def graded_task(**changes: Any) -> TaskConfig:
    """Returns the task as a run's configuration names it."""
    return story_task(**{"name": PLACE, "label": "graded", **changes})


def grade_of(text: str, most: int = 10) -> int:
    """Returns the grade of a request's text."""
    return hashlib.sha256(text.encode()).digest()[0] % (most + 1)


def grades(handler: BaseHTTPRequestHandler) -> None:
    """Grades and comments; the model "strict" gives a point less where it can."""
    request = handler.received.json  # type: ignore[attr-defined]
    text = request["messages"][-1]["content"]
    if "grade" in json.dumps(request.get("response_format", {})):
        grade = max(0, grade_of(text) - (request["model"] == "strict"))
        says(json.dumps({"grade": grade}))(handler)
    else:
        says(json.dumps({"feedback": WORDS}))(handler)
