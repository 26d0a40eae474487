"""Misconceptions: buggy rules give the gold, words show the rule elsewhere, readers refuse what is malformed."""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import DataError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.mistakes.files import mistakes_released
from ditto_jax.tasks.mistakes.generator import BUGS, KINDS
from ditto_jax.tasks.mistakes.task import Mistakes, MistakesOptions
from ditto_jax.tasks.rows import RowReport
from ditto_jax.types import Conversation

TASK = Mistakes(MistakesOptions())
ROW = {
    "QuestionText": "2 + 3 x 4?",
    "AnswerAText": "20",
    "AnswerBText": "14",
    "AnswerCText": "9",
    "AnswerDText": "24",
    "MisconceptionName": "Works from left to right",
    "TargetOption": "A",
    "TargetAnswer": "20",
}
EXAMPLE = mistakes_released(Path("f.parquet"), "row[0]", "mistakes-0", ROW)
GENERATED = TASK.load(Source(limit=60))


def score(reply: str, example=EXAMPLE) -> float | None:
    verdict = TASK.rule_score(example, Conversation((), reply))
    return None if verdict is None else verdict.score


def test_only_the_target_letter_alone_in_the_tag_scores():
    assert score("<answer>a</answer>") == 1
    for reply in (
        "",
        "A",
        "<answer>A or B</answer>",
        "<answer>B</answer>",
        "<think><answer>A</answer>",
        "<answer>E</answer>",
    ):
        assert score(reply) == 0


@given(st.text(alphabet="BCD or,/"), st.text(alphabet="ABCD or,/"))
def test_no_hedge_scores(before, after):
    for inside in (f"{before}B{after}", f"A{before}B", f"{before}B A{after}"):
        assert score(f"<answer>{inside}</answer>") == 0


def test_generated_gold_is_what_the_bug_gives_and_splits_share_no_problem():
    for example in GENERATED:
        bug, options = BUGS[example.payload["bug"]], example.payload["options"]
        assert (
            example.gold == bug.answer(example.payload["numbers"]) != KINDS[bug.kind].right(example.payload["numbers"])
        )
        assert options["ABCD".index(example.payload["gold_letter"])] == example.gold and len(set(options)) == 4
    groups = [
        frozenset().union(*(TASK.groups(e) for e in TASK.load(Source(split=split, limit=200))))
        for split in ("train", "validation", "test")
    ]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_words_show_the_step_on_other_numbers_and_do_not_leak():
    for example in GENERATED:
        wrong = next(letter for letter in "ABCD" if letter != example.payload["gold_letter"])
        reply = Conversation((), f"<answer>{wrong}</answer>")
        verdict = TASK.rule_score(example, reply)
        assert verdict is not None
        words = TASK.rule_feedback(example, reply, verdict, random.Random(1))
        assert words and TASK.leak(example, words) == ""
    assert TASK.leak(EXAMPLE, "The pupil says 20.") == "gold_text"
    assert Mistakes(MistakesOptions(gold_in_prompt=True)).leak(EXAMPLE, "The pupil says 20.") == ""


@pytest.mark.parametrize("field", ["QuestionText", "AnswerAText", "MisconceptionName", "TargetOption"])
@pytest.mark.parametrize("value", [None, "", [1], {"a": 1}, "\ud800"])
def test_a_malformed_field_is_refused_by_name(field, value):
    with pytest.raises(DataError, match=r"f\.parquet: row\[0\]"):
        mistakes_released(Path("f.parquet"), "row[0]", "x", {**ROW, field: value})


@given(
    st.dictionaries(st.sampled_from([*ROW]), st.none() | st.text() | st.integers() | st.lists(st.text(), max_size=3))
)
def test_hostile_rows_raise_data_errors_alone(row):
    with contextlib.suppress(DataError):
        mistakes_released(Path("f.parquet"), "row[0]", "x", row)


PUPIL = {
    "Misconception": "Joins digits",
    "Misconception ID": "MaE1",
    "Topic": "Numbers",
    "Example Number": 1,
    "Question": "2 + 3",
    "Incorrect Answer": "2 + 3 = 23",
    "Correct Answer": "5",
    "Question image": "",
}


def open_examples(folder: Path, *rows: object) -> tuple[dict[str, tuple[str, ...]], RowReport]:
    """The options of every example of all splits, the pupil's answer first; and the account of one pass."""
    (folder / "data.json").write_text(json.dumps(rows))
    found, report = {}, RowReport(skip_bad=True)
    for split in ("train", "validation", "test"):
        report = RowReport(skip_bad=True)
        for example in TASK.load(Source("files", folder, split, rows=report)):
            options = example.payload["options"]
            assert options["ABCD".index(example.payload["gold_letter"])] == example.gold
            found[example.id] = (example.gold, *(text for text in options if text != example.gold))
    return found, report


def test_options_are_other_pupils_answers_to_the_question_and_slips_in_the_last_number(tmp_path):
    doubles = {**PUPIL, "Misconception ID": "MaE2", "Incorrect Answer": "6"}
    words = {
        **PUPIL,
        "Misconception ID": "MaE3",
        "Question": "True?",
        "Incorrect Answer": "Yes",
        "Correct Answer": "No",
    }
    found, _ = open_examples(tmp_path, PUPIL, doubles, words)
    gold, *others = found["mistakes-MaE1-1"]
    assert gold == "2 + 3 = 23" and {"5", "6"} < set(others)
    [slip] = set(others) - {"5", "6"}
    assert re.fullmatch("[1-46-9]", slip)  # the right answer with another digit
    assert found["mistakes-MaE3-1"][0] == "Yes" and set(found["mistakes-MaE3-1"][1:]) == {"No", "6", "2 + 3 = 23"}


def test_answers_of_the_same_misconception_are_no_options_for_each_other(tmp_path):
    """Either would be what this pupil says."""
    again = {**PUPIL, "Example Number": 2, "Incorrect Answer": "32"}
    found, _ = open_examples(tmp_path, PUPIL, again)
    assert "32" not in found["mistakes-MaE1-1"] and "2 + 3 = 23" not in found["mistakes-MaE1-2"]


def test_pictures_are_left_out_and_bad_rows_counted(tmp_path):
    shown = {**PUPIL, "Example Number": 2, "Question image": "q7"}
    drawn = {**PUPIL, "Example Number": 3, "Incorrect Answer": "[Image]"}
    found, report = open_examples(tmp_path, PUPIL, shown, drawn, {**PUPIL, "Topic": 4}, 7, PUPIL)
    assert list(found) == ["mistakes-MaE1-1"]
    assert dict(report.left_out) == {"the question shows a picture": 1, "an answer is a picture": 1}
    assert (report.found, len(report.refused)) == (6, 3)  # no object, and twice an id that is there


def test_the_open_examples_are_split_by_misconception(soul_data_dir):
    folder = soul_data_dir / "mistakes"
    parts = [TASK.load(Source("files", folder, split)) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 109
    groups = [{e.payload["group"] for e in part} for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups))
