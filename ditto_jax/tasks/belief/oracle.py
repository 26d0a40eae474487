"""The belief oracle: what a chain of characters takes to be an object's place, and the trace that shows why.

In: the events of a story, a question and the rules of the task. Out: the steps that concern the asked object, each
with who moved, who of the chain was away, and whether the whole chain adopted it; the last adopted step is the answer.
Rules 1-5 of Hi-ToM and the open-container rule of ToMi; it neither reads text nor writes any.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping

from ditto_jax.tasks.belief.story import Event, Kind, Question
from ditto_jax.tasks.belief.words import WAITING_ROOM


@dataclasses.dataclass(frozen=True)
class Rules:
    """What differs between the tasks.

    refreshes_chain: an entrant sees where things are in the room. True (ToMi): so does every chain whose members are
    all there, for all of them see each other look. False (Hi-ToM): it changes only the entrant's own belief.
    placed_where_most_are: in which room a stated place lies. True (ToMi): where most characters are. False (Hi-ToM):
    in the room that was entered last.
    """

    refreshes_chain: bool
    placed_where_most_are: bool


HITOM = Rules(refreshes_chain=False, placed_where_most_are=False)
TOMI = Rules(refreshes_chain=True, placed_where_most_are=True)

PLACINGS = ("first", "noted", "move")
COMMUNICATIONS = ("claim", "tell")


@dataclasses.dataclass(frozen=True)
class Step:
    """One event that could set where the chain takes the object to be.

    kind: "first" (first stated place), "noted" (stated again), "move", "seen" (an entrant looks), "claim" or "tell".
    actor: who moved, looked or spoke; "" where the narrator states a place.
    absent: chain members, in chain order, who were not there; for claims and tells those who do not trust the speaker.
    adopted: the chain as a whole takes `container` from here on, until a later adopted step.
    """

    line: int
    kind: str
    container: str
    actor: str
    absent: tuple[str, ...]
    adopted: bool


@dataclasses.dataclass(frozen=True)
class Trace:
    """Steps in story order. `answer` is the container of the last adopted step, None if the chain never learnt one."""

    question: Question
    steps: tuple[Step, ...]

    @property
    def decisive(self) -> int | None:
        """Index of the step that decides the answer."""
        if self.question.memory:
            return 0 if self.steps else None
        return max((i for i, step in enumerate(self.steps) if step.adopted), default=None)

    @property
    def answer(self) -> str | None:
        return None if self.decisive is None else self.steps[self.decisive].container


def trace_belief(events: Iterable[Event], question: Question, rules: Rules) -> Trace:
    """Returns the trace of `question` through the story. Reality is the empty chain, which misses nothing."""
    tracker = _Tracker(question, rules)
    for event in events:
        tracker.apply(event)
    return Trace(question, tuple(tracker.steps))


class _Tracker:
    """Walks through a story once, for one question."""

    def __init__(self, question: Question, rules: Rules):
        self.question, self.rules = question, rules
        self.steps: list[Step] = []
        self._rooms: dict[str, str] = {}  # character -> room
        self._object_room = ""
        self._entered_last = ""
        self._exits: dict[str, int] = {}  # character -> how many left before, in this chapter

    def apply(self, event: Event) -> None:
        if event.kind in (Kind.ENTER, Kind.BE):
            self._enter(event)
        elif event.kind is Kind.EXIT:
            self._exits[event.agents[0]] = len(self._exits)
            self._rooms.pop(event.agents[0], None)
        elif event.kind is Kind.SITE and self.steps and event.object == self.steps[-1].container:
            self._object_room = event.place
        elif event.object != self.question.object:
            return
        elif event.kind is Kind.PLACE:
            self._object_room = self._room_of_narrator()
            self._place(event, "noted" if self.steps else "first")
        elif event.kind is Kind.MOVE:
            self._object_room = self._rooms.get(event.agents[0], self._object_room)
            self._place(event, "move")
        elif event.kind is Kind.CLAIM:
            self._claim(event)
        elif event.kind is Kind.TELL:
            self._tell(event)

    def _room_of_narrator(self) -> str:
        if not self.rules.placed_where_most_are or not self._rooms:
            return self._entered_last
        crowd = Counter(reversed(self._rooms.values()))  # of equally full rooms, the one that was entered later
        return crowd.most_common(1)[0][0]

    def _place(self, event: Event, kind: str) -> None:
        absent = tuple(name for name in self.question.chain if self._rooms.get(name) != self._object_room)
        actor = event.agents[0] if event.agents else ""
        self.steps.append(Step(event.line, kind, event.place, actor, absent, adopted=not absent))

    def _enter(self, event: Event) -> None:
        if event.place != WAITING_ROOM:
            self._exits.clear()
        for name in event.agents:
            self._rooms.pop(name, None)  # re-insert: rooms are kept in order of entering
            self._rooms[name] = event.place
        self._entered_last = event.place
        chain = self.question.chain
        sees = len(chain) == 1 or (self.rules.refreshes_chain and all(self._rooms.get(n) == event.place for n in chain))
        if event.place == self._object_room and sees and set(chain) & set(event.agents):
            self._refresh(event)

    def _refresh(self, event: Event) -> None:
        """The chain sees the true place: it adopts the latest placing, or sees anew what words had covered."""
        latest = max(i for i, step in enumerate(self.steps) if step.kind in PLACINGS)
        if any(step.adopted for step in self.steps[latest + 1 :]):
            entrant = next(name for name in event.agents if name in self.question.chain)
            self.steps.append(Step(event.line, "seen", self.steps[latest].container, entrant, (), adopted=True))
        else:
            self.steps[latest] = dataclasses.replace(self.steps[latest], adopted=True)

    def _left_before(self, listener: str, speaker: str) -> bool:
        """Whether `listener` trusts: it left the chapter's room before the speaker, or never was there."""
        return _rank(self._exits, listener) < _rank(self._exits, speaker)

    def _claim(self, event: Event) -> None:
        speaker = event.agents[0]
        chain = self.question.chain
        if len(chain) == 1 and chain[0] != speaker:
            self._say(event, "claim", adopted=self._left_before(chain[0], speaker))
        elif len(chain) == 2 and chain[0] == speaker:  # the speaker takes everyone to be taken in
            self._say(event, "claim", adopted=True)
        elif len(chain) == 2 and chain[1] == speaker:
            self._say(event, "claim", adopted=self._left_before(chain[0], speaker))

    def _tell(self, event: Event) -> None:
        speaker, listener = event.agents
        if self.question.chain == (speaker, listener):
            self._say(event, "tell", adopted=True)
        elif self.question.chain in ((listener,), (listener, speaker)):
            self._say(event, "tell", adopted=self._left_before(listener, speaker))

    def _say(self, event: Event, kind: str, adopted: bool) -> None:
        doubter = () if adopted else self.question.chain[:1]
        self.steps.append(Step(event.line, kind, event.place, event.agents[0], doubter, adopted))


def _rank(exits: Mapping[str, int], name: str) -> float:
    """The position of `name` among those who left; whoever was not there knows less than all of them."""
    return exits.get(name, -1)
