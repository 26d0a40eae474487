"""A job → the events of its stream: replies of one request are drawn side by side and shown as they grow.

In: a backend and a job. Out: server-sent events, the last one "[DONE]". Where replies may still be drawn again they are
shown when they are complete. A failure is an event too, for the status of the response has been sent by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator

from ditto_jax.serving.answer import Answer, answer, read
from ditto_jax.serving.ask import AskError, Backend, BackendError, Piece
from ditto_jax.serving.guard import GuardCounters
from ditto_jax.serving.jobs import Job
from ditto_jax.serving.responses import DONE, call_deltas, error_body, sse, usage_of


async def events(backend: Backend, job: Job, counters: GuardCounters) -> AsyncGenerator[str, None]:
    """Yields the events of all replies of a job; leaving early ends the work on them."""
    queue: asyncio.Queue[str | Answer | Exception] = asyncio.Queue()
    tasks = [asyncio.create_task(_draw(backend, job, number, counters, queue)) for number in range(len(job.asks))]
    try:
        if job.frame.kind == "chat":
            for number in range(len(tasks)):
                yield job.frame.event(number, role="assistant", content="")
        answers: list[Answer] = []
        while len(answers) < len(tasks):
            item = await queue.get()
            if isinstance(item, Exception):
                kind = "invalid_request_error" if isinstance(item, AskError) else "server_error"
                yield sse(error_body(str(item), kind))
                break
            if isinstance(item, Answer):
                answers.append(item)
            else:
                yield item
        if job.tells_usage and len(answers) == len(tasks):
            yield job.frame.usage_event(usage_of(answers, job.prompts))
        yield DONE
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _draw(
    backend: Backend, job: Job, number: int, counters: GuardCounters, queue: asyncio.Queue[str | Answer | Exception]
) -> None:
    try:
        shown = _at_once if job.is_held_back else _growing
        await queue.put(await shown(backend, job, number, counters, queue))
    except (AskError, BackendError) as error:
        await queue.put(error)


async def _at_once(backend, job: Job, number: int, counters: GuardCounters, queue) -> Answer:
    found = await answer(backend, job.asks[number], job.reading, counters)
    if found.reasoning:
        await queue.put(job.frame.event(number, reasoning_content=found.reasoning))
    if found.text or found.tokens:
        await queue.put(job.frame.event(number, found.text, tokens=found.tokens))
    if found.calls:
        await queue.put(job.frame.event(number, tool_calls=call_deltas(found.calls)))
    await queue.put(job.frame.event(number, finish=found.finish, about=_about(job, found)))
    return found


async def _growing(backend: Backend, job: Job, number: int, counters: GuardCounters, queue) -> Answer:
    texts, last = [], Piece("")
    async with contextlib.aclosing(backend.reply(job.asks[number])) as pieces:
        async for last in pieces:
            texts.append(last.text)
            if last.text or last.tokens:
                await queue.put(job.frame.event(number, last.text, tokens=last.tokens))
    if last.finish is None:
        raise BackendError("the reply broke off")
    text = "".join(texts)
    found = read(dataclasses.replace(last, text=text), job.asks[number], job.reading)
    assert isinstance(found, Answer)  # faults are looked for under guard only
    if found.text != text and found.text.startswith(text):  # the token that tells the caller of the end
        await queue.put(job.frame.event(number, found.text[len(text) :]))
    counters.count("replies")
    if found.ended:
        counters.count("ended")
    await queue.put(job.frame.event(number, finish=found.finish, about=_about(job, found)))
    return found


def _about(job: Job, found: Answer) -> dict[str, object]:
    return {"seed": job.frame.seed, "end": found.ended, "faults": list(found.faults)}
