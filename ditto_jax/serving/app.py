"""HTTP around a backend: OpenAI-compatible routes as an ASGI application.

In: a backend, and how this server simulates. Out: the application. Bounds what one client may take: the size of a body,
the time for sending it, the number of requests in all. A client that leaves frees what worked for it. Draws and judges
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ditto_jax.serving.answer import answer
from ditto_jax.serving.ask import AskError, Backend, BackendError
from ditto_jax.serving.departure import left, unless, unless_gone
from ditto_jax.serving.guard import GuardCounters
from ditto_jax.serving.jobs import House, Job, chat_job, completion_job
from ditto_jax.serving.responses import END_HEADER, error_body, usage_of
from ditto_jax.serving.simulator import PRESETS
from ditto_jax.serving.streams import events
from ditto_jax.serving.wire import ChatRequest, CompletionRequest, read_request

_LOG = logging.getLogger("ditto_jax.serving")
_GONE = 499  # what servers note for clients that left; nobody reads it

Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """The routes and what they share. key: what clients must send as a bearer token, if anything."""

    def __init__(
        self,
        backend: Backend,
        house: House,
        *,
        key: str | None = None,
        max_waiting: int = 256,
        max_body_bytes: int = 4 * 2**20,
        read_timeout_s: float = 30.0,
    ):
        self.backend = backend
        self.house = house
        self.guard = GuardCounters()
        self.ready = False
        self._key = key
        self._max_waiting = max_waiting
        self._max_body_bytes = max_body_bytes
        self._read_timeout_s = read_timeout_s
        self._in_flight = 0

    def app(self) -> Starlette:
        """Returns the application; it starts the backend before it answers, and closes it in the end."""
        routes = [
            Route("/health", self._health),
            Route("/counters", self._guarded(self._counters)),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._completion), methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            await self.backend.start()
            self.ready = True
            yield
        finally:
            self.ready = False
            await self.backend.aclose()

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok" if self.ready else "starting"}, 200 if self.ready else 503)

    async def _counters(self, request: Request) -> Response:
        own = {"in_flight": self._in_flight, **self.guard.as_dict()}
        return JSONResponse({"model": self.backend.identity, **own, **self.backend.counters()})

    async def _models(self, request: Request) -> Response:
        name = self.house.name
        data = [
            {"id": one, "object": "model", "created": 0, "owned_by": "ditto_jax", "description": about}
            for one, about in [
                (name, f"the preset {self.house.preset}"),
                *((f"{name}:{p.name}", p.about) for p in PRESETS.values()),
            ]
        ]
        return JSONResponse({"object": "list", "data": data})

    async def _chat(self, request: Request) -> Response:
        body = await self._body(request)
        return await self._respond(request, chat_job(read_request(ChatRequest, body), self.house))

    async def _completion(self, request: Request) -> Response:
        body = await self._body(request)
        return await self._respond(request, completion_job(read_request(CompletionRequest, body), self.house))

    async def _respond(self, request: Request, job: Job) -> Response:
        for ask in job.asks:
            self.backend.check(ask)
        if self._in_flight + len(job.asks) > self._max_waiting:
            raise AskError("too many requests at once; come back in a second", None, "overloaded", 429)
        if job.streamed:
            return StreamingResponse(self._stream(request, job), media_type="text/event-stream", headers=_NO_BUFFER)
        with self._counted(job):
            work = asyncio.gather(*(answer(self.backend, ask, job.reading, self.guard) for ask in job.asks))
            answers = await unless_gone(request, work)
        headers = {END_HEADER: "true"} if any(one.ended for one in answers) else {}
        return JSONResponse(job.frame.whole(answers, usage_of(answers, job.prompts)), headers=headers)

    async def _stream(self, request: Request, job: Job) -> AsyncIterator[str]:
        with self._counted(job):
            gone = asyncio.ensure_future(left(request))
            try:
                async with contextlib.aclosing(events(self.backend, job, self.guard)) as shown:
                    while (event := await unless(gone, anext(shown, None))) is not None:
                        yield event
            finally:
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)

    @contextlib.contextmanager
    def _counted(self, job: Job):
        self._in_flight += len(job.asks)
        try:
            yield
        finally:
            self._in_flight -= len(job.asks)

    async def _body(self, request: Request) -> bytes:
        content = bytearray()
        try:
            async with asyncio.timeout(self._read_timeout_s):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > self._max_body_bytes:
                        limit = f"body: longer than {self._max_body_bytes} bytes"
                        raise AskError(limit, None, "request_too_large", 413)
        except TimeoutError:
            message = f"body: not received within {self._read_timeout_s:g} s"
            raise AskError(message, None, "request_timeout", 408) from None
        return bytes(content)

    def _guarded(self, handler: Handler) -> Handler:
        """Returns the handler behind the key, its errors as bodies that clients understand."""

        async def handle(request: Request) -> Response:
            try:
                self._check_key(request)
                return await handler(request)
            except AskError as error:
                headers = {"Retry-After": "1"} if error.status == 429 else {}
                if error.status in (408, 413):
                    headers["Connection"] = "close"
                kind = "authentication_error" if error.status == 401 else "invalid_request_error"
                return JSONResponse(error_body(str(error), kind, error.field, error.code), error.status, headers)
            except BackendError as error:
                return JSONResponse(error_body(str(error), "server_error", None, "no_usable_reply"), 502)
            except ClientDisconnect:
                return Response(status_code=_GONE)

        return handle

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(sent.encode(), self._key.encode()):
            raise AskError("the API key is missing or wrong; send it as `Authorization: Bearer KEY`", None, "key", 401)


_NO_BUFFER = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
