"""The nouns of serving: what is asked of a model, and the pieces in which its reply arrives.

request → **Ask** → backend → **Piece**, **Piece** … → answer

Plain data, no jax and no HTTP. A backend is whoever turns asks into pieces: the policy on this machine, or an endpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol


class AskError(ValueError):
    """A request that cannot work: for people why, for programs the field and a code. status: of the HTTP reply."""

    def __init__(self, message: str, field: str | None = None, code: str = "invalid_value", status: int = 400):
        super().__init__(message)
        self.field = field
        self.code = code
        self.status = status


class BackendError(Exception):
    """The model gave no reply (the endpoint is down, the engine has stopped); for people why."""


@dataclasses.dataclass(frozen=True)
class Said:
    """One message of a chat, with the tool calls in it; `role` is "system", "user", "assistant" or "tool"."""

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ask:
    """One reply to draw: a chat to go on with, or a prompt (text or ids) to continue.

    speaker: the role whose turn the model writes. number: which of the n replies of a request; attempt: which try of
    it. Both enter the randomness with `seed`. max_tokens None: as many as there is room for. top_logprobs: how many
    likeliest tokens to report at each place (None: no log-probs). schema: JSON schema that the reply must satisfy.
    end_marks: texts by which the model ends a conversation.
    """

    chat: tuple[Said, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    speaker: str = "assistant"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    number: int = 0
    attempt: int = 0
    top_logprobs: int | None = None
    echo: bool = False
    schema: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: Any = None
    end_marks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class TokenScore:
    """One token: its text, its log-probability under the model (None for the first token of a prompt), and the
    likeliest tokens in its place.
    """

    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some text of a reply, in order. The last piece has a `finish`: "stop", "length" or "tool_calls".

    end_mark: the mark by which the model ended the conversation, "" if it did not. calls: tool calls, in the last
    piece. reasoning: thoughts that an endpoint reports apart. Token counts are those so far; prompt_tokens None: not
    known.
    """

    text: str
    finish: str | None = None
    tokens: tuple[TokenScore, ...] = ()
    end_mark: str = ""
    calls: tuple[Mapping[str, Any], ...] = ()
    reasoning: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int = 0


class Backend(Protocol):
    """Whoever answers."""

    @property
    def identity(self) -> str:
        """Returns what answers, such as "runs/quickstart" or "openai:my-model"."""
        ...

    async def start(self) -> None:
        """Returns once asks can be answered at full speed."""
        ...

    def check(self, ask: Ask) -> None:
        """Raises AskError for what this backend cannot do."""
        ...

    def reply(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Yields the reply; leaving the iteration early ends the work on it. Raises AskError or BackendError."""
        ...

    def counters(self) -> Mapping[str, float]: ...

    async def aclose(self) -> None: ...
