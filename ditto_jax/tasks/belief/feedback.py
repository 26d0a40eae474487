"""Draft answer + belief trace → words about the one mistake that explains it, without the answer.

In: the trace of the question, the story's events, the container that the draft answered, a random generator. Out: one
short sentence that names events and absences, in one of several wordings. It names no container and no option letter,
says nothing about right drafts, and does not filter leaks.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from ditto_jax.tasks.answers import plain_name
from ditto_jax.tasks.belief.oracle import COMMUNICATIONS, Step, Trace
from ditto_jax.tasks.belief.story import Event, Kind
from ditto_jax.tasks.belief.wordings import WORDINGS
from ditto_jax.tasks.belief.words import WAITING_ROOM

# How a draft that counts a move too many is corrected: name the absence, restate the question, or name the last joint
# sight.
_TOO_LATE_SHARES = {"missed": 0.70, "asked": 0.15, "last_seen": 0.15}


def say(kind: str, rng: random.Random, **fields: str) -> str:
    """Returns one wording of a kind of feedback, drawn by `rng`."""
    return rng.choice(WORDINGS[kind]).format(**fields)


def belief_feedback(trace: Trace, events: Iterable[Event], draft: str, rng: random.Random) -> str | None:
    """Returns words about the mistake that leads to the container `draft`; None if draft and oracle agree.

    trace: of the question asked. draft: the container that the draft answered, in any spelling of its name.
    """
    decisive = trace.decisive
    if decisive is None or plain_name(draft) == plain_name(trace.steps[decisive].container):
        return None
    if _is_room(events, draft):
        return say("too_wide", rng, object=trace.question.object)
    named = [i for i, step in enumerate(trace.steps) if plain_name(step.container) == plain_name(draft)]
    if not trace.question.chain:
        return _about_facts(trace, events, draft, rng)
    later = [i for i in named if i > decisive]
    if later:
        return _too_late(trace, trace.steps[later[-1]], events, rng)
    if trace.steps[decisive].kind in COMMUNICATIONS:
        return _trusted(trace, trace.steps[decisive], events, rng)
    if named:
        return _too_early(trace, trace.steps[named[-1]], trace.steps[decisive], events, rng)
    return _elsewhere(trace, events, draft, rng)


def _about_facts(trace: Trace, events: Iterable[Event], draft: str, rng: random.Random) -> str:
    """Order 0: where the object is, or was at the beginning."""
    spoken = _spoken(events, trace.question.object, draft)
    moves = [step for step in trace.steps if step.kind == "move"]
    if trace.question.memory:
        if not moves:
            return say("elsewhere", rng, object=trace.question.object)
        return say("at_the_start", rng, mover=moves[0].actor)
    if spoken:
        return say("only_words", rng, speaker=spoken.agents[0])
    if not moves:
        return say("never_moved", rng)
    return say("moved_last", rng, mover=moves[-1].actor)


def _too_late(trace: Trace, counted: Step, events: Iterable[Event], rng: random.Random) -> str:
    """The draft counts a step that the chain as a whole did not take over."""
    if counted.kind in COMMUNICATIONS:
        return say("doubts", rng, listener=counted.absent[0], speaker=counted.actor)
    form = rng.choices(list(_TOO_LATE_SHARES), weights=list(_TOO_LATE_SHARES.values()))[0]
    if form == "asked":
        return say("asked", rng, asked=" ".join(f"{name} thinks" for name in trace.question.chain))
    if form == "last_seen":
        return _last_seen(trace, events, rng)
    away = rng.choice(counted.absent)
    if counted.kind == "move":
        return say("missed_move", rng, away=away, mover=counted.actor)
    return say("missed_sight", rng, away=away)


def _last_seen(trace: Trace, events: Iterable[Event], rng: random.Random) -> str:
    assert trace.decisive is not None
    step = trace.steps[trace.decisive]
    if step.kind in COMMUNICATIONS:
        return _trusted(trace, step, events, rng)
    if step.kind == "move" and step.absent:
        return say("came_back", rng, away=step.absent[0], mover=step.actor)
    if step.kind == "move":
        return say("last_seen_move", rng, who=_who(trace), mover=step.actor)
    return say("last_seen_start" if step.kind == "first" else "saw_again", rng, who=_who(trace))


def _too_early(trace: Trace, counted: Step, decisive: Step, events: Iterable[Event], rng: random.Random) -> str:
    """The draft stops before a step that the whole chain took over."""
    if counted.kind in COMMUNICATIONS and not counted.adopted:
        return say("doubts", rng, listener=counted.absent[0], speaker=counted.actor)
    if decisive.kind == "move" and decisive.absent:
        return say("came_back", rng, away=decisive.absent[0], mover=decisive.actor)
    if decisive.kind == "move":
        return say("stopped_early", rng, who=_who(trace), mover=decisive.actor)
    return say("saw_again", rng, who=_who(trace))


def _trusted(trace: Trace, step: Step, events: Iterable[Event], rng: random.Random) -> str:
    """The answer follows from what someone said."""
    chain = trace.question.chain
    if len(chain) == 2 and chain[0] == step.actor:
        return say("taken_in", rng, speaker=step.actor, listener=chain[1])
    was_there = _walked_out(events, chain[0], before=step.line)
    return say("trusts" if was_there else "trusts_unseen", rng, listener=chain[0], speaker=step.actor)


def _elsewhere(trace: Trace, events: Iterable[Event], draft: str, rng: random.Random) -> str:
    spoken = _spoken(events, trace.question.object, draft)
    if spoken:
        return say("only_words", rng, speaker=spoken.agents[0])
    return say("elsewhere", rng, object=trace.question.object)


def _who(trace: Trace) -> str:
    chain = trace.question.chain
    return chain[0] if len(chain) == 1 else "all of them"


def _is_room(events: Iterable[Event], draft: str) -> bool:
    """Whether people walk into or out of the drafted place and no object is ever in it."""
    rooms = {plain_name(event.place) for event in events if event.kind in (Kind.ENTER, Kind.EXIT, Kind.BE)}
    containers = {plain_name(event.place) for event in events if event.kind in (Kind.PLACE, Kind.MOVE)}
    return plain_name(draft) in rooms - containers


def _spoken(events: Iterable[Event], obj: str, draft: str) -> Event | None:
    """The first message that puts the object where the draft has it."""
    said = (event for event in events if event.kind in (Kind.CLAIM, Kind.TELL) and event.object == obj)
    return next((event for event in said if plain_name(event.place) == plain_name(draft)), None)


def _walked_out(events: Iterable[Event], name: str, before: int) -> bool:
    """Whether `name` was in the room of the chapter that ends with the message in line `before`."""
    there = False
    for event in events:
        if event.line >= before:
            break
        if event.kind is Kind.ENTER and event.place != WAITING_ROOM:
            there = name in event.agents
    return there
