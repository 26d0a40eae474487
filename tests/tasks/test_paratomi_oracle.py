"""The ToMi belief oracle against every official row; the rows it contradicts are two known defects of the labels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ditto_jax.errors import DataError
from ditto_jax.tasks.belief.oracle import HITOM, TOMI, Rules, trace_belief
from ditto_jax.tasks.belief.story import Event, Kind, Question, parse_question, parse_story
from ditto_jax.tasks.paratomi.files import read_paratomi
from ditto_jax.types import Example


def _folder() -> Path:
    folder = os.environ.get("SOUL_DATA_DIR")
    if not folder or not (Path(folder) / "paratomi").exists():
        pytest.skip("needs the ToMi files: set SOUL_DATA_DIR to the folder that holds paratomi/")
    return Path(folder) / "paratomi"


@pytest.fixture(scope="module")
def official() -> list[Example]:
    return read_paratomi(_folder(), "test")


def _answer(row: Example, rules: Rules = TOMI) -> str | None:
    return trace_belief(parse_story(row.payload["story"]), parse_question(row.payload["question"]), rules).answer


def _has_label_defect(events: tuple[Event, ...], question: Question) -> bool:
    """Whether the official generator mislabels second-order questions of this story with the object's real place.

    It does so (1) when a third character ever enters the room of the object, because that entrance is evaluated after
    the story's end with everybody as witness; and (2) when the other character returns to the room after the mover has
    left it, because the mover still counts as witness.
    """
    mover = next(e.agents[0] for e in events if e.kind is Kind.MOVE)
    room = next(e.place for e in events if e.kind is Kind.ENTER and e.agents[0] == mover)
    entries = [e for e in events if e.kind is Kind.ENTER and e.place == room]
    left = next((e.line for e in events if e.kind is Kind.EXIT and e.agents[0] == mover), None)
    third_enters = any(e.agents[0] not in question.chain for e in entries)
    returns = left is not None and any(e.agents[0] != mover and e.line > left for e in entries)
    return third_enters or returns


def test_every_official_row_up_to_first_order_is_answered(official: list[Example]):
    rows = [row for row in official if row.payload["question_order"] < 2]
    assert len(rows) > 3000
    assert [row.id for row in rows if _answer(row) != row.gold] == []


def test_official_second_order_rows_agree_or_carry_a_known_label_defect(official: list[Example], record_property):
    rows = [row for row in official if row.payload["question_order"] == 2]
    agree = 0
    for row in rows:
        events, question = parse_story(row.payload["story"]), parse_question(row.payload["question"])
        own = _answer(row)
        agree += own == row.gold
        real = trace_belief(events, Question(question.object), TOMI).answer
        assert row.gold == (real if _has_label_defect(events, question) else own), row.id
    record_property("second-order rows", f"{agree} of {len(rows)} agree")
    assert 0.7 < agree / len(rows) < 0.85


def test_every_row_of_the_corrected_table_is_answered():
    rows = read_paratomi(_folder() / "PercepToM" / "Percept-ToMi.csv", "test")
    assert len(rows) > 400
    assert [row.id for row in rows if _answer(row) != row.gold] == []


def test_the_rules_of_the_other_task_would_fail():
    rows = read_paratomi(_folder() / "PercepToM" / "Percept-ToMi.csv", "test")
    assert sum(_answer(row, HITOM) == row.gold for row in rows) < len(rows)


def test_stories_read_the_same_as_lines_and_as_running_text(official: list[Example]):
    for row in official[::25]:
        lines = row.payload["story"].split("\n")
        running = " ".join(line.split(" ", 1)[1] for line in lines)
        assert parse_story(running) == parse_story(row.payload["story"])


def test_a_return_is_seen_by_all_who_are_there():
    seen = "Ann entered the den. Bob entered the den. The apple is in the crate. Bob exited the den. "
    seen += "Ann moved the apple to the tub. Bob entered the den."
    unseen = seen.replace("tub. Bob", "tub. Ann exited the den. Bob")
    for story, nested in ((seen, "tub"), (unseen, "crate")):
        events = parse_story(story)
        assert trace_belief(events, Question("apple", ("Bob",)), TOMI).answer == "tub"
        assert trace_belief(events, Question("apple", ("Ann", "Bob")), TOMI).answer == nested


def test_a_container_may_stand_in_a_stated_room():
    events = parse_story(
        "Ann entered the porch. The hat is in the chest. The chest is in the porch. Ann exited the porch."
    )
    assert [event.kind for event in events] == [Kind.ENTER, Kind.PLACE, Kind.SITE, Kind.EXIT]


@pytest.mark.parametrize("sentence", ["Ann juggled the apple.", "The apple is red.", "Ann entered."])
def test_a_sentence_outside_the_grammar_is_an_error_that_quotes_it(sentence: str):
    with pytest.raises(DataError, match=sentence.rstrip(".")):
        parse_story(f"1 Ann entered the den.\n2 {sentence}")


def test_an_unknown_question_is_an_error_that_quotes_it():
    with pytest.raises(DataError, match="Why is the apple"):
        parse_question("Why is the apple red?")
