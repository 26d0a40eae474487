"""Messages → typed reply: one chat-completions call with bounded concurrency, rate, cost and time, and with retries.

In: chat messages and a pydantic reply model. Out: a CallResult whose outcome says how the call ended; a failed call
never raises and its text is never taken for a reply. A reply that was bought before comes from the cache. What is sent
over the wire is `connection.py`; this file decides when. Knows nothing of tasks or scores.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar

import pydantic

from ditto_jax.errors import JudgeUnavailableError
from ditto_jax.judge.cache import CallName, KeptReply, cache_key
from ditto_jax.judge.completion import Completion, request_body
from ditto_jax.judge.config import EndpointConfig
from ditto_jax.judge.connection import Connection, Sent
from ditto_jax.judge.endpoint import Endpoint
from ditto_jax.judge.hedge import Latencies, first_reply
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.meter import cost_of
from ditto_jax.judge.reading import as_it_stands, parse_completion, text_of
from ditto_jax.judge.replies import ReplyT
from ditto_jax.judge.retry import (
    AttemptFailed,
    BudgetFailure,
    PermanentFailure,
    RetryBudget,
    Sleep,
    TransientFailure,
    outcome_of,
    retry_loop,
)
from ditto_jax.types import Message, Outcome

ResultT = TypeVar("ResultT")

_BYTES_PER_TOKEN = 4  # a guess, for rate limits; for budgets every byte counts as a token


class _ProbeReply(pydantic.BaseModel):
    word: str


@dataclasses.dataclass(frozen=True)
class CallResult(Generic[ResultT]):
    """How one call ended. `parsed` exists iff the outcome is OK (and never for a probe).

    text: what the model wrote last, for logs and re-scoring; empty if it wrote nothing.
    tokens_in, tokens_out: as the endpoint counted them, over all attempts.
    latency_s: seconds from the first attempt to the end, waits included, queueing for a place excluded; 0 from a cache.
    attempts: requests sent, each repetition after a failure counted. status: HTTP status of the last request, if any.
    detail: for people, what went wrong.
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
    """Cumulative costs of a client since it was made.

    calls, retries, tokens: of all replies that were used, those from the cache as when they were bought, so that a
    resumed run counts like a straight one. cost: of what was sent by this process. waited_s: for rate limits, budgets
    and endpoints that were down.
    """

    calls: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    latency_s: float = 0.0
    cache_hits: int = 0
    hedges: int = 0
    cost: float = 0.0
    waited_s: float = 0.0

    def count(self, attempts: int, tokens_in: int, tokens_out: int, latency_s: float) -> None:
        """Adds one call, whatever came of it."""
        self.calls += 1
        self.retries += max(0, attempts - 1)
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.latency_s += latency_s


@dataclasses.dataclass
class _Progress:
    """What is known about a call while it runs, so that a deadline loses nothing of it."""

    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    text: str = ""
    status: int | None = None
    failure: str = ""
    in_flight: bool = False


class ChatClient:
    """Asks one endpoint. Usable from any running event loop; connections belong to the loop that first needs them.

    hub: what is shared with other clients of the run. sleep and now (Unix seconds) are replaceable so that waits can be
    tested without waiting.
    """

    def __init__(
        self,
        config: EndpointConfig,
        endpoint: Endpoint,
        *,
        hub: Hub | None = None,
        sleep: Sleep = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ):
        self.totals = ClientTotals()
        self._config = config
        self._endpoint = endpoint
        self._sleep = sleep
        self._connection = Connection(config, endpoint, now)
        self._shared = (hub or Hub()).shared(config, endpoint.url, sleep)
        self._latencies = Latencies(config.hedge_percentile)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places = asyncio.Semaphore(config.max_concurrent)

    async def complete(
        self, messages: Sequence[Message], reply_model: type[ReplyT], name: CallName | None = None
    ) -> CallResult[ReplyT]:
        """Returns the reply to `messages` as a `reply_model`, or the outcome that stands in its place.

        name: what the call is in the cache; None keeps nothing.
        """
        body = request_body(self._config, messages, reply_model)
        where = self._config.where
        return await self._call(body, lambda completion: parse_completion(completion, reply_model, where), name)

    async def say(self, messages: Sequence[Message], name: CallName | None = None) -> CallResult[str]:
        """Returns the next message of a chat as plain text, or the outcome that stands in its place."""
        return await self._call(request_body(self._config, messages, None), text_of, name)

    async def sample(
        self, messages: Sequence[Message], fields: Mapping[str, Any], name: CallName | None = None
    ) -> CallResult[Completion]:
        """Returns the next message of a chat as it stands, thoughts and emptiness included: a policy's own words.

        fields: added to the request, such as "seed".
        """
        return await self._call(request_body(self._config, messages, None) | dict(fields), as_it_stands, name)

    async def relay(self, body: Mapping[str, Any]) -> CallResult[Completion]:
        """Returns the completion of a request whose body stands, whatever it says."""
        return await self._call(dict(body), lambda completion: completion)

    async def probe(self) -> CallResult[None]:
        """Returns OK if the endpoint answers a minimal request with a completion, whatever that says.

        The request has the same fields as real ones and asks for one token, except where the settings point to a model
        that must be allowed to reason first. It is tried within the call's own retries: nobody waits for an outage
        before a run. A replay asks nobody. No connection stays open, so that the run may use another event loop.
        """
        config = self._config
        if config.cache == "replay":
            return CallResult(Outcome.OK, None, "", 0, 0, 0.0, 0, None, "")
        reasons = config.reasoning_effort is not None or config.max_tokens_parameter == "max_completion_tokens"
        config = dataclasses.replace(config, max_outage_s=0.0, **({} if reasons else {"max_tokens": 1}))
        body = request_body(config, [Message("user", "Reply with one word.")], _ProbeReply)
        try:
            return await self._call(body, lambda _: None, None, is_probe=True)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections; a later call opens new ones."""
        self._loop = None
        await self._connection.aclose()

    async def _call(
        self,
        body: dict[str, Any],
        parse: Callable[[Completion], Any],
        name: CallName | None = None,
        is_probe: bool = False,
    ) -> CallResult[Any]:
        key = None if name is None or self._shared.cache is None else cache_key(self._endpoint.url, body, name)
        kept = None if key is None else self._kept(key, parse)
        if kept is not None:
            return kept
        if self._config.cache == "replay":
            raise JudgeUnavailableError(
                f"{self._config.where}.cache=replay: a reply of {self._config.model} is not in "
                f"{self._shared.cache.path if self._shared.cache else 'any cache'}"
                f"{f' (sample {name.sample.sample_index} of prompt {name.sample.prompt_id})' if name else ''}; "
                f"run once with {self._config.where}.cache=read-write and the same settings"
            )
        result = await self._ask(body, parse, is_probe)
        if key is not None and name is not None and self._shared.cache is not None and result.outcome is Outcome.OK:
            reply = KeptReply(result.text, result.tokens_in, result.tokens_out, result.attempts)
            self._shared.cache.put(key, str(self._config.model), name.prompt_version, reply)
        return result

    def _kept(self, key: str, parse: Callable[[Completion], Any]) -> CallResult[Any] | None:
        reply = None if self._shared.cache is None else self._shared.cache.get(key)
        if reply is None:
            return None
        try:
            parsed = parse(Completion(reply.text, "", False, reply.tokens_in, reply.tokens_out))
        except AttemptFailed:  # bought when another reply was accepted
            return None
        self.totals.cache_hits += 1
        self.totals.count(reply.attempts, reply.tokens_in, reply.tokens_out, 0.0)
        return CallResult(
            Outcome.OK,
            parsed,
            reply.text,
            reply.tokens_in,
            reply.tokens_out,
            0.0,
            reply.attempts,
            None,
            "from the cache",
        )

    async def _ask(self, body: dict[str, Any], parse: Callable[[Completion], Any], is_probe: bool) -> CallResult[Any]:
        progress = _Progress()
        parsed, outcome, detail = None, Outcome.OK, ""
        async with self._bound_places():
            start = time.monotonic()
            try:
                async with asyncio.timeout(self._config.timeout_s) as deadline:
                    parsed = await self._attempt_until_done(body, parse, progress, deadline, is_probe)
            except TimeoutError:
                outcome = Outcome.TIMED_OUT
                last = progress.failure or "nothing answered"
                detail = f"no reply within {self._config.where}.timeout_s={self._config.timeout_s:g}; {last}"
                if progress.in_flight:
                    self._shared.breaker.failed(progress)
            except AttemptFailed as failure:
                outcome, detail = outcome_of(failure), failure.detail
            finally:
                self._shared.breaker.left(progress)
            latency_s = time.monotonic() - start
        self.totals.count(progress.attempts, progress.tokens_in, progress.tokens_out, latency_s)
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
        self,
        body: dict[str, Any],
        parse: Callable[[Completion], Any],
        progress: _Progress,
        deadline: asyncio.Timeout,
        is_probe: bool,
    ) -> Any:
        budget = RetryBudget(transient=self._config.max_retries, unparsable=self._config.unparsable_retries)

        async def attempt() -> Any:
            while True:
                if not is_probe:
                    await self._until_up(progress, deadline)
                progress.attempts, progress.status = progress.attempts + 1, None
                try:
                    return parse(await self._send(body, progress, deadline))
                except AttemptFailed as failure:
                    progress.failure = f"attempt {progress.attempts}: {failure.detail}"
                    if is_probe or not self._waits_for_it(failure, progress):
                        raise

        return await retry_loop(budget, self._sleep)(attempt)

    async def _until_up(self, progress: _Progress, deadline: asyncio.Timeout) -> None:
        async with self._unhurried(deadline):
            if not await self._shared.breaker.ready(progress):
                limit = f"{self._config.where}.max_outage_s={self._config.max_outage_s:g}"
                raise PermanentFailure(f"the endpoint has been down for longer than {limit}")

    def _waits_for_it(self, failure: AttemptFailed, progress: _Progress) -> bool:
        """Tells the breaker how a request ended; True if the call waits for the endpoint instead of failing."""
        if isinstance(failure, TransientFailure) and failure.is_outage:
            return self._shared.breaker.failed(progress)
        if progress.status is not None:
            self._shared.breaker.succeeded()
        else:
            self._shared.breaker.left(progress)
        return False

    async def _send(self, body: dict[str, Any], progress: _Progress, deadline: asyncio.Timeout) -> Completion:
        """One request, or two if the first is unusually slow and there is room for another."""
        after_s = self._latencies.unusual_s()
        first = self._pay_and_post(body, progress, deadline)
        if after_s is None:
            completion = await first
        else:
            completion = await first_reply(first, lambda: self._hedge(body, progress, deadline), after_s)
        self._shared.breaker.succeeded()
        progress.text = completion.text
        return completion

    def _hedge(
        self, body: dict[str, Any], progress: _Progress, deadline: asyncio.Timeout
    ) -> Coroutine[Any, Any, Completion] | None:
        is_free = not self._places.locked() and not self._shared.breaker.is_open
        if not is_free or self._shared.limiter.wait_s(_estimate(self._config, body)) > 0:
            return None
        self.totals.hedges += 1

        async def again() -> Completion:
            async with self._places:
                return await self._pay_and_post(body, progress, deadline)

        return again()

    async def _pay_and_post(self, body: dict[str, Any], progress: _Progress, deadline: asyncio.Timeout) -> Completion:
        config, meter, sent = self._config, self._shared.meter, Sent()
        most = cost_of(config, len(json.dumps(body)), config.max_tokens)
        async with self._unhurried(deadline):
            admission = await self._shared.limiter.admit(_estimate(config, body))
            if not await meter.reserve(most):
                raise BudgetFailure(f"{config.where}.max_cost={meter.limit:g}: {meter.spent:.6g} is spent")
        start, cost = time.monotonic(), most  # what was cut off may be billed in full
        progress.in_flight = True
        try:
            completion = await self._connection.post(body, sent)
            if completion.tokens_in or completion.tokens_out:
                admission.tokens = completion.tokens_in + completion.tokens_out
                cost = cost_of(config, completion.tokens_in, completion.tokens_out)
            progress.in_flight = False
        except AttemptFailed:
            progress.in_flight = False
            cost = most if sent.may_be_billed else 0.0
            raise
        finally:
            progress.status = sent.status
            meter.settle(most, cost)
            self.totals.cost += cost
        self._latencies.record(time.monotonic() - start)
        progress.tokens_in += completion.tokens_in
        progress.tokens_out += completion.tokens_out
        return completion

    @contextlib.asynccontextmanager
    async def _unhurried(self, deadline: asyncio.Timeout) -> AsyncIterator[None]:
        """Stops the call's clock: waiting for a turn is not the endpoint's fault."""
        loop, when = asyncio.get_running_loop(), deadline.when()
        if when is None:
            yield
            return
        began = loop.time()
        deadline.reschedule(None)
        try:
            yield
        finally:
            waited_s = loop.time() - began
            self.totals.waited_s += waited_s
            deadline.reschedule(when + waited_s)

    def _bound_places(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._places = asyncio.Semaphore(self._config.max_concurrent)
        return self._places


def _estimate(config: EndpointConfig, body: dict[str, Any]) -> int:
    return len(json.dumps(body)) // _BYTES_PER_TOKEN + config.max_tokens
