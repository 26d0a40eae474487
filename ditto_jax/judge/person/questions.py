"""Requests that wait for a person: each stays until it is answered, declined, or its sender has gone.

In: the body of a chat-completions request. Out: what the page shows of it, and the text that answers it. An answer is
passed on as it was typed: whether it satisfies the schema is for the run to say, as with any other judge.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from ditto_jax.judge.replies import SCHEMA_LEAD
from ditto_jax.text.visible_text import visible


class _Said(pydantic.BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str


class _Schema(pydantic.BaseModel):
    body: dict[str, Any] = pydantic.Field(alias="schema")


class _Format(pydantic.BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: _Schema | None = None


class Asked(pydantic.BaseModel):
    """The fields of a request that matter to a person; all others are ignored."""

    model: str = "person"
    messages: list[_Said] = pydantic.Field(min_length=1)
    max_tokens: int | None = None
    response_format: _Format = _Format()

    @property
    def is_probe(self) -> bool:
        """Whether this is the check before a run, which asks for one token: nobody can say less."""
        return self.max_tokens == 1


@dataclasses.dataclass(frozen=True)
class Answered:
    """What the person typed. text: the reply, or why it was declined."""

    text: str
    declined: bool = False


class Questions:
    """All requests that wait, in the order in which they came."""

    def __init__(self):
        self.answered = 0
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[Asked, asyncio.Future[Answered]]] = {}

    async def ask(self, asked: Asked) -> Answered:
        """Returns the person's answer once there is one; a caller that is cancelled takes its question back."""
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = (asked, answer)
        try:
            return await answer
        finally:
            del self._waiting[number]

    def answer(self, number: int, answered: Answered) -> bool:
        """Gives an answer; returns False if the question is not waiting any more."""
        asked, answer = self._waiting.get(number, (None, None))
        if asked is None or answer is None or answer.done():
            return False
        answer.set_result(answered)
        self.answered += 1
        return True

    def shown(self) -> Mapping[str, Any]:
        """Returns what the page shows: the questions that wait, and how many have been answered."""
        waiting = [_shown(number, asked) for number, (asked, answer) in self._waiting.items() if not answer.done()]
        return {"waiting": waiting, "answered": self.answered}


def _shown(number: int, asked: Asked) -> dict[str, Any]:
    messages = [{"role": said.role, "text": visible(_without_schema(said.content))} for said in asked.messages]
    form = asked.response_format
    schema = form.json_schema.body if form.json_schema is not None else _schema_in(asked.messages[-1].content)
    return {"number": number, "model": visible(asked.model), "messages": messages, "schema": schema}


def _without_schema(content: str) -> str:
    """The message without the instruction that repeats the schema: the form of the page says it better."""
    return content.rpartition(SCHEMA_LEAD)[0].rstrip() if _schema_in(content) is not None else content


def _schema_in(content: str) -> dict[str, Any] | None:
    """The schema that ends a message, or None. Only the end counts: what the policy wrote stands before it."""
    _, lead, schema = content.rpartition(SCHEMA_LEAD)
    if not lead:
        return None
    try:
        found = json.loads(schema)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
