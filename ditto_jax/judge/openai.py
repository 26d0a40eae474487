"""Rollout → verdict and feedback from a language model behind any OpenAI-compatible chat-completions endpoint.

In: settings of an endpoint. Out: a judge that asks there, and what to do where it cannot be asked. What is asked, and
what becomes of the replies, is `asking.py`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from ditto_jax.errors import ConfigError, JudgeUnavailableError
from ditto_jax.judge.asking import AskingJudge
from ditto_jax.judge.client import CallResult, ChatClient
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.endpoint import Endpoint, resolve_endpoint
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.retry import Sleep
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import JudgeRequest
from ditto_jax.types import Outcome


class OpenAIJudge(AskingJudge):
    """Asks one endpoint. Raises ConfigError or MissingInputError when made with settings that cannot work.

    hub: what is shared with other judges of the run. environ: where addresses and keys are read from instead of the
    process environment. sleep, now: see ChatClient.
    """

    def __init__(
        self,
        config: JudgeConfig,
        *,
        hub: Hub | None = None,
        environ: Mapping[str, str] | None = None,
        sleep: Sleep = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ):
        if config.kind != "openai":
            raise ConfigError(f"judge.kind={config.kind}: an OpenAIJudge needs judge.kind=openai")
        self._endpoint = resolve_endpoint(config, environ)
        self._chat = ChatClient(config, self._endpoint, hub=hub, sleep=sleep, now=now)
        super().__init__(config, f"openai:{config.model}", self._chat)

    async def check(self) -> None:
        """Raises JudgeUnavailableError, with what to do, if the endpoint does not answer a minimal request."""
        result = await self._chat.probe()
        if result.outcome is not Outcome.OK:
            raise JudgeUnavailableError(_unavailable_message(self._config, self._endpoint, result))

    async def ask(self, request: JudgeRequest, key: SampleId) -> CallResult[Any]:
        """Returns the model's reply to a question of a task's own. key: the sample that it is about."""
        return await self._chat.complete(request.messages, request.reply_model)


def _unavailable_message(config: JudgeConfig, endpoint: Endpoint, result: CallResult[Any]) -> str:
    status = result.status
    if status in (401, 403):
        advice = (
            f"the key comes from: {endpoint.key_origin}; set judge.api_key_env to the variable with the right one, or "
            "correct judge.api_key_command or judge.api_key_file"
        )
    elif status == 404:
        advice = f"check judge.base_url (most endpoints end in /v1) and judge.model={config.model}"
    elif status is not None and 300 <= status < 400:
        advice = "set judge.base_url to the address that answers itself"
    elif status in (400, 422):
        advice = (
            "the endpoint rejects a setting: try judge.response_format=json_object or none, "
            "judge.max_tokens_parameter=max_completion_tokens, or judge.temperature=null"
        )
    elif status == 429:
        advice = "wait, lower judge.max_concurrent, or check the quota of the key"
    elif result.outcome is Outcome.UNPARSABLE:
        advice = "something answers there, but not a chat-completions endpoint; check judge.base_url"
    else:
        advice = (
            "start the server or correct judge.base_url; a slow one needs a larger judge.timeout_s; "
            "judge.kind=rules needs no server"
        )
    return (
        f"judge {config.model} at {endpoint.url} (from {endpoint.url_origin}) cannot be used: {result.outcome} after "
        f"{result.attempts} attempt(s): {result.detail}\n{advice}"
    )
