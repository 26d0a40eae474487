"""Public FANToM files: every row is read or accounted for, options are in no telling order, bad rows are named."""

from __future__ import annotations

import collections
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.fantom.task import Fantom, FantomOptions
from ditto_jax.tasks.registry import get_task
from ditto_jax.tasks.rows import RowReport
from ditto_jax.types import Conversation, Example

TASK = Fantom(FantomOptions())
BELIEFS = "FANToM_tom:belief:inaccessible_short_context_first-order.csv"
BELIEF = {
    "context": "Ann: My dog is Rex.\nBob: Nice.",
    "question": "What does Cid believe about Ann's dog?",
    "answer_choices": "['Cid knows nothing of it.', 'Cid believes it is Rex.']",
    "gt_answer": "Cid knows nothing of it.",
}
SET: dict[str, Any] = {
    "set_id": "4-0-0",
    "short_context": "Ann: My dog is Rex.",
    "full_context": "Cid: Bye.\nAnn: My dog is Rex.",
    "factQA": {"question": "What is Ann's dog called?", "correct_answer": "Rex", "question_type": "fact"},
    "beliefQAs": [
        {
            "question": "What does Cid believe about the name of Ann's dog?",
            "question_type": "tom:belief:inaccessible",
            "tom_type": "first-order",
            "correct_answer": "Cid has no idea.",
            "wrong_answer": "Cid believes that it is Rex.",
            "missed_info_accessibility": "inaccessible",
        }
    ],
    "answerabilityQA_list": {
        "question": "List all who can answer.",
        "question_type": "tom:answerability:list",
        "correct_answer": ["Ann", "Bob"],
        "wrong_answer": ["Cid"],
        "missed_info_accessibility": "inaccessible",
    },
    "answerabilityQAs_binary": [
        {
            "question": "Can Cid answer?",
            "question_type": "tom:answerability:binary",
            "correct_answer": "no",
            "missed_info_accessibility": "inaccessible",
        }
    ],
    "infoAccessibilityQA_list": {
        "question": "List all who know.",
        "question_type": "tom:info_accessibility:list",
        "correct_answer": ["Ann", "Bob"],
        "wrong_answer": ["Cid"],
        "missed_info_accessibility": "inaccessible",
    },
    "infoAccessibilityQAs_binary": [
        {
            "question": "Does Bob know?",
            "question_type": "tom:info_accessibility:binary",
            "correct_answer": "yes",
            "missed_info_accessibility": "inaccessible",
        }
    ],
}


def beliefs(folder: Path, *rows: dict[str, Any], name: str = BELIEFS) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[*rows[0]])
    writer.writeheader()
    writer.writerows(rows)
    (folder / "AutoToM").mkdir(exist_ok=True)
    file = folder / "AutoToM" / name
    file.write_text(text.getvalue(), encoding="utf-8")
    return file


def complete(folder: Path, sets: Any) -> Path:
    file = folder / "fantom_v1.json"
    file.write_text(json.dumps(sets), encoding="utf-8")
    return file


def load(path: Path, report: RowReport | None = None, **options: Any) -> list[Example]:
    return list(Fantom(FantomOptions(**options)).load(Source("files", path, "test", rows=report or RowReport())))


def test_a_belief_file_alone_gives_choices_grouped_by_chat(tmp_path):
    example = load(beliefs(tmp_path, BELIEF))[0]
    letter = example.payload["gold_letter"]
    assert example.payload["options"]["AB".index(letter)] == example.gold == BELIEF["gt_answer"]
    assert example.payload["order"] == "first-order" and example.payload["accessibility"] == "inaccessible"
    assert next(iter(TASK.groups(example))).startswith("fantom conversation:chat")
    both = load(tmp_path, open_belief=True)
    assert [e.payload["form"] for e in both] == ["open", "choice"]
    assert both[0].payload["wrong_answer"] == "Cid believes it is Rex." and both[0].gold == both[1].gold


def test_options_of_belief_files_are_shuffled_by_question(tmp_path):
    rows = [{**BELIEF, "question": f"What does Cid believe about dog {i}?"} for i in range(60)]
    letters = collections.Counter(e.payload["gold_letter"] for e in load(beliefs(tmp_path, *rows)))
    assert min(letters["A"], letters["B"]) > 15


def test_the_authors_file_gives_every_question_of_a_set(tmp_path):
    examples = load(complete(tmp_path, [SET]), open_belief=True, facts=True)
    assert [e.payload["form"] for e in examples] == ["fact", "open", "choice", "binary", "binary", "list", "list"]
    assert {e.payload["set_size"] for e in examples} == {6} and {e.payload["conversation"] for e in examples} == {"4"}
    by_type = {e.payload["question_type"]: e for e in examples}
    about = by_type["tom:answerability:list"].payload["question"]
    assert "What is Ann's dog called?" in about and "called? Rex" not in about
    assert "What is Ann's dog called? Rex" in by_type["tom:info_accessibility:binary"].payload["question"]
    assert len(load(tmp_path)) == 5  # the folder will do, and what is not asked for is not there
    assert "Cid: Bye." in load(tmp_path, context="full")[0].payload["context"]


def test_people_of_the_full_chat_alone_are_asked_about_only_with_it(tmp_path):
    short = {
        **SET,
        "infoAccessibilityQAs_binary": [{**SET["infoAccessibilityQAs_binary"][0], "correct_answer": "no:long"}],
    }
    for field in ("answerabilityQA_list", "infoAccessibilityQA_list"):
        short[field] = {**SET[field], "wrong_answer": [], "missed_info_accessibility": "accessible"}
    file, report = complete(tmp_path, [short]), RowReport()
    examples = load(file, report)
    assert len(examples) == 4 == examples[0].payload["set_size"] and report.found == 5
    assert report.left_out == {"person who is only in the full chat": 1}
    full = load(file, context="full")
    assert len(full) == 5 and {e.payload["accessibility"] for e in full} == {"inaccessible"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, None) for field in SET),
        ("factQA", "none"),
        ("factQA", {"question": "x"}),
        ("beliefQAs", {"a": 1}),
        ("beliefQAs", [{**SET["beliefQAs"][0], "wrong_answer": None}]),
        ("beliefQAs", [{**SET["beliefQAs"][0], "correct_answer": ""}]),
        ("answerabilityQA_list", {**SET["answerabilityQA_list"], "question_type": "tom:x:list"}),
        ("infoAccessibilityQAs_binary", [{**SET["infoAccessibilityQAs_binary"][0], "correct_answer": "perhaps"}]),
        ("short_context", ["Ann: Hi."]),
    ],
)
def test_a_malformed_set_is_named_or_counted(tmp_path, field: str, value: Any):
    file = complete(tmp_path, [SET, {**SET, "set_id": "5-0-0", field: value}])
    with pytest.raises(DataError, match=r"fantom_v1\.json: \[1\]"):
        load(file)
    report = RowReport(skip_bad=True)
    assert len(load(file, report)) >= 5 and len(report.refused) >= 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context", ""),
        ("question", ""),
        ("answer_choices", ""),
        ("answer_choices", "['one']"),
        ("answer_choices", "[1, 2]"),
        ("answer_choices", "__import__('os')"),
        ("gt_answer", ""),
        ("gt_answer", "another"),
    ],
)
def test_a_malformed_belief_row_is_named_or_counted(tmp_path, field: str, value: str):
    file = beliefs(tmp_path, BELIEF, {**BELIEF, "question": "Other?", field: value})
    with pytest.raises(DataError, match=rf"line [45]: {field}="):
        load(file)
    report = RowReport(skip_bad=True)
    assert len(load(file, report)) == 1 and (report.found, len(report.refused)) == (2, 1)


def test_files_that_are_something_else_say_so(tmp_path):
    with pytest.raises(MissingInputError, match=r"fantom_v1\.json"):
        load(tmp_path)
    with pytest.raises(MissingInputError, match="no such file"):
        load(tmp_path / "fantom_v1.json")
    with pytest.raises(DataError, match="no column gt_answer"):
        load(beliefs(tmp_path, {"context": "a", "question": "b", "answer_choices": "c"}))
    with pytest.raises(DataError, match="its name must say"):
        load(beliefs(tmp_path, BELIEF, name="other.csv"))
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not valid JSON"):
        load(tmp_path / "x.json")
    with pytest.raises(DataError, match="JSON list"):
        load(complete(tmp_path, {}))
    with pytest.raises(MissingInputError, match="source.split to test"):
        TASK.load(Source("files", tmp_path, "train"))


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_hostile_json_raises_data_errors_alone(tmp_path_factory, value: Any):
    folder = tmp_path_factory.mktemp("hostile")
    for content in (value, [value], [{**SET, "beliefQAs": value}], [{**SET, "factQA": value}]):
        try:
            load(complete(folder, content), RowReport(skip_bad=True))
        except DataError as error:
            assert "fantom_v1.json" in str(error)  # noqa: PT017


@given(st.text())
def test_hostile_csv_raises_data_errors_alone(tmp_path_factory, text: str):
    file = tmp_path_factory.mktemp("hostile") / BELIEFS
    file.write_bytes(f"context,question,answer_choices,gt_answer\n{text}".encode(errors="replace"))
    try:
        load(file, RowReport(skip_bad=True))
    except DataError as error:
        assert BELIEFS in str(error)  # noqa: PT017


def test_the_public_files_are_read_whole_with_their_sets(soul_data_dir):
    report = RowReport()
    examples = load(soul_data_dir / "fantom", report)
    assert len(examples) == 1282 and not report.refused
    assert report.found == 1282 + sum(report.left_out.values()) == 9177
    assert len({e.payload["conversation"] for e in examples}) == 208
    assert len(load(soul_data_dir / "fantom", context="full")) == 763
    share = sum(e.payload["gold_letter"] == "A" for e in examples) / len(examples)
    assert 0.45 < share < 0.55
    scored = [TASK.rule_score(e, Conversation((), f"<answer>{e.payload['gold_letter']}</answer>")) for e in examples]
    assert all(verdict.score == 1.0 for verdict in scored)


def test_generated_chats_are_the_same_every_time_and_in_one_split_only():
    splits = {split: TASK.generate(split, 300, 5) for split in ("train", "validation", "test")}
    assert TASK.generate("train", 50, 5) == splits["train"][:50]
    chats = {split: {e.payload["context"] for e in examples} for split, examples in splits.items()}
    assert not chats["train"] & chats["test"] and not chats["validation"] & (chats["train"] | chats["test"])
    assert {e.payload["source"] for e in splits["test"]} == {"generated stand-in"}
    with pytest.raises(ConfigError, match="split='dev'"):
        TASK.generate("dev", 1, 0)


def test_one_question_a_chat_gives_every_type_its_turn():
    examples = Fantom(FantomOptions(whole_sets=False, facts=True)).generate("train", 300, 0)
    assert len({e.payload["context"] for e in examples}) > 290
    types = collections.Counter(e.payload["question_type"] for e in examples)
    assert len(types) == 7 and min(types.values()) > 20
    letters = collections.Counter(e.payload["gold_letter"] for e in examples if e.payload["form"] == "choice")
    assert 0.3 < letters["A"] / letters.total() < 0.7
    answers = collections.Counter(e.gold for e in examples if e.payload["form"] == "binary")
    assert 0.2 < answers["no"] / answers.total() < 0.8


def test_generated_gold_agrees_with_an_independent_reading_of_the_lines():
    for example in get_task("fantom").load(Source(limit=400, seed=9)):
        payload = example.payload
        if payload["form"] == "list":
            assert set(payload["right_names"]) == _present_at(payload["context"], str(payload["fact_question"]))
            assert set(payload["right_names"]) | set(payload["wrong_names"]) == _people(payload["context"])


def _people(context: str) -> set[str]:
    return {line.split(": ")[0] for line in context.splitlines()}


def _present_at(context: str, question: str) -> set[str]:
    """Who was there when the fact was told or repeated, from the lines of coming and going alone."""
    leaving = ("excuse me", "bye all", "I must go")
    coming = ("may I sit", "sorry I am late", "room for one more", "I am back", "There I am", "here I am")
    words = {"dog": "My dog", "city": "grew up", "instrument": "I play", "dish": "What I cook", "job": "started out"}
    words |= {
        "colour": "My bicycle",
        "month": "I married",
        "sport": "took up",
        "language": "learning",
        "tea": "The tea I",
    }
    telling = next(telling for word, telling in words.items() if f" {word}" in question or f"s {word}" in question)
    thing = question.removeprefix("What is ").rstrip("?")
    lines = [line.split(": ", 1) for line in context.splitlines()]
    first: dict[str, str] = {}
    for speaker, text in lines:
        first.setdefault(speaker, text)
    there = {name for name, text in first.items() if not any(word in text for word in coming)}
    heard: set[str] = set()
    for speaker, text in lines:
        if any(word in text for word in coming):
            there.add(speaker)
        if any(word in text for word in leaving):
            there.discard(speaker)
        if (telling in text and speaker in question) or text.startswith(f"As we said before, {thing} is"):
            heard |= there
    return heard
