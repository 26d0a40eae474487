"""Circumstances and the training sample: every field is checked, and the public files give what their README counts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.coser.files import read_circumstances, released_circumstance
from ditto_jax.tasks.coser.rebuilt import read_rebuilt
from ditto_jax.tasks.coser.task import CoSER, CoSEROptions
from ditto_jax.tasks.registry import get_task
from ditto_jax.tasks.rows import RowReport
from tests.tasks.coser_cases import ROW, example_of

TASK = CoSER(CoSEROptions())


def test_a_circumstance_becomes_a_scene():
    payload = example_of().payload
    assert payload["characters"] == ("Ada", "Bea", "Cob") and payload["first"] == "Ada"
    assert payload["major"] == ("Ada", "Bea")
    assert payload["profiles"] == {
        "Ada": "The elder, who kept the shop.\n\nCareful and proud.",
        "Bea": "Quick, restless, kind.",
    }
    assert payload["motivations"] == {"Ada": "Hopes that Bea stays.", "Bea": "Wants out."}
    assert "[" not in example_of().gold and "Bea: (shaking her umbrella)" in example_of().gold
    assert json.loads(json.dumps(payload))["book"] == "The Lamp Shop"


def broken(field: str, value: object) -> dict:
    return {**ROW, field: value}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        *((broken(name, None), name) for name in ROW if name not in ("i_p", "i_c", "tag")),
        *((broken(name, 7.5j), name) for name in ("plot", "dialogues", "key_characters", "character_profiles")),
        (broken("tag", "other"), "tag"),
        (broken("book", " "), "book"),
        (broken("book", "\ud800"), "book"),
        (broken("dialogues", []), "dialogues"),
        (broken("dialogues", [{"character": "Ada"}]), "message"),
        (broken("dialogues", [{"character": "A: b", "message": "x"}]), "character"),
        (broken("plot", {"summary": "x"}), "key_characters"),
        (broken("plot", {"key_characters": []}), "summary"),
        (broken("plot", "{broken json"), "plot"),
        (broken("key_characters", [{"thought": "x"}]), "name"),
        (broken("character_profiles", {"Ada": ["x"]}), "Ada"),
        (broken("speaking_characters_w_env", ["Environment"]), "speaking_characters_w_env"),
        (broken("speaking_characters_w_env", ["Ada", "ada"]), "speaking_characters_w_env"),
        (broken("speaking_characters_w_env", ["Ada\nBea"]), "speaking_characters_w_env"),
        (broken("speaking_characters_w_env", []), "speaking_characters_w_env"),
    ],
)
def test_a_malformed_circumstance_names_file_row_and_field(row, field):
    with pytest.raises(DataError, match=rf"f\.parquet: row\[0\]: circumstance.*{field}"):
        released_circumstance(Path("f.parquet"), "row[0]", "x", {"circumstance": row})


@pytest.mark.parametrize(
    "info",
    [{}, {"circumstance": "no"}, {"circumstance": ROW, "continue_from": -1}, {"circumstance": ROW, "wo_thought": "?"}],
)
def test_a_malformed_released_row_names_its_place(info):
    with pytest.raises(DataError, match=r"f\.parquet: row\[0\]"):
        released_circumstance(Path("f.parquet"), "row[0]", "x", info)


def test_released_parquet_rows_are_read_from_json_text(tmp_path):
    info = [{"index": 7, "circumstance": json.dumps(ROW), "wo_thought": True}]
    table = pyarrow.table({"data_source": ["coser"], "extra_info": info})
    pyarrow.parquet.write_table(table, tmp_path / "coser_rl_train.parquet")
    (example,) = get_task("coser").load(Source("parquet", tmp_path, "train"))
    assert example.id == "coser-7" and example.payload["wo_thought"] is True
    assert example.payload["reference"] == example_of().payload["reference"]


_KEYS = st.sampled_from([*ROW, "name", "summary", "from", "value"])
_JSON = st.recursive(
    st.none() | st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*ROW]), _JSON))
def test_hostile_rows_raise_data_errors_alone(changes):
    info, message = {"circumstance": {**ROW, **changes}}, ""
    try:
        assert released_circumstance(Path("f.parquet"), "row[0]", "x", info).payload["characters"]
    except DataError as error:
        message = str(error)
    assert not message or "row[0]" in message


@given(st.lists(_JSON | st.fixed_dictionaries({"conversations": st.lists(_JSON, max_size=3)}), max_size=3))
def test_hostile_training_samples_raise_data_errors_alone(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("sample") / "sft_sharegpt.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"sft_sharegpt\.json"):
        read_rebuilt(file, RowReport())


@pytest.mark.parametrize("text", ["{", "{}", "[" * 100_000, "[1]", "[]"])
def test_files_that_hold_something_else_are_named(tmp_path, text):
    file = tmp_path / "test_set.json"
    file.write_text(text)
    for read in (read_circumstances, read_rebuilt):
        with pytest.raises(DataError, match=r"test_set\.json"):
            read(file, RowReport())


def test_malformed_rows_are_counted_where_they_are_tolerated(tmp_path):
    rows = [ROW, {**ROW, "i_c": 1, "scenario": None}, {**ROW, "i_c": 2}, ROW]
    (tmp_path / "test_set.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    source = Source("files", tmp_path, "test", rows=RowReport(skip_bad=True))
    examples = TASK.load(source)
    assert [example.id for example in examples] == ["coser-the-lamp-shop-3-0", "coser-the-lamp-shop-3-2"]
    assert source.rows.found == 4 and len(source.rows.refused) == 2


def sample(*systems: str, lines: str = "Environment: Rain.\n\nAda: Late.\n\nBea: Am I?") -> list:
    return [
        {
            "conversations": [
                {"from": "system", "value": system},
                {"from": "human", "value": lines},
                {"from": "assistant", "value": "Ada: [No.] Late."},
            ]
        }
        for system in systems
    ]


WORLD = (
    "You are a world model for a game, with main characters (including ['Ada']).\n"
    "===The scenario is as follows===\nEvening in the shop."
)
ADA = (
    "You are roleplaying as Ada from The Lamp Shop.\n\n==Ada's profile==\nThe elder.\nRelationships:\nBea.\n\n"
    "==Current Scenario==\nEvening in the shop.\n\nYour thoughts are:\nStay.\n\nYour output should include speech."
)


def test_scenes_are_rebuilt_from_the_chats_of_their_roles(tmp_path):
    file = tmp_path / "sft_sharegpt.json"
    file.write_text(json.dumps(sample(WORLD, ADA, "Your task is to predict the next speaker.", WORLD)))
    report = RowReport()
    (example,) = read_rebuilt(file, report)
    payload = example.payload
    assert payload["book"] == "The Lamp Shop" and payload["scenario"] == "Evening in the shop."
    assert (
        payload["characters"] == ("Ada", "Bea") and payload["major"] == ("Ada",) and payload["first"] == "Environment"
    )
    assert payload["profiles"] == {"Ada": "The elder.\nRelationships:\nBea."}
    assert payload["motivations"] == {"Ada": "Stay."}
    assert example.gold == "Environment: Rain.\nAda: Late.\nBea: Am I?\nAda: Late."
    assert report.left_out == {"a chat of a character": 1, "a chat of a director": 1, "the scene of a chat before": 1}


def test_scenes_that_cannot_be_rebuilt_are_left_out_or_refused(tmp_path):
    file = tmp_path / "sft_sharegpt.json"
    report = RowReport(skip_bad=True)
    silent = sample(WORLD.replace("Evening", "Morning"), lines="Nobody is here.")
    silent[0]["conversations"].pop()
    file.write_text(json.dumps([*sample(WORLD, ADA, "You are a world model. Go."), *silent]))
    assert len(read_rebuilt(file, report)) == 1
    assert len(report.refused) == 1 and "scenario" in report.refused[0]
    assert report.left_out["a scene in which nobody speaks"] == 1
    file.write_text(json.dumps(sample(WORLD)))
    with pytest.raises(DataError, match="no row"):
        read_rebuilt(file, report := RowReport())
    assert report.left_out == {"a scene whose book no prompt names": 1}


def test_sources_that_are_not_there_say_what_is(tmp_path):
    with pytest.raises(MissingInputError, match="train and test"):
        TASK.load(Source("files", tmp_path, "validation"))
    with pytest.raises(MissingInputError, match=r"sft_sharegpt\.json"):
        TASK.load(Source("files", tmp_path, "train"))
    with pytest.raises(ConfigError, match="generated"):
        TASK.load(Source("generated", None, "train", 3))


def test_scenes_of_training_books_share_no_group_by_design_and_others_do():
    ood, known = example_of(), example_of(tag="id")
    assert any(group == "book:the lamp shop" for group in TASK.groups(ood))
    assert TASK.groups(known) < TASK.groups(ood)
    assert TASK.groups(example_of(scenario="Another evening.")) & TASK.groups(known) == frozenset()
    assert TASK.breakdown(known) == {"tag": "id", "characters": "3"}


def test_the_public_circumstances_are_read_and_are_for_evaluation_only(soul_data_dir):
    source = Source("files", soul_data_dir / "coser", "test")
    examples = TASK.load(source)
    assert len(examples) == source.rows.found == 15
    assert TASK.evaluation_only(source)
    three = Source("files", soul_data_dir / "coser" / "CoSER" / "example_test_set.json", "test")
    assert {example.payload["book"] for example in TASK.load(three)} == {"King Lear", "Othello"}


def test_the_public_training_sample_gives_scenes_that_share_nothing_with_the_circumstances(soul_data_dir):
    source = Source("files", soul_data_dir / "coser", "train")
    examples = TASK.load(source)
    assert (source.rows.found, len(examples)) == (434, 54)
    assert not TASK.evaluation_only(source)
    assert sum(len(example.payload["profiles"]) for example in examples) == 138
    held_out = TASK.load(Source("files", soul_data_dir / "coser", "test"))
    groups = [frozenset().union(*(TASK.groups(one) for one in some)) for some in (examples, held_out)]
    assert not groups[0] & groups[1]
