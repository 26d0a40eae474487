"""Rollout → verdict and feedback from a language model behind any OpenAI-compatible chat-completions endpoint.

In: an example, what the policy said, and the question that the task asks about it. Out: a typed verdict or feedback; a
failed call has an outcome and a detail for people, and neither score nor words. Tasks with a rule score are scored by
that rule.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from ditto_jax.errors import ConfigError, JudgeUnavailableError
from ditto_jax.judge.cache import CallName
from ditto_jax.judge.client import CallResult, ChatClient
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.counters import OutcomeCounts
from ditto_jax.judge.endpoint import Endpoint, resolve_endpoint
from ditto_jax.judge.fence import printable
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.retry import Sleep
from ditto_jax.judge.scoring import asked_verdict
from ditto_jax.judge.words import CONTENT_FREE, content_free_control, named, screened_feedback
from ditto_jax.keys import SampleId
from ditto_jax.tasks.base import FeedbackReply, JudgeRequest, Task
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Verdict


class OpenAIJudge:
    """Asks one endpoint for feedback. Raises ConfigError or MissingInputError when made with settings that cannot work.

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
        self._config = config
        self._endpoint = resolve_endpoint(config, environ)
        self._client = ChatClient(config, self._endpoint, hub=hub, sleep=sleep, now=now)
        self._outcomes = OutcomeCounts()

    @property
    def identity(self) -> str:
        """Kind and model, such as "openai:gpt-5-nano"; verdicts and feedback carry the version of rules or prompt."""
        return named(f"openai:{self._config.model}", self._config.feedback_content)

    async def check(self) -> None:
        """Raises JudgeUnavailableError, with what to do, if the endpoint does not answer a minimal request.

        Leaves no connection open, so that the run itself may use another event loop.
        """
        try:
            result = await self._client.probe(FeedbackReply)
        finally:
            await self._client.aclose()
        if result.outcome is not Outcome.OK:
            raise JudgeUnavailableError(_unavailable_message(self._config, self._endpoint, result))

    async def score(self, task: Task[Any], example: Example, conversation: Conversation, key: SampleId) -> Verdict:
        """Returns the task's rule score, or what the model's replies to the task's questions make."""
        model = str(self._config.model)
        return self._outcomes.verdict(await asked_verdict(task, example, conversation, self._client, model, key))

    async def feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        """Returns the model's words, screened for leaks, or why there are none. The control arm asks nobody."""
        if self._config.feedback_content == CONTENT_FREE:
            return self._outcomes.feedback(content_free_control(task, example, key))
        return self._outcomes.feedback(await self._ask_for_feedback(task, example, conversation, verdict, key))

    async def ask(self, request: JudgeRequest, key: SampleId) -> CallResult[Any]:
        """Returns the model's reply to a question of a task's own. key: the sample that it is about."""
        return await self._client.complete(request.messages, request.reply_model)

    def counters(self) -> Mapping[str, float]:
        """Cumulative costs of the calls (see ClientTotals), and counts of outcomes."""
        return {**dataclasses.asdict(self._client.totals), **self._outcomes.as_dict()}

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _ask_for_feedback(
        self, task: Task[Any], example: Example, conversation: Conversation, verdict: Verdict, key: SampleId
    ) -> Feedback:
        request = task.feedback_request(example, conversation, verdict)
        identity = f"openai:{self._config.model}@{request.prompt_version}"
        if not issubclass(request.reply_model, FeedbackReply):
            raise TypeError(f"task {task.name}: a feedback request must be answered by a FeedbackReply")
        name = CallName(key, request.prompt_version)
        result = await self._client.complete(request.messages, request.reply_model, name)
        if result.parsed is None:
            return Feedback(result.outcome, judge=identity, detail=result.detail)
        text = printable(result.parsed.feedback).strip()
        if not text:
            return Feedback(Outcome.UNPARSABLE, judge=identity, detail="feedback: holds no visible character")
        return screened_feedback(task, example, text, judge=identity)


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
