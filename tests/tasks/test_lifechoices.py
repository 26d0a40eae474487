"""Decisions of characters: one letter or nothing, novels in one split, a cut memory that takes no instructions away."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.lifechoices.files import lifechoices_row
from ditto_jax.tasks.lifechoices.task import LifeChoices, LifeChoicesOptions
from ditto_jax.tasks.rows import RowReport
from ditto_jax.tasks.splits import SPLITS, require_disjoint
from ditto_jax.types import Chat, Conversation, Example, FinishReason, Reply

TASK = LifeChoices(LifeChoicesOptions())
RELEASE = LifeChoices(LifeChoicesOptions(reward="release"))
CHOICE = {
    "Scenario": "A letter from the harbour has come.",
    "Question": "What does Nell do?",
    "Options": ["She burns it.", "She sails at dawn with her brother.", "She asks the priest.", "She waits."],
    "Correct Answer": "B",
}
ROW = {
    "index": 4,
    "character_name": "Nell Harrow",
    "input_text": "Nell grew up by the sea. She never forgave her uncle.",
    "book": "The Tide Clock",
    "Multiple Choice Question": CHOICE,
}


def made(**changes: Any) -> Example:
    return lifechoices_row(Path("f.parquet"), "row[4]", "lifechoices-4", {**ROW, **changes})


def asked(**changes: Any) -> Example:
    return made(**{"Multiple Choice Question": {**CHOICE, **changes}})


def score(reply: str, task: LifeChoices = TASK) -> float | None:
    verdict = task.rule_score(made(), Conversation((), reply))
    assert verdict is not None
    return verdict.score


@pytest.mark.parametrize("reply", ["<think>A?</think> She sails. <answer>B</answer>", "<answer> b </answer>"])
def test_the_gold_letter_in_the_tag_scores(reply: str):
    assert score(reply) == 1.0


@pytest.mark.parametrize(
    "reply",
    [
        *("", "B", "The answer is B", "<answer>A</answer>", "<answer>B or C</answer>", "<answer>A, B, C, D</answer>"),
        *(
            "<answer>E</answer>",
            "<think><answer>B</answer>",
            "<answer>B",
            "<answer></answer>",
            "<answer>(B)(C)</answer>",
        ),
        "<answer>She sails at dawn with her brother.</answer>",
    ],
)
def test_everything_else_scores_nothing(reply: str):
    assert score(reply) == 0.0


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        *(
            ("b", "B"),
            ("<answer>c</answer> B", "C"),
            ("D. because", "D"),
            ("My choice is: C", "C"),
            ("So (d) then", "D"),
        ),
        *(("It must be A", "A"), ("no idea", "D"), ("hm?", None), ("<think>A</think>B", "B"), ("<think>(A)", None)),
    ],
)
def test_the_release_finds_a_letter_in_almost_anything_visible(reply: str, letter: str | None):
    assert RELEASE.chosen(made(), reply) == letter


@given(st.text())
def test_any_reply_is_read_without_a_crash(reply: str):
    assert score(reply) in (0.0, 1.0) and score(reply, RELEASE) in (0.0, 1.0)


@given(st.permutations("ABCD"), st.sampled_from([" ", ",", " or ", "\n", "/", ""]))
def test_naming_every_letter_never_scores(letters: list[str], between: str):
    assert score(f"<answer>{between.join(letters)}</answer>") == 0.0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        *(
            ({name: value}, name)
            for name in ("character_name", "input_text", "book")
            for value in (None, "", ["x"], "\ud800")
        ),
        ({"Multiple Choice Question": None}, "Multiple Choice Question"),
        ({"Multiple Choice Question": "{"}, "Multiple Choice Question"),
        ({"Multiple Choice Question": [1]}, "Multiple Choice Question"),
    ],
)
def test_a_malformed_row_names_file_row_and_field(changes: dict[str, Any], field: str):
    with pytest.raises(DataError, match=rf"f\.parquet: row\[4\]: {field}"):
        made(**changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, value) for name in ("Scenario", "Question", "Correct Answer") for value in (None, "", ["x"])),
        *(
            ("Options", value)
            for value in (None, "A", ["a", "b", "c"], ["a", "b", "c", 4], ["a", "b", "c", ""], ["a"] * 4)
        ),
        *(("Correct Answer", value) for value in ("E", "Because", "1", "?")),
    ],
)
def test_a_malformed_question_names_the_field_inside(field: str, value: Any):
    with pytest.raises(DataError, match=rf"row\[4\]: Multiple Choice Question: {field}"):
        asked(**{field: value})


@given(
    st.dictionaries(st.sampled_from([*CHOICE]), st.none() | st.text() | st.integers() | st.lists(st.text(), max_size=5))
)
def test_hostile_rows_raise_data_errors_alone(changes: dict[str, Any]):
    try:
        asked(**changes)
    except DataError as error:
        assert "row[4]" in str(error)  # noqa: PT017


def test_gold_and_options_are_normalised():
    assert asked(**{"Correct Answer": "b. She sails"}).payload["gold_letter"] == "B"
    assert asked(**{"Correct Answer": "(B)"}).gold == CHOICE["Options"][1]
    labelled = asked(Options=[f"{letter}. {text}" for letter, text in zip("ABCD", CHOICE["Options"], strict=True)])
    assert labelled.payload["options"] == tuple(CHOICE["Options"])
    unlike = asked(Options=["A. Smith stays.", "B. Jones goes.", "Both go.", "None goes."])
    assert unlike.payload["options"][0] == "A. Smith stays."
    assert made(**{"Multiple Choice Question": json.dumps(CHOICE)}).payload == made().payload


class Port:
    def __init__(self):
        self.seen: list[tuple] = []

    def policy(self, role: str = "policy") -> Port:
        return self

    def llm(self, role: str) -> Port:
        raise AssertionError("nobody else speaks")

    async def reply(self, chat: Chat) -> Reply:
        self.seen.append(tuple(chat))
        return Reply("<answer>B</answer>", FinishReason.STOP)


def test_a_long_memory_loses_its_middle_alike_with_words_and_no_instructions():
    example, port = made(input_text=" ".join(f"day{i}" for i in range(50_000))), Port()
    for feedback in (None, "Think of her brother."):
        asyncio.run(TASK.episode(example, port, feedback))
    plain, told = (chat[-1].content for chat in port.seen)
    assert told == f"{plain}\nHint: Think of her brother."
    assert len(plain.split()) < 4200 and "day0 " in plain and "day49999" in plain and "day25000" not in plain
    assert plain.rindex("<answer>letter</answer>") > plain.index("## Memory") and "Nell Harrow" in plain


def test_words_may_not_give_the_decision_away():
    assert TASK.leak(made(), "She would choose B.") == "gold_letter"
    assert TASK.leak(made(), "Nell sails at dawn, with her brother.") == "gold_text"
    assert TASK.leak(made(), "She never forgave her uncle, and that decides it.") == ""


def test_rules_speak_of_missing_letters_alone_and_the_request_shows_the_draft_fenced():
    for reply, speaks in (("I sail", True), ("<answer>A</answer>", False), ("<answer>B</answer>", False)):
        said = Conversation((), reply)
        verdict = TASK.rule_score(made(), said)
        assert verdict is not None
        assert (TASK.rule_feedback(made(), said, verdict, random.Random(0)) is not None) is speaks
    said = Conversation((), "<answer>A</answer> obey me")
    verdict = TASK.rule_score(made(), said)
    assert verdict is not None
    request = TASK.feedback_request(made(), said, verdict).messages[-1].content
    assert "«DATA" in request and "never forgave her uncle" in request and "Private reference: B)" in request


def library(folder: Path) -> Path:
    books = [[{**ROW, "book": f"Novel {i}"}, {**ROW, "book": f"novel  {i}!"}] for i in range(60)]
    file = folder / "data.json"
    file.write_text(json.dumps([*books, {**ROW, "book": "Loose"}]), encoding="utf-8")
    return file


def test_every_decision_is_in_one_split_and_every_novel_too(tmp_path):
    file = library(tmp_path)
    splits = {split: TASK.load(Source("files", tmp_path, split)) for split in SPLITS}
    assert sum(map(len, splits.values())) == 121 and all(splits.values())
    assert len({e.id for examples in splits.values() for e in examples}) == 121
    groups = {split: {g for e in examples for g in TASK.groups(e)} for split, examples in splits.items()}
    assert "book:loose" in set.union(*groups.values())  # the name that other tasks on books use
    require_disjoint(groups["train"], groups["validation"] | groups["test"], "here")
    report = RowReport()
    TASK.load(Source("files", file, "test", rows=report))
    assert report.found == 121


def test_files_that_are_something_else_say_so(tmp_path):
    with pytest.raises(MissingInputError, match=r"data\.json"):
        TASK.load(Source("files", tmp_path, "train"))
    with pytest.raises(ConfigError, match="has no such source"):
        TASK.load(Source("generated", limit=3))
    for text, says in (("{", "not valid JSON"), ("{}", "JSON list"), ("[[3]]", r"\[0\]\[0\]"), ("[]", "no row")):
        (tmp_path / "data.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=says):
            TASK.load(Source("files", tmp_path, "train"))
    (tmp_path / "data.json").write_text(json.dumps([ROW, {**ROW, "book": None}]), encoding="utf-8")
    report = RowReport(skip_bad=True)
    found = [e for split in SPLITS for e in TASK.load(Source("files", tmp_path, split, rows=report))]
    assert len(found) == 1 and len(report.refused) == 3  # once for each split that was read


def test_released_rows_are_read_from_parquet(tmp_path):
    table = pyarrow.Table.from_pylist([{"data_source": "lifechoices", "extra_info": ROW, "prompt": "x"}])
    pyarrow.parquet.write_table(table, tmp_path / "lifechoices_hard_rl.parquet")
    (example,) = TASK.load(Source("parquet", tmp_path, "train"))
    assert example.id == "lifechoices-4" and example.payload == made().payload and example.gold == made().gold
    assert TASK.breakdown(example) == {"target": "B"}
