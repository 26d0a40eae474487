"""Scenes come from three kinds of files; a malformed row names file, row and field, and hard scenes are for tests."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.rows import RowReport
from ditto_jax.tasks.sotopia.files import OFFICIAL, PILOT, read_sotopia, without_tags
from ditto_jax.tasks.sotopia.prompts import side_system
from ditto_jax.tasks.sotopia.released import released_scene
from ditto_jax.tasks.sotopia.task import Sotopia, SotopiaOptions
from ditto_jax.tasks.splits import group_name, split_of
from tests.tasks.sotopia_cases import ROW, TASK, play, say

FILE = Path("f.parquet")
RECORDS = {
    "environments": [
        {
            "env_id": "e1",
            "scenario": 'Agent1 meets Agent2. <p viewer="environment">Both know Ida.</p>',
            "agent_goals": ["Ask Agent2 <extra_info>Hint: be kind</extra_info>", "Say no"],
            "relationship": "2",
        }
    ],
    "people": [
        {"agent_id": "a", "first_name": "Ada", "last_name": "Ek", "age": 30, "occupation": "cook", "secret": "snores"},
        {"agent_id": "b", "first_name": "Bo", "last_name": "Ost", "age": "41", "occupation": "pilot"},
    ],
    "pairs": [
        {
            "agent1_id": "b",
            "agent2_id": "a",
            "relationship": "2",
            "background_story": "They met at sea. Ada has a secret boat.",
        }
    ],
    "meetings": [{"combo_id": "c1", "env_id": "e1", "agent_ids": ["a", "b"]}],
}


def written(folder: Path, records) -> Path:
    for name, file_name in OFFICIAL.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in records[name]]
        (folder / file_name).write_text("\n".join(lines))
    return folder


def test_a_meeting_becomes_two_examples_with_private_parts_apart(tmp_path):
    first, second = read_sotopia(written(tmp_path, RECORDS), "test", RowReport())
    assert (first.id, second.id) == ("sotopia-c1-agent1", "sotopia-c1-agent2")
    payload = first.payload
    assert (
        payload["scenario"] == "Ada Ek meets Bo Ost." and payload["relationship"] == "acquaintances. They met at sea."
    )
    assert payload["note"] == "Both know Ida. Ada has a secret boat."
    assert payload["agent1"]["goal"] == "Ask Bo Ost Hint: be kind" and payload["hard"] == "unknown"
    assert "Secret: snores" in payload["agent1"]["background"] and "Secret" not in payload["agent2"]["background"]
    for example in (first, second):
        shown = TASK.opening(example)[0].content
        assert "Ida" not in shown and "boat" not in shown
    judged = TASK.score_requests(first, play([say("Hello.")], scene=first))["scores"].messages[-1].content
    assert "Told to neither of them: Both know Ida. Ada has a secret boat." in judged


def test_sotopia_hard_is_named_by_its_list(tmp_path):
    with pytest.raises(MissingInputError, match="only_hard"):
        read_sotopia(written(tmp_path, RECORDS), "test", RowReport(), only_hard=True)
    (tmp_path / "env_ids.txt").write_text('SOTOPIA-HARD:\n"e1"\n\nSOTOPIA-ALL:\n"e1", "e2"')
    found = read_sotopia(tmp_path, "test", RowReport(), only_hard=True)
    assert [example.payload["hard"] for example in found] == ["yes", "yes"]
    (tmp_path / "env_ids.txt").write_text("nothing")
    with pytest.raises(DataError, match="SOTOPIA-HARD"):
        read_sotopia(tmp_path, "test", RowReport())


def test_meetings_of_environments_left_out_of_a_subset_are_counted(tmp_path):
    records = copy.deepcopy(RECORDS)
    records["meetings"].append({"combo_id": "c2", "env_id": "e9", "agent_ids": ["a", "b"]})
    report = RowReport()
    assert len(read_sotopia(written(tmp_path, records), "test", report)) == 2
    assert report.left_out == {"its environment is not in the file": 2}


@pytest.mark.parametrize("wrong", [None, "absent", ["x"], [], {"x": 1}, ""])
@pytest.mark.parametrize(
    ("table", "field"),
    [
        ("environments", "env_id"),
        ("environments", "scenario"),
        ("environments", "agent_goals"),
        ("environments", "relationship"),
        ("people", "agent_id"),
        ("people", "first_name"),
        ("people", "age"),
        ("people", "occupation"),
        ("pairs", "agent1_id"),
        ("pairs", "relationship"),
        ("meetings", "combo_id"),
        ("meetings", "env_id"),
        ("meetings", "agent_ids"),
    ],
)
def test_a_malformed_profile_names_file_line_and_field(tmp_path, table, field, wrong):
    records = copy.deepcopy(RECORDS)
    if wrong == "absent":
        del records[table][0][field]
    else:
        records[table][0][field] = wrong
    with pytest.raises(DataError, match=rf"{OFFICIAL[table]}: line 1: {field}="):
        read_sotopia(written(tmp_path, records), "test", RowReport())


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("environments", "relationship", "6"),
        ("environments", "agent_goals", ["only one"]),
        ("environments", "agent_goals", ["x", " "]),
        ("meetings", "agent_ids", ["a", "z"]),
        ("meetings", "agent_ids", ["a", "a"]),
    ],
)
def test_values_that_cannot_be_are_refused_or_counted(tmp_path, table, field, value):
    records = copy.deepcopy(RECORDS)
    records["meetings"].append({**RECORDS["meetings"][0], "combo_id": "c2"})
    records[table][0][field] = value
    with pytest.raises(DataError, match=field):
        read_sotopia(written(tmp_path, records), "test", RowReport())
    if table == "meetings":
        report = RowReport(skip_bad=True)
        assert len(read_sotopia(tmp_path, "test", report)) == len(report.refused) == 2


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "9" * 5000])
def test_broken_lines_are_refused_by_number(tmp_path, line):
    records = {**RECORDS, "meetings": [line, *RECORDS["meetings"]]}
    with pytest.raises(DataError, match="line 1"):
        read_sotopia(written(tmp_path, records), "test", RowReport())
    report = RowReport(skip_bad=True)
    assert len(read_sotopia(tmp_path, "test", report)) == 2 and len(report.refused) == 1


def test_pilot_scenes_are_split_by_scenario(tmp_path):
    classes = dict(
        zip(RECORDS, ("EnvironmentProfile", "AgentProfile", "RelationshipProfile", "EnvAgentComboStorage"), strict=True)
    )
    records = {
        f":a.b.{classes[table]}:{k}": row | ({"pk": "c1"} if table == "meetings" else {})
        for table, rows in RECORDS.items()
        for k, row in enumerate(rows)
    }
    (tmp_path / PILOT).write_text(json.dumps({**records, ":x.Person:1": {"name": "John"}}))
    wanted = split_of(group_name("scenario", str(RECORDS["environments"][0]["scenario"])))
    own, other = ("validation", "train") if wanted == "validation" else ("train", "validation")
    assert len(read_sotopia(tmp_path, own, RowReport())) == 2
    with pytest.raises(DataError, match="no row"):
        read_sotopia(tmp_path, other, RowReport())
    for text, rule in (("{", "JSON"), ("[]", "object"), ('{":a.AgentProfile:1": 3}', "record")):
        (tmp_path / PILOT).write_text(text)
        with pytest.raises(DataError, match=rule):
            read_sotopia(tmp_path, "train", RowReport())


def test_absent_files_and_unknown_splits_say_what_to_set(tmp_path):
    for split in ("train", "test"):
        with pytest.raises(MissingInputError, match="scenarios|profiles"):
            read_sotopia(tmp_path, split, RowReport())
    with pytest.raises(ConfigError, match="split"):
        read_sotopia(tmp_path, "dev", RowReport())
    (written(tmp_path, RECORDS) / OFFICIAL["people"]).unlink()
    with pytest.raises(MissingInputError, match="agent_profiles"):
        read_sotopia(tmp_path, "test", RowReport())


# Released rows


@pytest.mark.parametrize("wrong", [None, "absent", ["x"], {}, "\ud800"])
@pytest.mark.parametrize("field", [name for name in ROW if name != "eval_position"])
def test_a_malformed_released_row_names_file_row_and_field(field, wrong):
    row = {**ROW, field: wrong}
    if wrong == "absent":
        del row[field]
    with pytest.raises(DataError, match=rf"f\.parquet: row\[0\]: {field}="):
        released_scene(FILE, "row[0]", "x", row)


@pytest.mark.parametrize(("field", "value"), [("eval_position", "agent3"), ("hard", "maybe"), ("agent2_name", "Ada")])
def test_values_outside_their_choices_are_refused(field, value):
    with pytest.raises(DataError, match=field):
        released_scene(FILE, "row[0]", "x", {**ROW, field: value})


def test_optional_fields_have_defaults_and_placeholders_become_names():
    row = {name: value for name, value in ROW.items() if name != "eval_position"}
    payload = released_scene(FILE, "row[0]", "x", row).payload
    assert payload["eval_position"] == "agent1" and payload["hard"] == "unknown"
    assert payload["scenario"] == "Ada and Bo share a kitchen."
    assert released_scene(FILE, "row[0]", "x", {**row, "hard": True}).payload["hard"] == "yes"


@given(
    st.dictionaries(
        st.sampled_from([*ROW, "hard"]), st.none() | st.text() | st.integers() | st.floats() | st.lists(st.text())
    )
)
def test_hostile_rows_raise_data_errors_alone(changes):
    with contextlib.suppress(DataError):
        TASK.opening(released_scene(FILE, "row[0]", "x", {**ROW, **changes}))


def test_released_files_are_read_through_the_envelope(tmp_path):
    table = {"data_source": ["sotopia"], "extra_info": [{"index": 7, **ROW}]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "sotopia_hard_val.parquet")
    (found,) = TASK.load(Source("parquet", tmp_path, "validation"))
    assert found.id == "sotopia-7" and found.payload["source"] == "released"


# Public files


def test_the_public_files_give_every_meeting_from_both_sides(soul_data_dir):
    found = {}
    for split in ("train", "validation", "test"):
        source = Source("files", soul_data_dir / "sotopia", split)
        found[split] = TASK.load(source)
        assert source.rows.refused == []
        assert bool(TASK.evaluation_only(source)) == (split == "test")
    assert [len(examples) for examples in found.values()] == [4920, 600, 700]
    groups = [{group for one in examples for group in TASK.groups(one)} for examples in found.values()]
    assert not groups[0] & groups[1] and not (groups[0] | groups[1]) & groups[2]
    hard = Sotopia(SotopiaOptions(only_hard=True)).load(Source("files", soul_data_dir / "sotopia", "test"))
    assert len(hard) == sum(one.payload["hard"] == "yes" for one in found["test"]) == 100


def test_no_player_of_a_public_scene_reads_the_others_goal_or_secret(soul_data_dir):
    for example in TASK.load(Source("files", soul_data_dir / "sotopia", "test")):
        scene = TASK.scene(example)
        for side in (scene, scene.mirrored):
            text = side_system(side)
            assert side.own.goal in text
            assert side.other.goal not in text or side.other.goal in side.own.goal
            assert not side.other.secret or side.other.secret not in text or side.other.secret in side.own.background
            assert "<" not in text


def test_tags_go_and_what_they_hold_stays():
    text = "Do it (<extra_info>Hint: <strategy_hint>slowly</strategy_hint></extra_info>)"
    assert without_tags(text) == "Do it (Hint: slowly)"
