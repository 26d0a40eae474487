"""A model behind any OpenAI-compatible endpoint as a backend: asks go out, whole replies come back. Imports no jax.

In: asks. Out: pieces, one a reply, since what is guarded cannot be handed out before it is complete. Retries, deadline
and the address come from the same client that asks judges. Adds nothing to what the model is told.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ditto_jax.errors import JudgeUnavailableError
from ditto_jax.judge.client import ChatClient
from ditto_jax.judge.endpoint import resolve_endpoint
from ditto_jax.keys import derive
from ditto_jax.serving.ask import Ask, AskError, BackendError, Piece, Said
from ditto_jax.serving.config import RemoteConfig
from ditto_jax.types import Outcome


class RelayBackend:
    """Raises ConfigError or MissingInputError when made with settings that cannot work."""

    def __init__(self, config: RemoteConfig, environ: Mapping[str, str] | None = None):
        self._config = config
        self._client = ChatClient(config, resolve_endpoint(config, environ))

    @property
    def identity(self) -> str:
        return f"openai:{self._config.model}"

    async def start(self) -> None:
        """Raises JudgeUnavailableError if the endpoint does not answer a minimal request."""
        result = await self._client.probe()
        if result.outcome is not Outcome.OK:
            raise JudgeUnavailableError(
                f"remote.model={self._config.model}: the endpoint cannot be used: {result.detail}\n"
                "start it, or correct remote.base_url"
            )

    def check(self, ask: Ask) -> None:
        if ask.prompt is not None:
            raise AskError("a remote model is asked in turns: use /v1/chat/completions", "prompt")
        if ask.top_logprobs is not None:
            raise AskError("logprobs: not reported in front of a remote model; leave it out", "logprobs")

    async def reply(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        result = await self._client.relay(_body(ask, self._config))
        completion = result.parsed
        if completion is None:
            if result.status is not None and 400 <= result.status < 500 and result.status != 429:
                raise AskError(f"the remote model rejects the request: {result.detail}", None, "upstream_rejected")
            raise BackendError(f"the remote model gave no reply: {result.detail}")
        if completion.refusal:
            raise BackendError(completion.refusal)
        finish = "length" if completion.is_cut_off else "tool_calls" if completion.calls else "stop"
        yield Piece(
            completion.text,
            finish,
            calls=completion.calls,
            reasoning=completion.reasoning,
            prompt_tokens=completion.tokens_in,
            completion_tokens=completion.tokens_out,
        )

    def counters(self) -> Mapping[str, float]:
        totals = self._client.totals
        return {"remote/calls": totals.calls, "remote/retries": totals.retries, "remote/latency_s": totals.latency_s}

    async def aclose(self) -> None:
        await self._client.aclose()


def _body(ask: Ask, config: RemoteConfig) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [_wire(said) for said in ask.chat],
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "seed": _seed(ask),
        config.max_tokens_parameter: ask.max_tokens or config.max_tokens,
    }
    optional = {"stop": list(ask.stop), "top_k": ask.top_k, "min_p": ask.min_p, "tools": list(ask.tools)}
    body |= {name: value for name, value in optional.items() if value}
    if ask.tools and ask.tool_choice is not None:
        body["tool_choice"] = ask.tool_choice
    if ask.schema is not None:
        schema = {"name": "reply", "schema": dict(ask.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if config.reasoning_effort is not None:
        body["reasoning_effort"] = config.reasoning_effort
    return body


def _seed(ask: Ask) -> int:
    """The caller's seed for the first try of the first reply; numbers derived from it for all others."""
    first = not ask.number and not ask.attempt
    return (ask.seed if first else derive(ask.seed, ask.number, ask.attempt)) % 2**31


def _wire(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": said.role, "content": said.content}
    if said.tool_calls:
        message["tool_calls"] = [dict(call) for call in said.tool_calls]
    if said.tool_call_id is not None:
        message["tool_call_id"] = said.tool_call_id
    return message
