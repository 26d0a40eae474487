"""Rows of user turns: released ones in all their spellings, public ones refused where they are malformed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.rows import LeftOut, RowReport
from ditto_jax.tasks.userllm.files import userllm_released
from ditto_jax.tasks.userllm.public import related_questions
from ditto_jax.tasks.userllm.task import UserLLM, UserLLMOptions
from ditto_jax.types import Example

TASK = UserLLM(UserLLMOptions())
PRISM = {
    "source": "prism_later",
    "intent": "You are a user chatting with a language model to: plan a trip",
    "conversation_history": "User: hi\nAssistant: hello",
    "is_last_turn": "False",
}
CSQA = {
    "source": "commonsense_qa",
    "intent": "ask something",
    "conversation_history": "User: Where is snow?\nAssistant: unsure",
    "question": "Where is snow?",
    "choices": '{"text": ["north", "south", "oven"]}',
}
NQ = {
    "source": "natural_questions",
    "intent_summary": "know it",
    "conversation_history": "User: who?\nAssistant: hm",
    "assistant_suggestion_turn": "Shall we talk of birds?",
}


def read(row: dict) -> Example:
    return userllm_released(Path("f.parquet"), "row[0]", "userllm-0", row)


def test_released_rows_of_the_three_subtasks_are_normalised():
    assert read(PRISM).payload["intent"] == "plan a trip" and read(PRISM).payload["turn"] == "later"
    assert read({**PRISM, "is_last_turn": 1}).payload["turn"] == "last"
    assert read(CSQA).payload["options"] == ("north", "south", "oven")
    assert read({**CSQA, "choices": ["a", "b", "c"]}).payload["options"] == ("a", "b", "c")
    nq = read(NQ).payload
    assert (nq["question"], nq["intent"], nq["suggestion"]) == ("who?", "know it", "Shall we talk of birds?")


@pytest.mark.parametrize("history", [None, "", "  "])
def test_a_row_without_history_is_a_first_turn(history):
    row = {**PRISM, "conversation_history": history}
    del row["is_last_turn"]
    example = read(row)
    assert example.payload["turn"] == "first" and example.payload["is_last"] is False


def test_the_goal_falls_back_to_what_is_there():
    bare = {k: v for k, v in PRISM.items() if k != "intent"}
    assert read({**bare, "opening_prompt": "tell me a tale"}).payload["intent"] == "tell me a tale"
    assert read(bare).payload["intent"] == "hi"
    with pytest.raises(DataError, match="intent"):
        read({**bare, "conversation_history": "User:\nAssistant: x"})


@pytest.mark.parametrize(
    ("row", "change", "field"),
    [
        (PRISM, {"source": None}, "source"),
        (PRISM, {"source": "maths"}, "source"),
        (PRISM, {"source": ["prism"]}, "source"),
        (PRISM, {"intent": ["a"]}, "intent"),
        (PRISM, {"intent": "\ud800"}, "intent"),
        (PRISM, {"conversation_history": {"a": 1}}, "conversation_history"),
        (PRISM, {"is_last_turn": None}, "is_last_turn"),
        (PRISM, {"is_last_turn": "perhaps"}, "is_last_turn"),
        (CSQA, {"conversation_history": None}, "conversation_history"),
        (CSQA, {"choices": "['a', "}, "choices"),
        (CSQA, {"choices": {"text": [1]}}, "text"),
        (CSQA, {"choices": ["a", ""]}, "choices"),
        (NQ, {"conversation_history": ""}, "conversation_history"),
        (NQ, {"assistant_suggestion_turn": ["x"]}, "assistant_suggestion_turn"),
        (NQ, {"question": 3.5e400, "intent_summary": []}, "intent_summary"),
    ],
)
def test_a_malformed_row_names_file_row_and_field(row, change, field):
    with pytest.raises(DataError, match=rf"f\.parquet: row\[0\](: \w+)?: {field}"):
        read({**row, **change})


def test_a_row_that_cannot_be_scored_is_left_out():
    with pytest.raises(LeftOut, match="choices"):
        read({**CSQA, "choices": None})


_VALUES = st.none() | st.text() | st.integers() | st.floats() | st.lists(st.text(), max_size=3) | st.booleans()
_SOURCES = st.sampled_from(["prism", "commonsense_qa", "natural_questions"])


@given(st.dictionaries(st.sampled_from([*PRISM, *CSQA, *NQ]), _VALUES), _SOURCES)
def test_hostile_released_rows_raise_data_errors_alone(row, source):
    with contextlib.suppress(DataError, LeftOut):
        example = read({**row, "source": source})
        assert json.loads(json.dumps(example.payload))["intent"]


FILES = {
    "dev_rand_split.jsonl": {"id": "1", "question": "Where?", "choices": {"label": ["A"], "text": ["x", "y", "z"]}},
    "NQ-open.dev.jsonl": {"question": "who was it"},
    "oasst1_mirror.jsonl": {
        "conversation_id": "c",
        "task_description": "wants soup",
        "turns": [{"role": "user", "content": "soup?"}, {"role": "assistant", "content": "Boil water."}],
    },
}


def load(file: Path, report: RowReport | None = None) -> list[Example]:
    found: list[Example] = []
    for split in ("train", "validation", "test"):
        found += TASK.load(Source("files", file, split, rows=report or RowReport()))
    return found


def write(folder: Path, name: str, *rows: object) -> Path:
    file = folder / name
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("dev_rand_split.jsonl", "id"),
        ("dev_rand_split.jsonl", "question"),
        ("dev_rand_split.jsonl", "choices"),
        ("NQ-open.dev.jsonl", "question"),
        ("oasst1_mirror.jsonl", "conversation_id"),
        ("oasst1_mirror.jsonl", "task_description"),
        ("oasst1_mirror.jsonl", "turns"),
    ],
)
@pytest.mark.parametrize("value", [None, [3], {"text": 4}])
def test_a_public_row_with_a_missing_or_wrong_field_is_refused(tmp_path, name, field, value):
    file = write(tmp_path, name, {**FILES[name], field: value})
    with pytest.raises(DataError, match=rf"line 1.*{field}"):
        load(file)


@pytest.mark.parametrize("name", FILES)
def test_lines_that_are_no_object_are_refused_and_counted(tmp_path, name):
    report = RowReport(skip_bad=True)
    source = Source("files", write(tmp_path, name, "{", "3", FILES[name]), "test", rows=report)
    with contextlib.suppress(DataError):  # the one question of a list has no other beside it
        TASK.load(source)
    assert report.found > 2 and len(report.refused) >= 2


@pytest.mark.parametrize(
    "turns", [[], [{"role": "assistant", "content": "x"}], [{"role": "user", "content": ""}], [{"role": "x"}], [4]]
)
def test_chats_without_a_speaking_user_are_refused(tmp_path, turns):
    with pytest.raises(DataError, match="turns|role"):
        load(write(tmp_path, "oasst1_mirror.jsonl", {**FILES["oasst1_mirror.jsonl"], "turns": turns}))


def test_a_chat_gives_a_row_for_every_user_turn_and_one_for_its_end(tmp_path):
    first, last = load(write(tmp_path, "oasst1_mirror.jsonl", FILES["oasst1_mirror.jsonl"]))
    assert (first.payload["turn"], first.gold) == ("first", "soup?")
    assert (last.payload["turn"], last.payload["is_last"]) == ("last", True)
    assert last.payload["history"].endswith("Assistant: Boil water.")


def test_opening_prompts_are_read_and_malformed_lists_refused(tmp_path):
    head = "cluster_id,cluster_size,top_texts\n"
    good = write(tmp_path, "opening_prompt_cluster_df_original.csv", head + "3,9,\"['hi', 'tell me']\"\n")
    assert {e.payload["intent"] for e in load(good)} == {"a talk about this: hi", "a talk about this: tell me"}
    bad = write(tmp_path, "opening_prompt_cluster_bad.csv", head + '3,9,"[hi"\n')
    with pytest.raises(DataError, match=r"line 2: top_texts"):
        load(bad)


def test_the_offer_is_another_question_with_a_rare_word_in_common():
    questions = ["who sang the blue song", "who wrote the blue song", "where is oslo", "who sang it"]
    related = related_questions(questions)
    assert related["who sang the blue song"] in {"who wrote the blue song", "who sang it"}
    assert related["who wrote the blue song"] == "who sang the blue song"
    assert all(other != question for question, other in related.items()) and len(related) == 4
    assert related_questions(["one"]) == {}


def test_unknown_files_and_empty_folders_say_what_is_known(tmp_path):
    with pytest.raises(MissingInputError, match="commonsenseqa"):
        load(tmp_path)
    with pytest.raises(MissingInputError, match="NQ-open"):
        load(write(tmp_path, "other.jsonl", {}))
