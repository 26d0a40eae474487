"""Coroutines that belong together: all results, or the first failure with nothing left running."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any


async def all_of(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Returns the results in order; the first exception is raised here, once the others are cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
