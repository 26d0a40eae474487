"""The chat-completions wire format: request body out, completion or typed failure in.

In: messages and a reply model, or an HTTP response. Out: the JSON to send, or a Completion. Bodies are read up to a
limit and validated; anything unexpected is a failure with a reason. Does no networking and reads no reply text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import pydantic

from ditto_jax.judge.config import EndpointConfig
from ditto_jax.judge.fence import printable
from ditto_jax.judge.replies import schema_instruction
from ditto_jax.judge.retry import (
    AttemptFailed,
    PermanentFailure,
    RefusedFailure,
    TransientFailure,
    UnauthorizedFailure,
    UnparsableFailure,
    is_retried,
    retry_after_s,
)
from ditto_jax.types import Message

MAX_BODY_BYTES = 4 * 2**20
_MAX_EXCERPT = 300
_FILTER_CODES = ("content_filter", "content_policy_violation")


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model answered. `refusal` says why it declined, or is empty. calls: of tools; reasoning: thoughts that
    the endpoint reports apart.
    """

    text: str
    refusal: str
    is_cut_off: bool
    tokens_in: int
    tokens_out: int
    calls: tuple[Mapping[str, Any], ...] = ()
    reasoning: str = ""


class _WireMessage(pydantic.BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: str | None = None


class _WireChoice(pydantic.BaseModel):
    message: _WireMessage
    finish_reason: str | None = None


class _WireCompletion(pydantic.BaseModel):
    choices: list[_WireChoice] = pydantic.Field(min_length=1)
    usage: Any = None


def request_body(
    config: EndpointConfig, messages: Sequence[Message], reply_model: type[pydantic.BaseModel] | None
) -> dict[str, Any]:
    """Returns the JSON body of a request.

    The schema stands in `response_format` and, because endpoints may ignore that, in the prompt. Without a reply model
    plain text is asked for.
    """
    body: dict[str, Any] = {
        "model": config.model,
        "messages": _wire(messages if reply_model is None else with_schema(messages, reply_model)),
        config.max_tokens_parameter: config.max_tokens,
    }
    if config.temperature is not None:
        body["temperature"] = config.temperature
    if config.reasoning_effort is not None:
        body["reasoning_effort"] = config.reasoning_effort
    if reply_model is None:
        return body
    if config.response_format == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif config.response_format == "json_schema":
        # Not strict: some endpoints reject keywords such as maxLength there, and the reply is validated in any case.
        schema = {"name": reply_model.__name__, "schema": reply_model.model_json_schema(), "strict": False}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _wire(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def with_schema(messages: Sequence[Message], reply_model: type[pydantic.BaseModel]) -> list[Message]:
    """Returns a chat that also states the schema of its reply."""
    instruction = schema_instruction(reply_model)
    if messages and messages[-1].role == "user":  # chat templates often insist on alternating roles
        last = messages[-1]
        return [*messages[:-1], dataclasses.replace(last, content=f"{last.content}\n\n{instruction}")]
    return [*messages, Message("user", instruction)]


async def read_body(response: httpx2.Response) -> bytes:
    """Returns the body of a streamed response; raises UnparsableFailure for a success longer than MAX_BODY_BYTES.

    Long bodies of other statuses are cut: only their beginning is ever shown.
    """
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_BODY_BYTES:
            if response.is_success:
                raise UnparsableFailure(f"body is longer than {MAX_BODY_BYTES} bytes")
            break
    return bytes(content[:MAX_BODY_BYTES])


def read_completion(content: bytes) -> Completion:
    """Returns the first choice of a successful response; raises UnparsableFailure if the body is not a completion."""
    try:
        wire = _WireCompletion.model_validate_json(content)
    except pydantic.ValidationError:
        raise UnparsableFailure("body is not a chat completion") from None
    choice = wire.choices[0]
    refusal = f"the model refused: {_excerpt(choice.message.refusal)}" if choice.message.refusal else ""
    if choice.finish_reason == "content_filter":
        refusal = refusal or "the endpoint's content filter withheld the reply"
    return Completion(
        text=choice.message.content or "",
        refusal=refusal,
        is_cut_off=choice.finish_reason == "length",
        tokens_in=_tokens(wire.usage, "prompt_tokens"),
        tokens_out=_tokens(wire.usage, "completion_tokens"),
        calls=tuple(choice.message.tool_calls or ()),
        reasoning=choice.message.reasoning_content or "",
    )


def response_failure(status: int, headers: Mapping[str, str], content: str, now: float) -> AttemptFailed:
    """Returns the failure that an unsuccessful response means. now: Unix time in seconds, for dates in headers."""
    message, code = _error_message(content)
    detail = f"HTTP {status}" + (f": {message}" if message else "")
    if is_retried(status):
        return TransientFailure(detail, retry_after_s(headers, now), is_outage=status >= 500)
    if status == 401:
        return UnauthorizedFailure(detail)
    if 300 <= status < 400:
        return PermanentFailure(f"HTTP {status}: the endpoint redirects elsewhere, which is not followed")
    if code in _FILTER_CODES:
        return RefusedFailure(detail)
    return PermanentFailure(detail)


def _error_message(content: str) -> tuple[str, str]:
    try:
        error = json.loads(content)["error"]
        if isinstance(error, dict):
            return _excerpt(str(error.get("message", ""))), str(error.get("code", ""))
        return _excerpt(str(error)), ""
    except (ValueError, TypeError, KeyError, RecursionError):
        return "", ""


def _excerpt(text: str) -> str:
    line = " ".join(printable(text).split())
    return line if len(line) <= _MAX_EXCERPT else f"{line[:_MAX_EXCERPT]}…"


def _tokens(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else 0
