"""Tools of a simulated user: descriptions into the prompt, calls out of the reply, results back into the chat.

In: tools and messages as clients send them. Out: plain messages for a model that knows only text, in the form that most
open chat models were taught (a JSON object between <tool_call> tags); and the calls of a reply. Runs no tool.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ditto_jax.serving.ask import AskError, Said
from ditto_jax.types import Message

_MARK = "<tool_call>"
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)

_SYSTEM = """\
You may use the tools below. To use one, write this instead of a message:
<tool_call>
{{"name": the tool's name, "arguments": {{its arguments}}}}
</tool_call>

<tools>
{tools}
</tools>"""


def plain_messages(chat: Sequence[Said], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Returns the chat as text alone: tools in the system message, calls and results between tags."""
    messages = [Message(*_plain(said)) for said in chat]
    if not tools:
        return messages
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = _SYSTEM.format(tools=described)
    if messages and messages[0].role == "system":
        return [Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:]]
    return [Message("system", text), *messages]


def _plain(said: Said) -> tuple[str, str]:
    if said.role == "tool":
        return "user", f"<tool_response>\n{said.content}\n</tool_response>"
    calls = [f"<tool_call>\n{_written(call)}\n</tool_call>" for call in said.tool_calls]
    return said.role, "\n".join([*([said.content] if said.content else []), *calls])


def _written(call: Mapping[str, Any]) -> str:
    function = call.get("function") or {}
    arguments = function.get("arguments") or "{}"
    with contextlib.suppress(ValueError):  # what is no JSON is shown as the text that it is
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False)


def read_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """Returns (the text outside calls, the calls as clients expect them); what calls no known tool stays text."""
    known = {tool["function"]["name"] for tool in tools}
    calls = []

    def take(found: re.Match[str]) -> str:
        call = _call(found[1], known)
        if call is None:
            return found[0]
        calls.append(call)
        return ""

    rest = _CALL.sub(take, text) if known else text
    return rest.strip() if calls else text, tuple(calls)


def is_broken_call(text: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a call stands in what `read_calls` left as text: cut off, no JSON, or of no known tool."""
    return bool(tools) and _MARK in text


def read_forced_call(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Returns the call that a reply made under `forced_schema` is, none if it was cut off."""
    call = _call(text, {tool["function"]["name"] for tool in tools})
    return () if call is None else (call,)


def forced_schema(tools: Sequence[Mapping[str, Any]], choice: Any) -> Mapping[str, Any] | None:
    """Returns the JSON schema of a reply that must call a tool; None if it need not. Raises AskError."""
    if choice in (None, "auto", "none"):
        return None
    if not tools:
        raise AskError(f"tool_choice={choice!r}: there are no tools to choose from; send tools too", "tool_choice")
    named = choice.get("function", {}).get("name") if isinstance(choice, Mapping) else None
    chosen = [tool for tool in tools if named in (None, tool["function"]["name"])]
    if choice != "required" and (named is None or not chosen):
        raise AskError("tool_choice: give auto, none, required, or the name of one of the tools", "tool_choice")
    functions = [tool["function"] for tool in chosen]
    return {
        "anyOf": [_schema_of(function) for function in functions],
        "$defs": {function["name"]: _parameters(function) for function in functions},
    }


def _schema_of(function: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": _place(function)}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _place(function: Mapping[str, Any]) -> str:
    """Where the schema of a function's arguments stands in that of the reply, as a JSON pointer."""
    return "#/$defs/" + function["name"].replace("~", "~0").replace("/", "~1")


def _parameters(function: Mapping[str, Any]) -> Any:
    """The schema of a function's arguments, what it refers to in itself found where it stands now.

    Arguments that a function does not declare would be allowed by most schemas as they are sent, and refused by it.
    """

    def moved(part: Any) -> Any:
        if isinstance(part, list):
            return [moved(one) for one in part]
        if not isinstance(part, Mapping):
            return part
        found = {name: moved(value) for name, value in part.items()}
        if isinstance(found.get("$ref"), str) and found["$ref"].startswith("#"):
            found["$ref"] = _place(function) + found["$ref"][1:]
        return found

    parameters = moved(function.get("parameters") or {"type": "object"})
    is_list_of_arguments = "properties" in parameters and not {"allOf", "anyOf", "oneOf", "$ref"} & set(parameters)
    return {"additionalProperties": False, **parameters} if is_list_of_arguments else parameters


def _call(text: str, known: set[str]) -> Mapping[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    arguments = value.get("arguments", {}) if isinstance(value, dict) else None
    if not isinstance(arguments, dict) or not isinstance(value.get("name"), str) or value["name"] not in known:
        return None
    function = {"name": value["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
