"""Bodies of requests → checked requests, in the wire format of OpenAI's chat and text completions.

In: bytes. Out: pydantic models with every known field typed. Unknown fields are ignored and told once; fields that ask
for something which would silently not be done are refused with the reason. Knows nothing of models.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import pydantic

from ditto_jax.serving.ask import AskError, Said

_LOG = logging.getLogger("ditto_jax.serving")

# Sent by many clients, without a meaning here.
_HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "reasoning_effort",
        "reasoning",
        "parallel_tool_calls",
        "safety_identifier",
        "prompt_cache_key",
        "verbosity",
        "prediction",
        "extra_body",
        "best_of",
    }
)
# Ignoring these would change what the client gets.
_REFUSED_UNLESS = {
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "repetition_penalty": (None, 1, 1.0),
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "functions": (None, []),
    "best_of": (None, 1),
}
_told: set[str] = set()


class DittoOptions(pydantic.BaseModel):
    """What a request may say about the simulation; what is left out has the model's default.

    role_convention: "flipped" (the simulator's turns are the assistant's) or "native" (they are the user's). persona:
    text, or fields of a persona file. end_token: text that tells the caller of the end of the conversation. guard:
    whether faulty replies are drawn again; attempts: how often in all.
    """

    model_config = pydantic.ConfigDict(extra="forbid")
    role_convention: Literal["flipped", "native"] | None = None
    persona: str | dict[str, Any] | None = None
    end_token: str | None = None
    guard: bool | None = None
    attempts: int | None = pydantic.Field(default=None, ge=1, le=16)


class ChatMessage(pydantic.BaseModel):
    """One message of a request; parts of text are joined."""

    model_config = pydantic.ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def said(self, place: int) -> Said:
        """Returns the message; raises AskError for parts that are not text."""
        role = "system" if self.role == "developer" else self.role
        calls = tuple(self.tool_calls or ())
        return Said(role, self._text(place), calls, self.tool_call_id)

    def _text(self, place: int) -> str:
        if not isinstance(self.content, list):
            return self.content or ""
        texts = []
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type")
                raise AskError(f"messages[{place}].content: a part of type {kind!r}; only text is read", "messages")
            texts.append(part["text"])
        return "".join(texts)


class _Function(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore")
    name: str = pydantic.Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(pydantic.BaseModel):
    """A function that the simulated user may call."""

    model_config = pydantic.ConfigDict(extra="ignore")
    type: Literal["function"]
    function: _Function


class JsonSchema(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore", populate_by_name=True)
    schema_: dict[str, Any] = pydantic.Field(alias="schema", default_factory=dict)


class ResponseFormat(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_of_reply(self) -> Mapping[str, Any] | None:
        """Returns the JSON schema that the reply must satisfy, None for free text; raises AskError without one."""
        if self.type == "json_schema" and self.json_schema is None:
            raise AskError("response_format: type json_schema without a json_schema", "response_format")
        if self.type == "json_schema" and self.json_schema is not None:
            return self.json_schema.schema_ or {"type": "object"}
        return {"type": "object"} if self.type == "json_object" else None


class StreamOptions(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="ignore")
    include_usage: bool = False


class Request(pydantic.BaseModel):
    """What chat and text completions have in common."""

    model_config = pydantic.ConfigDict(extra="allow")
    model: str = ""
    temperature: float | None = pydantic.Field(default=None, ge=0, le=10, allow_inf_nan=False)
    top_p: float | None = pydantic.Field(default=None, gt=0, le=1)
    top_k: int | None = pydantic.Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = pydantic.Field(default=None, ge=0, lt=1)
    seed: int | None = pydantic.Field(default=None, ge=-(2**63), lt=2**64)
    stop: str | list[str] | None = None
    n: int | None = pydantic.Field(default=None, ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = pydantic.Field(default=None, ge=1)
    ditto: DittoOptions = pydantic.Field(default_factory=DittoOptions)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings; raises AskError for an empty one, which would end every reply at once."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in stops:
            raise AskError("stop='': an empty text would end every reply at once; leave it out", "stop")
        if len(stops) > 16:
            raise AskError(f"stop: {len(stops)} texts; at most 16 are looked for", "stop")
        return stops

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of `Ask` that say how tokens are drawn."""
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "min_p": self.min_p}
        return {
            **{name: value for name, value in chosen.items() if value is not None},
            "top_k": max(0, self.top_k or 0),
        }


class ChatRequest(Request):
    """A body of /v1/chat/completions."""

    messages: list[ChatMessage] = pydantic.Field(min_length=1)
    max_completion_tokens: int | None = pydantic.Field(default=None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = pydantic.Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None


class CompletionRequest(Request):
    """A body of /v1/completions; `prompt` is a text, ids, or several of them."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = pydantic.Field(default=16, ge=0)
    logprobs: int | None = pydantic.Field(default=None, ge=0, le=20)
    echo: bool | None = False

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts one by one; raises AskError if there is none."""
        prompt: Any = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise AskError("prompt=[]: give at least one text", "prompt")
        return (
            [tuple(prompt)] if isinstance(prompt[0], int) else [p if isinstance(p, str) else tuple(p) for p in prompt]
        )


RequestT = TypeVar("RequestT", bound=Request)


def read_request(cls: type[RequestT], body: bytes) -> RequestT:
    """Returns the request in a body; raises AskError naming the first field that cannot work."""
    try:
        request = cls.model_validate_json(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise AskError(f"{field}: {first['msg']}" if field else f"body: {first['msg']}", field or None) from None
    for name, value in (request.model_extra or {}).items():
        _check_extra(name, value)
    return request


def _check_extra(name: str, value: Any) -> None:
    if name in _REFUSED_UNLESS:
        if value not in _REFUSED_UNLESS[name]:
            raise AskError(f"{name}: not supported here; leave it out", name, "unsupported_value")
    elif name not in _HARMLESS and name not in _told and len(_told) < 100:
        _told.add(name)
        _LOG.warning("field %r of a request is not known and was ignored (told once)", name[:80])
