"""`ditto-jax chat`: lines typed by a person → the simulator's turns, in the terminal.

In: settings, and lines of standard input. Out: what the simulated person says, until either side ends the talk. You are
the other side: the assistant, the agent, whoever the simulator talks with.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable

from ditto_jax.serving.answer import Answer, answer
from ditto_jax.serving.ask import AskError, BackendError, Said
from ditto_jax.serving.config import ServeConfig
from ditto_jax.serving.guard import GuardCounters
from ditto_jax.serving.jobs import House, chat_job
from ditto_jax.serving.server import house_of, make_backend
from ditto_jax.serving.wire import ChatMessage, ChatRequest
from ditto_jax.text.visible_text import visible

_HELP = "You speak first. /new starts over, /quit or Ctrl-D ends."


def talk(config: ServeConfig, read: Callable[[str], str] = input, write: Callable[[str], None] = print) -> None:
    """Talks until the input ends. Raises a DittoError for settings and models that cannot work."""
    house = house_of(config)
    backend = make_backend(config)
    with asyncio.Runner() as runner:
        try:
            runner.run(backend.start())
            write(f"{backend.identity}, preset {house.preset}. {_HELP}")
            _rounds(runner, backend, house, read, write)
        finally:
            runner.run(backend.aclose())


def _rounds(runner: asyncio.Runner, backend, house: House, read: Callable[[str], str], write) -> None:
    said: list[Said] = []
    while True:
        try:
            line = read("you> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            said.clear()
            write("-- a new conversation --")
            continue
        if not line:
            continue
        said.append(Said("user", line))
        try:
            found = runner.run(_reply(backend, house, said))
        except (AskError, BackendError) as error:
            said.pop()
            write(f"-- {error} --")
            continue
        said.append(Said("assistant", found.text))
        write(f"{house.persona.name or house.name}> {visible(found.text)}")
        if found.ended:
            said.clear()
            write("-- the conversation was ended; a new one begins --")


async def _reply(backend, house: House, said: list[Said]) -> Answer:
    messages = [ChatMessage.model_validate({"role": one.role, "content": one.content}) for one in said]
    job = chat_job(ChatRequest(messages=messages, seed=secrets.randbits(31)), house)
    backend.check(job.asks[0])
    return await answer(backend, job.asks[0], job.reading, GuardCounters())
