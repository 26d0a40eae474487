"""Clients that leave: what works for one ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

ResultT = TypeVar("ResultT")


async def unless_gone(request: Request, work: Awaitable[ResultT]) -> ResultT:
    """Returns what the work returns; raises ClientDisconnect, with the work cancelled, if the client leaves first.

    The body of the request must have been read.
    """
    gone = asyncio.ensure_future(left(request))
    try:
        return await unless(gone, work)
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def unless(gone: asyncio.Future[None], work: Awaitable[ResultT]) -> ResultT:
    """Returns what the work returns; raises ClientDisconnect, with the work cancelled, if `gone` is done first."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def left(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
