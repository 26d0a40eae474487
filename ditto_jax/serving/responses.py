"""Answers and pieces → the JSON of OpenAI's chat and text completions, whole or as events of a stream.

In: what was answered. Out: dictionaries. What is particular to a simulation stands under the key "ditto". Decides
nothing.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ditto_jax.serving.answer import Answer
from ditto_jax.serving.ask import TokenScore

END_HEADER = "x-ditto-end"


@dataclasses.dataclass(frozen=True)
class Frame:
    """What all parts of one response share. kind: "chat" or "text"."""

    kind: str
    model: str
    seed: int
    id: str = dataclasses.field(default_factory=lambda: f"ditto-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def _head(self, event: bool) -> dict[str, Any]:
        whole = "chat.completion" if self.kind == "chat" else "text_completion"
        name = f"{whole}.chunk" if event and self.kind == "chat" else whole
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def whole(self, answers: Sequence[Answer], usage: Mapping[str, int]) -> dict[str, Any]:
        """Returns the body of a response that is not streamed."""
        choice = _chat_choice if self.kind == "chat" else _text_choice
        choices = [choice(number, one) for number, one in enumerate(answers)]
        return {**self._head(False), "choices": choices, "usage": dict(usage), "ditto": self.about(answers)}

    def about(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns what a simulation adds: the seed that repeats it, which replies end it, faults of earlier tries."""
        return {
            "seed": self.seed,
            "end": [answer.ended for answer in answers],
            "faults": [list(answer.faults) for answer in answers],
        }

    def event(
        self,
        number: int,
        text: str = "",
        finish: str | None = None,
        tokens: Sequence[TokenScore] = (),
        about: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> str:
        """Returns one event with some text of reply `number`; further keywords go into the delta of a chat."""
        choice: dict[str, Any] = {"index": number, "finish_reason": finish}
        if self.kind == "chat":
            choice["delta"] = {**({"content": text} if text else {}), **more}
            choice["logprobs"] = _chat_logprobs(tokens) if tokens else None
        else:
            choice["text"] = text
            choice["logprobs"] = _text_logprobs(tokens) if tokens else None
        return sse({**self._head(True), "choices": [choice], **({} if about is None else {"ditto": dict(about)})})

    def usage_event(self, usage: Mapping[str, int]) -> str:
        """Returns the last event of a stream whose client has asked for usage."""
        return sse({**self._head(True), "choices": [], "usage": dict(usage)})


def usage_of(answers: Sequence[Answer], prompts: int = 1) -> dict[str, int]:
    """Returns the tokens of a request: those of its prompts once, those of all replies and tries."""
    per_prompt = max(1, len(answers) // prompts)
    prompt = sum(answer.prompt_tokens or 0 for answer in answers[::per_prompt])
    completion = sum(answer.completion_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def error_body(message: str, kind: str, field: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Returns the body that says why there is no answer."""
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def sse(value: Mapping[str, Any]) -> str:
    """Returns one server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"


def call_deltas(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns tool calls as a stream shows them, each with its place."""
    return [{"index": place, **call} for place, call in enumerate(calls)]


def _chat_choice(number: int, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.calls else "")}
    if answer.calls:
        message["tool_calls"] = [dict(call) for call in answer.calls]
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    logprobs = _chat_logprobs(answer.tokens) if answer.tokens else None
    return {"index": number, "message": message, "finish_reason": answer.finish, "logprobs": logprobs}


def _text_choice(number: int, answer: Answer) -> dict[str, Any]:
    logprobs = _text_logprobs(answer.tokens) if answer.tokens else None
    return {"index": number, "text": answer.text, "finish_reason": answer.finish, "logprobs": logprobs}


def _chat_logprobs(tokens: Sequence[TokenScore]) -> dict[str, Any]:
    def one(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}

    return {
        "content": [{**one(t.text, t.logprob), "top_logprobs": [one(*top) for top in t.top]} for t in tokens],
        "refusal": None,
    }


def _text_logprobs(tokens: Sequence[TokenScore]) -> dict[str, Any]:
    offsets, place = [], 0
    for token in tokens:
        offsets.append(place)
        place += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [dict(token.top) if token.logprob is not None else None for token in tokens],
        "text_offset": offsets,
    }
