"""The Hi-ToM belief oracle: a worked example with lies, the official labels, and twins that must fail."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ditto_jax.tasks.belief.oracle import HITOM, Trace, trace_belief
from ditto_jax.tasks.belief.story import Event, Kind, Question, parse_question, parse_story, render_story
from ditto_jax.tasks.hitom.files import read_hitom
from ditto_jax.types import Example

STORY = """\
1 Ann, Bob, Cid, Dee and Eve entered the den.
2 The apple is in the red_box.
3 Ann moved the apple to the blue_bin.
4 Ann exited the den.
5 Bob made no movements and stayed in the den for 1 minute.
6 Bob exited the den.
7 Cid moved the apple to the green_tin.
8 Cid exited the den.
9 Dee made no movements and stayed in the den for 1 minute.
10 Dee exited the den.
11 Eve moved the apple to the red_box.
12 Eve exited the den.
13 Ann, Bob, Cid, Dee and Eve entered the waiting_room.
14 Cid publicly claimed that apple is in the tan_jar.
15 Eve privately told Cid that the apple is in the grey_pot."""

BELIEFS = {
    "": "red_box",
    "Ann": "tan_jar",
    "Bob": "tan_jar",
    "Cid": "grey_pot",
    "Dee": "green_tin",
    "Eve": "red_box",
    "Cid Dee": "tan_jar",
    "Dee Cid": "green_tin",
    "Ann Cid": "tan_jar",
    "Eve Cid": "grey_pot",
    "Cid Eve": "grey_pot",
    "Dee Eve": "green_tin",
    "Ann Bob Cid": "blue_bin",
    "Bob Cid Dee Eve": "blue_bin",
}

Oracle = Callable[[tuple[Event, ...], Question], str | None]


def _oracle(events: tuple[Event, ...], question: Question) -> str | None:
    return trace_belief(events, question, HITOM).answer


def _blind_to_absence(events: tuple[Event, ...], question: Question) -> str | None:
    return _oracle(events, Question(question.object))


def _deaf(events: tuple[Event, ...], question: Question) -> str | None:
    return _oracle(tuple(e for e in events if e.kind not in (Kind.CLAIM, Kind.TELL)), question)


def _credulous(events: tuple[Event, ...], question: Question) -> str | None:
    """Believes every message, whoever left first."""
    trace: Trace = trace_belief(events, question, HITOM)
    said = [step.container for step in trace.steps if step.kind in ("claim", "tell")]
    return said[-1] if said else trace.answer


@pytest.fixture(scope="module")
def official() -> list[Example]:
    folder = os.environ.get("SOUL_DATA_DIR")
    if not folder or not (Path(folder) / "hitom").exists():
        pytest.skip("needs the Hi-ToM file: set SOUL_DATA_DIR to the folder that holds hitom/")
    return read_hitom(Path(folder) / "hitom")


def _rates(rows: list[Example], oracle: Oracle) -> dict[int, float]:
    right: Counter[int] = Counter()
    seen: Counter[int] = Counter()
    for row in rows:
        order = row.payload["question_order"]
        question = parse_question(row.payload["question"])
        seen[order] += 1
        right[order] += oracle(parse_story(row.payload["story"]), question) == row.gold
    rates = {order: right[order] / seen[order] for order in sorted(seen)}
    return rates | {-1: right.total() / seen.total()}


def _accepts(rates: dict[int, float]) -> bool:
    return rates[-1] >= 0.97 and rates[0] == rates[1] == 1.0


@pytest.mark.parametrize(("chain", "place"), BELIEFS.items())
def test_the_worked_example_with_lies_is_reproduced(chain: str, place: str):
    assert _oracle(parse_story(STORY), Question("apple", tuple(chain.split()))) == place


@pytest.mark.parametrize("twin", [_blind_to_absence, _deaf, _credulous])
def test_a_broken_oracle_misses_the_worked_example(twin: Oracle):
    events = parse_story(STORY)
    assert any(twin(events, Question("apple", tuple(c.split()))) != place for c, place in BELIEFS.items())


def test_official_labels_are_reproduced(official: list[Example], record_property):
    rates = _rates(official, _oracle)
    record_property("rates by order (-1: all)", rates)
    assert _accepts(rates), rates


@pytest.mark.parametrize("twin", [_blind_to_absence, _deaf, _credulous])
def test_a_broken_oracle_fails_the_official_labels(official: list[Example], twin: Oracle):
    assert not _accepts(_rates(official, twin))


def test_official_stories_come_back_from_their_events(official: list[Example]):
    for row in official:
        story = row.payload["story"]
        assert render_story(parse_story(story)).split("\n") == [line.strip() for line in story.split("\n")]


def test_whoever_returns_sees_the_true_place_but_learns_nothing_of_others():
    events = parse_story(
        "Ann and Bob entered the den. The apple is in the crate. Ann exited the den. Bob moved the apple to the tub. "
        "Bob exited the den. Ann entered the den."
    )
    assert _oracle(events, Question("apple", ("Ann",))) == "tub"
    assert _oracle(events, Question("apple", ("Bob", "Ann"))) == "crate"


def test_sight_on_return_outweighs_an_earlier_lie():
    events = parse_story(
        "Ann and Bob entered the den. The apple is in the crate. Ann exited the den. Bob exited the den. "
        "Ann and Bob entered the waiting_room. Bob publicly claimed that apple is in the tub. Ann entered the den."
    )
    trace = trace_belief(events, Question("apple", ("Ann",)), HITOM)
    assert [step.kind for step in trace.steps] == ["first", "claim", "seen"]
    assert trace.answer == "crate"
    assert _oracle(events[:-1], Question("apple", ("Ann",))) == "tub"


def test_the_trace_names_who_missed_which_move():
    trace = trace_belief(parse_story(STORY), Question("apple", ("Bob", "Dee")), HITOM)
    assert [(s.container, s.actor, s.absent) for s in trace.steps] == [
        ("red_box", "", ()),
        ("blue_bin", "Ann", ()),
        ("green_tin", "Cid", ("Bob",)),
        ("red_box", "Eve", ("Bob", "Dee")),
    ]
