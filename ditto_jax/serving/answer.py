"""One ask → one answer: drawn until it is a turn of a simulated person, at most k times, and read for its end.

In: an ask, the preset that reads replies, and what the caller wants. Out: an `Answer`, or AskError or BackendError.
Nothing of a faulty reply is ever handed out; when all tries were faulty that is said and counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from ditto_jax.serving.ask import Ask, Backend, BackendError, Piece, TokenScore
from ditto_jax.serving.guard import Fault, GuardCounters, inspect, is_visible
from ditto_jax.serving.simulator import Preset, hear
from ditto_jax.serving.tools import is_broken_call, read_calls, read_forced_call


@dataclasses.dataclass(frozen=True)
class Reading:
    """How replies are read: by which preset, whether under guard, how often drawn, and what the caller looks for at the
    end of a conversation. forced: the reply is a tool call and nothing else.
    """

    preset: Preset
    is_guarded: bool = True
    attempts: int = 4
    end_token: str | None = None
    forced: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """A reply as the caller gets it. `ended`: the simulated person ends the conversation. faults: of earlier tries.

    Token counts are those of all tries, for that is what was computed.
    """

    text: str
    finish: str
    calls: tuple[Mapping[str, Any], ...] = ()
    reasoning: str = ""
    ended: bool = False
    faults: tuple[str, ...] = ()
    tokens: tuple[TokenScore, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int = 0


async def answer(backend: Backend, ask: Ask, reading: Reading, counters: GuardCounters) -> Answer:
    """Returns an accepted reply; raises BackendError if none of the tries is one.

    What is drawn greedily would be drawn again as it was, so later tries of it have temperature 1.
    """
    faults: list[str] = []
    spent = 0
    for attempt in range(reading.attempts if reading.is_guarded else 1):
        temperature = 1.0 if attempt and not ask.temperature else ask.temperature
        whole = await _whole(backend, dataclasses.replace(ask, attempt=attempt, temperature=temperature))
        spent += whole.completion_tokens
        found = read(whole, ask, reading)
        if isinstance(found, Answer):
            counters.count("replies")
            if found.ended:
                counters.count("ended")
            return dataclasses.replace(found, faults=tuple(faults), completion_tokens=spent)
        faults.append(found)
        counters.count(f"fault/{found}")
        if attempt + 1 < reading.attempts:
            counters.count("redrawn")
    counters.count("gave_up")
    raise BackendError(
        f"no usable reply in {reading.attempts} tries ({', '.join(faults)}); raise ditto.attempts or max_tokens, or "
        "take replies as they come with ditto.guard=false"
    )


def read(whole: Piece, ask: Ask, reading: Reading) -> Answer | Fault:
    """Returns what a whole reply means, or the fault for which it must not be used; without a guard nothing is one."""
    text, calls = whole.text, whole.calls
    if reading.forced and not calls:
        calls = read_forced_call(text, ask.tools)
        text = "" if calls else text
    elif ask.tools and not calls and ask.tool_choice != "none":
        text, calls = read_calls(text, ask.tools)
    finish = "tool_calls" if calls else whole.finish or "stop"
    rest = {
        "finish": finish,
        "calls": calls,
        "tokens": whole.tokens,
        "prompt_tokens": whole.prompt_tokens,
        "completion_tokens": whole.completion_tokens,
    }
    if not reading.is_guarded:
        heard = hear(text, whole.end_mark, reading.preset, reading.end_token)
        kept = heard.text if heard.ended or reading.preset.hears else text
        return Answer(kept, ended=heard.ended, reasoning=whole.reasoning, **rest)
    spoken = inspect(text)
    if spoken.fault is not None:
        return spoken.fault
    if (reading.forced and not calls) or is_broken_call(spoken.text, ask.tools):
        return Fault.BROKEN_CALL
    heard = hear(spoken.text, whole.end_mark, reading.preset, reading.end_token)
    if not calls and not is_visible(heard.text):
        return Fault.EMPTY
    if calls and heard.text and reading.preset.calls_alone:
        return Fault.SPEECH_AND_CALL
    reasoning = "\n".join(filter(None, (whole.reasoning, spoken.reasoning)))
    return Answer(heard.text, ended=heard.ended, reasoning=reasoning, **rest)


async def _whole(backend: Backend, ask: Ask) -> Piece:
    """Returns all pieces of a reply as one."""
    texts: list[str] = []
    tokens: list[TokenScore] = []
    last = Piece("")
    async with contextlib.aclosing(backend.reply(ask)) as pieces:
        async for last in pieces:
            texts.append(last.text)
            tokens.extend(last.tokens)
    if last.finish is None:
        raise BackendError("the reply broke off")
    return dataclasses.replace(last, text="".join(texts), tokens=tuple(tokens))
