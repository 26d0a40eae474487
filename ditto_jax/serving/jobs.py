"""Checked request → the asks that answer it, and how their replies are read.

In: a request in wire format, and how this server simulates. Out: a `Job`; or AskError. Draws nothing.
"""

from __future__ import annotations

import dataclasses
import secrets
from typing import Any

from ditto_jax.errors import ConfigError
from ditto_jax.serving.answer import Reading
from ditto_jax.serving.ask import Ask, AskError
from ditto_jax.serving.persona import Persona, persona_of
from ditto_jax.serving.responses import Frame
from ditto_jax.serving.simulator import PRESETS, chat_for_model, preset_of
from ditto_jax.serving.tools import forced_schema
from ditto_jax.serving.wire import ChatRequest, CompletionRequest, Request

MAX_REPLIES = 64


@dataclasses.dataclass(frozen=True)
class House:
    """What this server does where a request says nothing: the model's name, its preset, the person, the guard."""

    name: str
    preset: str = "plain"
    persona: Persona = dataclasses.field(default_factory=Persona)
    guard: bool = True
    attempts: int = 4


@dataclasses.dataclass(frozen=True)
class Job:
    """One request: `asks` in the order of its choices, `prompts` of them different; streamed: piece by piece."""

    frame: Frame
    asks: tuple[Ask, ...]
    reading: Reading
    prompts: int
    streamed: bool
    tells_usage: bool

    @property
    def is_held_back(self) -> bool:
        """Whether a reply must be complete before any of it is shown: it may be drawn again, or read as a whole."""
        reading = self.reading
        return reading.is_guarded or reading.preset.hears is not None or bool(self.asks[0].tools)


def chat_job(request: ChatRequest, house: House) -> Job:
    """Returns the work of a chat completion. Raises AskError."""
    preset = preset_of(request.model, house.name, house.preset)
    said = [message.said(place) for place, message in enumerate(request.messages)]
    persona = _persona(request, house)
    tools = tuple(tool.model_dump(exclude_none=True) for tool in request.tools or ())
    forced = forced_schema(tools, request.tool_choice)
    schema = request.response_format.schema_of_reply() if request.response_format else None
    if forced is not None and schema is not None:
        raise AskError("tool_choice and response_format: the reply cannot satisfy both; send one", "tool_choice")
    wants_logprobs = bool(request.logprobs)
    if request.top_logprobs and not wants_logprobs:
        raise AskError("top_logprobs needs logprobs=true", "top_logprobs")
    _check_stream(request, wants_logprobs and bool(request.top_logprobs))
    ask = Ask(
        chat=chat_for_model(said, preset, persona, request.ditto.role_convention),
        speaker=preset.speaker,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        top_logprobs=(request.top_logprobs or 0) if wants_logprobs else None,
        schema=schema if forced is None else forced,
        tools=tools,
        tool_choice=request.tool_choice,
        end_marks=tuple(mark for mark in preset.end_marks if mark not in preset.kept_marks),
        **_common(request),
    )
    reading = Reading(
        preset,
        # What must be JSON is no turn of a person, and what holds a choice of tokens is looked at as it is.
        is_guarded=(house.guard if request.ditto.guard is None else request.ditto.guard) and not wants_logprobs,
        attempts=request.ditto.attempts or house.attempts,
        end_token=request.ditto.end_token,
        forced=forced is not None,
    )
    return _job("chat", request, [ask], reading, house)


def completion_job(request: CompletionRequest, house: House) -> Job:
    """Returns the work of a text completion: prompts are continued as they are, without a guard. Raises AskError."""
    preset_of(request.model, house.name, house.preset)
    if not request.max_tokens and not request.echo:
        raise AskError("max_tokens=0: only with echo=true, which scores the prompt", "max_tokens")
    _check_stream(request, bool(request.logprobs) or bool(request.echo))
    asks = [
        Ask(
            prompt=prompt,
            max_tokens=16 if request.max_tokens is None else request.max_tokens,
            top_logprobs=request.logprobs,
            echo=bool(request.echo),
            **_common(request),
        )
        for prompt in request.prompts
    ]
    return _job("text", request, asks, Reading(PRESETS["plain"], is_guarded=False), house)


def _common(request: Request) -> dict[str, Any]:
    seed = secrets.randbits(31) if request.seed is None else request.seed
    return {"stop": request.stops, "seed": seed, **request.sampling}


def _check_stream(request: Request, looks_back: bool) -> None:
    if request.stream and looks_back:
        raise AskError("stream=true: likeliest tokens and scores of prompts come with whole replies only", "stream")


def _persona(request: Request, house: House) -> Persona:
    try:
        return persona_of(request.ditto.persona, house.persona)
    except ConfigError as error:
        raise AskError(str(error), "ditto.persona") from None


def _job(kind: str, request: Request, asks: list[Ask], reading: Reading, house: House) -> Job:
    count = request.n or 1
    if count * len(asks) > MAX_REPLIES:
        raise AskError(f"n={count}: {count * len(asks)} replies at once; at most {MAX_REPLIES} are drawn", "n")
    return Job(
        frame=Frame(kind, request.model or house.name, asks[0].seed),
        asks=tuple(dataclasses.replace(ask, number=number) for ask in asks for number in range(count)),
        reading=reading,
        prompts=len(asks),
        streamed=bool(request.stream),
        tells_usage=bool(request.stream_options and request.stream_options.include_usage),
    )
