"""A backend that says what it is told to, and records what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx2

from ditto_jax.serving.app import Server
from ditto_jax.serving.ask import Ask, Piece
from ditto_jax.serving.jobs import House
from tests.listening import listening_app

Script = Callable[[Ask], Sequence[Piece]]


class ScriptedBackend:
    """Answers every ask with the pieces that `script` returns. `open` counts the replies that are not finished."""

    identity = "scripted"

    def __init__(self, script: Script):
        self.script = script
        self.asks: list[Ask] = []
        self.open = 0
        self.started = self.closed = False

    async def start(self) -> None:
        self.started = True

    async def aclose(self) -> None:
        self.closed = True

    def check(self, ask: Ask) -> None:
        pass

    def counters(self) -> Mapping[str, float]:
        return {"scripted/asks": len(self.asks)}

    async def reply(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        self.asks.append(ask)
        self.open += 1
        try:
            for piece in self.script(ask):
                await asyncio.sleep(0)
                yield piece
        finally:
            self.open -= 1


def says(*texts: str, finish: str = "stop") -> Script:
    """A script whose tries say one text each, the last one from then on."""
    return lambda ask: [whole(texts[min(ask.attempt, len(texts) - 1)], finish)]


def whole(text: str, finish: str = "stop", **more: Any) -> Piece:
    return Piece(text, finish, prompt_tokens=5, completion_tokens=len(text.split()), **more)


@contextlib.asynccontextmanager
async def client_of(backend: Any, house: House | None = None, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server in this process, which has been started."""
    server = Server(backend, house or House("ditto"), **options)
    app = server.app()
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here", timeout=60) as client:
            yield client


@contextlib.contextmanager
def listening(backend: Any, house: House | None = None, **options: Any) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    server = Server(backend, house or House("ditto"), **options)
    with listening_app(server.app()) as url:
        yield url


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream; its end must be there."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


HELLO = {"messages": [{"role": "user", "content": "How can I help?"}]}
