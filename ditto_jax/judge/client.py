"""Messages → typed reply, over HTTP: one chat-completions call with bounded concurrency, a deadline and retries.

In: chat messages and a pydantic reply model. Out: a CallResult whose outcome says how the call ended; a failed call
never raises and its text is never taken for a reply. Contacts the endpoint's host only: redirects are not followed, and
proxies or .netrc credentials from the environment are not used (certificate settings such as SSL_CERT_FILE are). Knows
nothing of tasks or scores.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import httpx2
import pydantic

from ditto_jax.judge.completion import Completion, read_body, read_completion, request_body, response_failure
from ditto_jax.judge.config import EndpointConfig
from ditto_jax.judge.endpoint import Endpoint
from ditto_jax.judge.fence import printable
from ditto_jax.judge.replies import ReplyT, Unparsable, parse_reply
from ditto_jax.judge.retry import (
    AttemptFailed,
    PermanentFailure,
    RefusedFailure,
    RetryBudget,
    Sleep,
    TransientFailure,
    UnparsableFailure,
    retry_loop,
)
from ditto_jax.tasks.answers import visible_text
from ditto_jax.types import Message, Outcome

ResultT = TypeVar("ResultT")

_MAX_CONNECT_S = 10.0


@dataclasses.dataclass(frozen=True)
class CallResult(Generic[ResultT]):
    """How one call ended. `parsed` exists iff the outcome is OK (and never for a probe).

    text: what the model wrote last, for logs and re-scoring; empty if it wrote nothing.
    tokens_in, tokens_out: as the endpoint counted them, over all attempts.
    latency_s: seconds from the first attempt to the end, waits included, queueing for a place excluded.
    attempts: HTTP requests sent. status: the last HTTP status, if any. detail: for people, what went wrong.
    """

    outcome: Outcome
    parsed: ResultT | None
    text: str = dataclasses.field(repr=False)
    tokens_in: int
    tokens_out: int
    latency_s: float
    attempts: int
    status: int | None
    detail: str


@dataclasses.dataclass
class ClientTotals:
    """Cumulative costs of a client since it was made."""

    calls: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    latency_s: float = 0.0


@dataclasses.dataclass
class _Progress:
    """What is known about a call while it runs, so that a deadline loses nothing of it."""

    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    text: str = ""
    status: int | None = None
    failure: str = ""


class ChatClient:
    """Asks one endpoint. Usable from any running event loop; connections belong to the loop that first needs them.

    sleep and now (Unix seconds) are replaceable so that waits can be tested without waiting.
    """

    def __init__(
        self,
        config: EndpointConfig,
        endpoint: Endpoint,
        *,
        sleep: Sleep = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ):
        self.totals = ClientTotals()
        self._config = config
        self._endpoint = endpoint
        self._sleep = sleep
        self._now = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: httpx2.AsyncClient | None = None
        self._places: asyncio.Semaphore | None = None

    async def complete(self, messages: Sequence[Message], reply_model: type[ReplyT]) -> CallResult[ReplyT]:
        """Returns the reply to `messages` as a `reply_model`, or the outcome that stands in its place."""
        body = request_body(self._config, messages, reply_model)
        return await self._call(body, lambda completion: parse_completion(completion, reply_model, self._config.where))

    async def say(self, messages: Sequence[Message]) -> CallResult[str]:
        """Returns the next message of a chat as plain text, or the outcome that stands in its place."""
        return await self._call(request_body(self._config, messages, None), text_of)

    async def relay(self, body: Mapping[str, Any]) -> CallResult[Completion]:
        """Returns the completion of a request whose body stands, whatever it says."""
        return await self._call(dict(body), lambda completion: completion)

    async def probe(self, reply_model: type[pydantic.BaseModel]) -> CallResult[pydantic.BaseModel]:
        """Returns OK if the endpoint answers a minimal request with a completion, whatever that says.

        The request has the same fields as real ones and asks for one token, except where the settings point to a model
        that must be allowed to reason first.
        """
        config = self._config
        reasons = config.reasoning_effort is not None or config.max_tokens_parameter == "max_completion_tokens"
        config = config if reasons else dataclasses.replace(config, max_tokens=1)
        body = request_body(config, [Message("user", "Reply with an empty JSON object.")], reply_model)
        return await self._call(body, lambda _: None)

    async def aclose(self) -> None:
        """Closes the connections; a later call opens new ones."""
        http, loop = self._http, self._loop
        self._http = self._loop = self._places = None
        if http is not None and loop is asyncio.get_running_loop():
            await http.aclose()

    async def _call(self, body: dict[str, Any], parse: Callable[[Completion], Any]) -> CallResult[Any]:
        http, places = self._bind()
        progress = _Progress()
        parsed, outcome, detail = None, Outcome.OK, ""
        async with places:
            start = time.monotonic()
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    parsed = await self._attempt_until_done(http, body, parse, progress)
            except TimeoutError:
                outcome = Outcome.TIMED_OUT
                last = progress.failure or "nothing answered"
                detail = f"no reply within {self._config.where}.timeout_s={self._config.timeout_s:g}; {last}"
            except AttemptFailed as failure:
                outcome, detail = _outcome_of(failure), failure.detail
            latency_s = time.monotonic() - start
        self._count(progress, latency_s)
        return CallResult(
            outcome=outcome,
            parsed=parsed,
            text=progress.text,
            tokens_in=progress.tokens_in,
            tokens_out=progress.tokens_out,
            latency_s=latency_s,
            attempts=progress.attempts,
            status=progress.status,
            detail=self._endpoint.redact(detail),
        )

    async def _attempt_until_done(
        self, http: httpx2.AsyncClient, body: dict[str, Any], parse: Callable[[Completion], Any], progress: _Progress
    ) -> Any:
        budget = RetryBudget(transient=self._config.max_retries, unparsable=self._config.unparsable_retries)

        async def attempt() -> Any:
            progress.attempts += 1
            try:
                completion = await self._exchange(http, body, progress)
                return parse(completion)
            except AttemptFailed as failure:
                progress.failure = f"attempt {progress.attempts}: {failure.detail}"
                raise

        return await retry_loop(budget, self._sleep)(attempt)

    async def _exchange(self, http: httpx2.AsyncClient, body: dict[str, Any], progress: _Progress) -> Completion:
        progress.status = None
        try:
            async with http.stream("POST", f"{self._endpoint.url}/chat/completions", json=body) as response:
                progress.status = response.status_code
                content = await read_body(response)
        except (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError) as error:
            raise PermanentFailure(f"request cannot be sent: {type(error).__name__}") from None
        except httpx2.TransportError as error:
            raise TransientFailure(f"connection failed: {type(error).__name__} {error}".rstrip()) from None
        except httpx2.DecodingError:
            raise UnparsableFailure("body is not in its stated encoding") from None
        if not response.is_success:
            # Servers may repeat a key that they reject; it goes before the message is shortened, which could split it.
            message = self._endpoint.redact(content.decode(errors="replace"))
            raise response_failure(response.status_code, response.headers, message, self._now())
        completion = read_completion(content)
        progress.text = completion.text
        progress.tokens_in += completion.tokens_in
        progress.tokens_out += completion.tokens_out
        return completion

    def _bind(self) -> tuple[httpx2.AsyncClient, asyncio.Semaphore]:
        loop = asyncio.get_running_loop()
        if self._http is None or self._places is None or self._loop is not loop:
            self._loop = loop
            self._places = asyncio.Semaphore(self._config.max_concurrent)
            self._http = self._connect()
        return self._http, self._places

    def _connect(self) -> httpx2.AsyncClient:
        key = self._endpoint.key
        size = self._config.max_concurrent
        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            limits=httpx2.Limits(max_connections=size, max_keepalive_connections=size),
            # The deadline of the call bounds everything else.
            timeout=httpx2.Timeout(None, connect=min(_MAX_CONNECT_S, self._config.timeout_s)),
            verify=httpx2.create_ssl_context(),
            trust_env=False,
            follow_redirects=False,
        )

    def _count(self, progress: _Progress, latency_s: float) -> None:
        self.totals.calls += 1
        self.totals.retries += max(0, progress.attempts - 1)
        self.totals.tokens_in += progress.tokens_in
        self.totals.tokens_out += progress.tokens_out
        self.totals.latency_s += latency_s


def text_of(completion: Completion) -> str:
    """Returns the visible text of a completion; raises RefusedFailure or UnparsableFailure if it holds none."""
    if completion.refusal:
        raise RefusedFailure(completion.refusal)
    text = visible_text(printable(completion.text))
    if not text:
        raise UnparsableFailure("the reply holds no visible text")
    return text


def parse_completion(completion: Completion, reply_model: type[ReplyT], where: str = "judge") -> ReplyT:
    """Returns the reply that a completion holds; raises RefusedFailure or UnparsableFailure if it holds none."""
    if completion.refusal:
        raise RefusedFailure(completion.refusal)
    try:
        return parse_reply(completion.text, reply_model)
    except Unparsable as error:
        cut = f" (cut off by the token limit: raise {where}.max_tokens)" if completion.is_cut_off else ""
        raise UnparsableFailure(f"{error}{cut}") from None


def _outcome_of(failure: AttemptFailed) -> Outcome:
    if isinstance(failure, RefusedFailure):
        return Outcome.REFUSED
    return Outcome.UNPARSABLE if isinstance(failure, UnparsableFailure) else Outcome.UNAVAILABLE
