"""Plays episodes with a policy behind an OpenAI-compatible endpoint: same tasks, prompts and partners as the engine.

prompt → draft rollout

In: attempts, as for `engine.Engine`. Out: the same conversations; of tokens only how many there were, for no endpoint
tells their ids. Needs no device and no weights; cannot train. How replies are judged is not decided here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ditto_jax.errors import ConfigError, JudgeUnavailableError
from ditto_jax.judge.cache import CallName
from ditto_jax.judge.client import ChatClient
from ditto_jax.judge.config import PolicyConfig
from ditto_jax.judge.endpoint import resolve_endpoint
from ditto_jax.judge.hub import Hub
from ditto_jax.keys import derive
from ditto_jax.reply_form import FormError, ReplyForm
from ditto_jax.rollouts.episodes import Abandoned, Attempt, Played
from ditto_jax.rollouts.partners import Partners
from ditto_jax.rollouts.together import all_of
from ditto_jax.tasks.answers import visible_text
from ditto_jax.tasks.base import EpisodeFailure, ReplyPort
from ditto_jax.text.visible_text import one_line
from ditto_jax.types import Author, Chat, FinishReason, Outcome, Reply, Span, Transcript
from model.sampling import SamplingParams

ResultT = TypeVar("ResultT")


class _Port:
    """The policy in one role of one episode."""

    def __init__(self, client: ChatClient, config: PolicyConfig, fields: dict[str, Any], attempt: Attempt, role: str):
        self._client = client
        self._config = config
        self._fields = fields
        self._attempt = attempt
        self._role = role
        self._turn = 0
        self._tokens = 0
        self._finish = FinishReason.STOP

    async def reply(self, chat: Chat) -> Reply:
        """Returns the endpoint's next message. Raises EpisodeFailure with the call's outcome if there is none."""
        sample = self._attempt.sample
        identity = (sample.step, sample.prompt_id, sample.sample_index, sample.role, self._role, self._turn)
        seed = {"seed": derive(sample.seed, *identity) % 2**31} if self._config.send_seed else {}
        task = self._attempt.task
        name = CallName(sample, f"{task.name}-{task.version}/policy {self._role} {self._turn}")
        form = self._attempt.reply_form(self._role, self._turn)
        held = {} if form is None else form_fields(form, self._config)
        self._turn += 1
        result = await self._client.sample(chat, {**self._fields, **seed, **held}, name)
        if result.outcome is not Outcome.OK or result.parsed is None:
            raise EpisodeFailure(f"policy: {result.outcome}: {result.detail}", result.outcome)
        self._tokens += result.tokens_out
        # A kept reply does not say why it ended; as many tokens as were allowed say it as well.
        is_cut_off = result.parsed.is_cut_off or result.tokens_out >= self._config.max_tokens * result.attempts
        self._finish = FinishReason.LENGTH if is_cut_off else FinishReason.STOP
        text = result.parsed.text.strip()
        if form is not None and not is_cut_off and not form.holds(visible_text(text)):
            detail = f"policy: the endpoint did not hold its reply to the form asked for: {one_line(text)[:200]}"
            raise EpisodeFailure(detail, Outcome.UNPARSABLE)
        return Reply(text, self._finish)

    def transcript(self) -> Transcript:
        """Returns as many unknown ids (-1) as the endpoint has counted."""
        spans = (Span(0, self._tokens, Author.POLICY),) if self._tokens else ()
        ids = np.full(self._tokens, -1, np.int32)
        return Transcript(ids, np.zeros(self._tokens, np.float32), spans, 0, self._finish)


class _Ports:
    def __init__(self, policy: Callable[[str], _Port], partners: Partners, attempt: Attempt):
        self._new_policy = policy
        self._partners = partners
        self._attempt = attempt
        self.policies: dict[str, _Port] = {}
        self.partners: dict[str, str] = {}
        self._llms: dict[str, ReplyPort] = {}

    def policy(self, role: str = "policy") -> _Port:
        if role not in self.policies:
            self.policies[role] = self._new_policy(role)
        return self.policies[role]

    def llm(self, role: str) -> ReplyPort:
        if role not in self._llms:
            attempt = self._attempt
            self.partners[role] = self._partners.identity(role, attempt.task)
            self._llms[role] = self._partners.port(role, attempt.task, attempt.example, attempt.sample)
        return self._llms[role]


class ApiEngine:
    """A policy behind an endpoint. At most `policy.max_concurrent` episodes are played at once.

    Raises ConfigError or MissingInputError when made with settings that cannot work.
    """

    chat_format = None  # the endpoint's business

    def __init__(
        self, config: PolicyConfig, partners: Partners, stop_strings: Sequence[str] = (), hub: Hub | None = None
    ):
        if config.kind != "openai":
            raise ConfigError(f"policy.kind={config.kind}: an endpoint is asked with policy.kind=openai")
        self.config = config
        self._partners = partners
        self._endpoint = resolve_endpoint(config)
        self._stop = {"stop": list(stop_strings)} if stop_strings else {}
        self._client = ChatClient(config, self._endpoint, hub=hub)

    @property
    def url(self) -> str:
        """The address that is asked."""
        return self._endpoint.url

    def check_form(self, form: ReplyForm) -> None:
        """Returns nothing; raises FormError for a form that the endpoint cannot be told to keep."""
        form_fields(form, self.config)

    async def check(self) -> None:
        """Raises JudgeUnavailableError, with what to do, if the endpoint does not answer a minimal request."""
        result = await self._client.probe()
        if result.outcome is not Outcome.OK:
            raise JudgeUnavailableError(
                f"the policy {self.config.model} at {self.url} (from {self._endpoint.url_origin}) cannot be used: "
                f"{result.outcome} after {result.attempts} attempt(s): {result.detail}\n"
                "start the server or correct policy.base_url and policy.model; where a model accepts no temperature "
                "but its own, set policy.temperature to null; policy.kind=local needs no server"
            )

    async def play(
        self,
        params: Any,
        sampling: SamplingParams,
        attempts: Sequence[Attempt],
        judged: Callable[[int, Played | Abandoned], Awaitable[ResultT]],
    ) -> list[ResultT]:
        """Returns `judged(index, played)` for every attempt, in order; each starts as soon as its episode ends.

        params: ignored, the endpoint has its own. The first exception of an episode or of `judged` is raised here.
        """
        config = self.config
        fields = {**self._stop} if config.temperature is None else {**self._stop, "temperature": sampling.temperature}
        places = asyncio.Semaphore(config.max_concurrent)

        async def one(index: int, attempt: Attempt) -> ResultT:
            async with places:
                played = await self._play_one(attempt, fields)
            return await judged(index, played)

        return await all_of([one(index, attempt) for index, attempt in enumerate(attempts)])

    async def _play_one(self, attempt: Attempt, fields: dict[str, Any]) -> Played | Abandoned:
        def policy(role: str) -> _Port:
            return _Port(self._client, self.config, fields, attempt, role)

        ports = _Ports(policy, self._partners, attempt)
        try:
            conversation = await attempt.task.episode(attempt.example, ports, attempt.feedback)
        except EpisodeFailure as failure:
            return Abandoned(str(failure), _transcripts(ports), failure.outcome, ports.partners)
        return Played(conversation, _transcripts(ports), ports.partners)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


def form_fields(form: ReplyForm, config: PolicyConfig) -> dict[str, Any]:
    """Returns what is added to a request so that the reply has a form; raises FormError where the settings say that
    the endpoint takes no such thing.
    """
    if form.schema is not None and form.reply_model is not None:
        if config.response_format != "json_schema":
            raise FormError(
                f"policy.response_format={config.response_format}: replies are to be JSON of a schema; set it to "
                "json_schema where the endpoint knows that, or evaluation.constrained to false"
            )
        schema = {"name": form.reply_model.__name__, "schema": form.schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    match config.regex:
        case "vllm":
            return {"structured_outputs": {"regex": form.pattern}}
        case "sglang":
            return {"regex": form.pattern}
    raise FormError(
        f"policy.regex={config.regex}: replies are to match the regular expression {form.pattern}, and response_format "
        "cannot say so; set policy.regex to vllm or sglang for such an endpoint, or evaluation.constrained to false"
    )


def _transcripts(ports: _Ports) -> dict[str, Transcript]:
    return {role: port.transcript() for role, port in ports.policies.items()}
