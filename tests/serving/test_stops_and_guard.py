"""Text that grows is cut at stop strings wherever pieces end; replies that are no turns of a person are found out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.serving.guard import Fault, inspect, is_visible
from ditto_jax.serving.stops import StopText

TEXTS = st.text(alphabet="ab#S é", max_size=30)
STOPS = st.lists(st.text(alphabet="ab#S", min_size=1, max_size=4), max_size=3)


@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 30), max_size=8))
def test_what_is_shown_does_not_depend_on_where_pieces_end(text, stops, cuts):
    found = [text.index(stop) for stop in stops if stop in text]
    expected = text[: min(found)] if found else text
    shown = StopText(stops)
    pieces = [shown.feed(text[:cut]) for cut in sorted(min(cut, len(text)) for cut in cuts)]
    pieces.append(shown.feed(text, final=True))
    assert "".join(pieces) == expected
    assert shown.stopped == bool(found)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided():
    shown = StopText(["###STOP###"])
    assert shown.feed("bye ###S") == "bye "
    assert shown.feed("bye ###Sorry") == "###Sorry"
    assert shown.feed("bye ###Sorry ###STOP### and more") == " "
    assert shown.matched == "###STOP###" and shown.feed("anything", final=True) == ""


def test_half_a_character_is_not_shown():
    shown = StopText([])
    assert shown.feed("caf\ufffd") == "caf"
    assert shown.feed("café") == "é"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("I would like a refund <think>be polite</think>", Fault.THINKING),
        ("<think>The user wants", Fault.THINKING),
        ("<thinking>hm</thinking>ok <think>", Fault.THINKING),
        ("Sure.<|im_end|>\n<|im_start|>user", Fault.TURN_MARK),
        ("Assistant: how can I help?", Fault.OTHER_SPEAKER),
        ("**Agent**: welcome", Fault.OTHER_SPEAKER),
        ("My system: a laptop", None),
        ("I think so", None),
        ("", None),  # whether something must be said is not known here
    ],
)
def test_faults_of_replies(text, fault):
    assert inspect(text).fault is fault


def test_a_thought_before_the_turn_is_routed_apart_and_not_lost():
    for text in ("<think>who am I</think>\n\nHello.", "who am I</think>Hello."):
        spoken = inspect(text)
        assert (spoken.text, spoken.reasoning, spoken.fault) == ("Hello.", "who am I", None)


@pytest.mark.parametrize("text", ["", " \n", "\u200b\u2060", "\ufffd", "\x07"])
def test_nothing_visible_is_nothing_said(text):
    assert not is_visible(text)


@pytest.mark.parametrize("text", ["a", "?", "😀", "é", "你"])
def test_anything_visible_counts(text):
    assert is_visible(text)
