"""The ToMi readers accept stories with traces and the Percept-ToMi table, and say where a bad row is."""

from __future__ import annotations

import csv
import gzip
import io
import os
from pathlib import Path

import pytest

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.data_files import take
from ditto_jax.tasks.paratomi.candidates import same_name, story_candidates
from ditto_jax.tasks.paratomi.files import question_order, read_paratomi

STORY = """\
1 Ann entered the front_yard.
2 Bob entered the front_yard.
3 The pear is in the green_crate.
4 Ann dislikes the study
5 Bob exited the front_yard.
6 Ann moved the pear to the red_treasure_chest.
"""
TEXT = f"""\
{STORY}7 Where will Bob look for the pear?\tgreen_crate\t1
{STORY}7 Where does Ann think that Bob searches for the pear?\tgreen_crate\t1
{STORY}7 Where is the pear really?\tred_treasure_chest\t1
"""
TRACE = """\
enter_agent_0,enter_agent_1,agent_1_exits,agent_0_moves_obj,first_order_1_tom,false_belief
enter_agent_0,enter_agent_1,agent_1_exits,agent_0_moves_obj,second_order_0_tom,false_belief
enter_agent_0,enter_agent_1,agent_1_exits,agent_0_moves_obj,reality,false_belief
"""
CANDS = ("front_yard", "green_crate", "study", "red_treasure_chest")
TABLE_ROW = {
    "index": "17",
    "qTypeRaw": "second_order_1_no_tom",
    "qType": "second_order_no_tom",
    "story": "['Ann entered the TV room', \"Ann's pear is in the treasure chest\"]",
    "question": "Where does Ann think that Bob searches for the pear?",
    "cands": "['TV room', 'treasure chest', 'sweatshirt']",
    "answer": "treasure chest",
}


def _write(folder: Path, text: str = TEXT, trace: str = TRACE, stem: str = "mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.trace").write_text(trace)
    (folder / f"{stem}.txt").write_text(text)
    return folder / f"{stem}.txt"


def _table(path: Path, *rows: dict, columns: tuple[str, ...] = tuple(TABLE_ROW)) -> Path:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(out.getvalue(), newline="")
    return path


def test_a_block_and_its_trace_become_an_example(tmp_path):
    first, second, third = read_paratomi(_write(tmp_path), "test", None)
    assert (first.task, first.id, first.gold) == ("paratomi", "paratomi-mine-0", "green_crate")
    payload = dict(first.payload)
    assert len({e.payload["set_id"] for e in (first, second, third)}) == 1 and len(payload.pop("set_id")) == 12
    assert payload == {
        "story": STORY.strip(),
        "question": "Where will Bob look for the pear?",
        "cands": CANDS,
        "question_type": "first_order_1_tom",
        "question_order": 1,
        "story_type": "false_belief",
    }
    assert [e.payload["question_order"] for e in (first, second, third)] == [1, 2, 0]
    assert [e.id for e in (second, third)] == ["paratomi-mine-1", "paratomi-mine-2"]


def test_a_table_row_keeps_the_listed_candidates_and_the_index(tmp_path):
    (example,) = read_paratomi(_table(tmp_path / "Percept-ToMi.csv", TABLE_ROW), "test", None)
    assert (example.id, example.gold) == ("paratomi-Percept-ToMi-17", "treasure chest")
    assert example.payload["story"] == "Ann entered the TV room\nAnn's pear is in the treasure chest"
    assert example.payload["cands"] == ("TV room", "treasure chest", "sweatshirt")
    assert (example.payload["question_type"], example.payload["question_order"]) == ("second_order_1_no_tom", 2)
    assert example.payload["story_type"] == ""


def test_folders_and_gzipped_twins_are_found_by_split(tmp_path):
    for stem, text in (("fb_all_train", TEXT), ("fb_all_val", TEXT.replace("pear", "plum")), ("fb_all_test", TEXT)):
        file = _write(tmp_path / "ToMi", text, stem=stem)
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    trace = tmp_path / "ToMi" / "fb_all_val.trace"
    trace.with_name(trace.name + ".gz").write_bytes(gzip.compress(trace.read_bytes()))
    trace.unlink()
    assert read_paratomi(tmp_path, "train", None)[0].id == "paratomi-fb_all_train-0"
    assert "plum" in read_paratomi(tmp_path / "ToMi", "validation", None)[0].payload["story"]
    _write(tmp_path / "para", stem="test")
    assert read_paratomi(tmp_path / "para", "test", None)[0].id == "paratomi-test-0"


def test_windows_line_ends_and_a_byte_order_mark_make_no_difference(tmp_path):
    plain = read_paratomi(_write(tmp_path / "a"), "test", None)
    other = _write(tmp_path / "b")
    for file in (other, other.with_suffix(".trace")):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_paratomi(other, "test", None) == plain


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2 Bob entered", "Bob entered", r"line 2: line='Bob entered.*must be a number"),
        ("2 Bob entered", "3 Bob entered", r"line 2: number=3: must be 2"),
        ("\tgreen_crate\t1\n1 Ann", "\n1 Ann", r"line 8: line='1 Ann.*ends without a question"),
        ("\tgreen_crate\t1\n1 Ann", "\tgreen_crate\n1 Ann", r"line 7: question=.*must be question<TAB>answer<TAB>1"),
        ("\tgreen_crate\t1\n1 Ann", "\t \t1\n1 Ann", r"line 7: question="),
        ("\tgreen_crate\t1\n1 Ann", "\tgreen_crate\t1\n8 More text.\n1 Ann", r"line 8: number=8: must be 1, since"),
        ("\tgreen_crate\t1\n1 Ann", "\tblue_box\t1\n1 Ann", r"line 7: answer='blue_box': must be a container or place"),
        ("really?\tred_treasure_chest\t1\n", "really?\n", r"the last block ends without a question"),
    ],
)
def test_a_bad_story_line_is_named(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(DataError, match=r"mine\.txt: " + message):
        read_paratomi(_write(tmp_path, TEXT.replace(old, new, 1)), "test", None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reality,false_belief", "", r"mine\.trace: line 3: story type=''"),
        ("first_order_1_tom", "first_order_9_tom", r"line 1: question type='first_order_9_tom': must be reality"),
        ("reality,false_belief", "reality,unsure", r"line 3: story type='unsure': must be one of"),
        ("second_order_0_tom", "memory", r"line 2: question type='memory': .*of order 2.*out of step"),
    ],
)
def test_a_bad_trace_line_is_named(tmp_path, old, new, message):
    trace = TRACE.replace(old, new)
    with pytest.raises(DataError, match=message):
        read_paratomi(_write(tmp_path, trace=trace), "test", None)


@pytest.mark.parametrize("lines", [TRACE.splitlines()[:2], [*TRACE.splitlines(), TRACE.splitlines()[0]]])
def test_blocks_and_trace_lines_must_agree_in_number(tmp_path, lines):
    with pytest.raises(DataError, match=rf"mine\.trace: {len(lines)} lines for the 3 blocks of mine\.txt"):
        read_paratomi(_write(tmp_path, trace="\n".join(lines)), "test", None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"index": "x"}, "index"),
        ({"qTypeRaw": "second_order_tom"}, "qTypeRaw"),
        ({"story": "not a list"}, "story"),
        ({"story": "[]"}, "story"),
        ({"story": "['a', 3]"}, "story"),
        ({"cands": "__import__('os').getcwd()"}, "cands"),
        ({"cands": "['box'"}, "cands"),
        ({"question": " "}, "question"),
        ({"answer": ""}, "answer"),
        ({"answer": "bathtub"}, "answer"),
    ],
)
def test_a_bad_table_field_is_named(tmp_path, changes, field):
    file = _table(tmp_path / "t.csv", {**TABLE_ROW, "index": "3"}, {**TABLE_ROW, **changes})
    with pytest.raises(DataError, match=rf"t\.csv: line 3: {field}="):
        read_paratomi(file, "test", None)


def test_a_table_with_wrong_shape_is_refused(tmp_path):
    with pytest.raises(DataError, match="line 1: no column cands, answer"):
        read_paratomi(_table(tmp_path / "t.csv", TABLE_ROW, columns=tuple(TABLE_ROW)[:5]), "test", None)
    with pytest.raises(DataError, match="id='paratomi-t-17': a row before has it"):
        read_paratomi(_table(tmp_path / "t.csv", TABLE_ROW, TABLE_ROW), "test", None)
    with pytest.raises(DataError, match="holds no row"):
        read_paratomi(_table(tmp_path / "t.csv"), "test", None)
    short = _table(tmp_path / "t.csv", TABLE_ROW)
    for end, rule in (("9,reality\n", "as many fields"), ('9,"reality', "not valid CSV")):
        text = short.read_text()
        (tmp_path / "bad.csv").write_text(text + end)
        with pytest.raises(DataError, match=rf"bad\.csv: line [23]: .*{rule}"):
            read_paratomi(tmp_path / "bad.csv", "test", None)


def test_absent_inputs_say_what_to_set(tmp_path):
    with pytest.raises(MissingInputError, match="no such file or folder; set the path.*generated"):
        read_paratomi(tmp_path / "absent.txt", "test", None)
    with pytest.raises(MissingInputError, match=r"looked for ToMi/fb_all_val\.txt\[\.gz\]"):
        read_paratomi(tmp_path, "validation", None)
    file = _write(tmp_path)
    file.with_suffix(".trace").unlink()
    with pytest.raises(MissingInputError, match=r"mine\.trace: no such file; mine\.txt needs it"):
        read_paratomi(file, "test", None)
    with pytest.raises(ConfigError, match="split='dev'.*train, validation, test"):
        read_paratomi(file, "dev", None)
    (tmp_path / "notes.md").write_text("words")
    with pytest.raises(DataError, match=r"must be a \.txt file"):
        read_paratomi(tmp_path / "notes.md", "test", None)


@pytest.mark.parametrize(
    ("story", "gold", "cands"),
    [
        ("1 Ann entered the spa.\n2 The pear is in the jar.\n3 Ann moved the pear to the old urn.", "jar",
         ["spa", "jar", "old urn"]),
        ("Bob tiptoed into the living room. The Box safeguards the socks.", "box", ["living room", "Box"]),
        ("Ann is a box-aholic. Boxes bore Bob. The crate has the hat.", "crate", ["crate"]),
        ("The pear sits in a green treasure chest in the master_bedroom", "green_treasure_chest",
         ["green treasure chest", "master_bedroom"]),
        ("Ann put the hat under a wig. The den has it.", "wig", ["wig", "den"]),
        ("Ann is fond of the hall. The hat is in the hallway.", "den", []),
    ],
)  # fmt: skip
def test_candidates_are_the_containers_and_places_named_in_the_story(story, gold, cands):
    assert story_candidates(story, gold) == cands


def test_names_are_compared_without_case_and_separators():
    assert same_name("TV_room", "tv room") and not same_name("box", "red box")


@pytest.mark.parametrize(
    ("kind", "question", "order"),
    [
        ("memory", "Where was the hat at the beginning?", 0),
        ("first_order_tom", "", 1),
        ("second-order belief", "", 2),
        ("", "Where will Ann look for the hat?", 1),
        ("", "Where does Ann think that Bob searches for the hat?", 2),
        ("", "Where is the hat really?", 0),
    ],
)
def test_question_order_follows_type_then_wording(kind, question, order):
    assert question_order(kind, question) == order


def _data() -> Path:
    if not os.environ.get("SOUL_DATA_DIR"):
        pytest.skip("SOUL_DATA_DIR is not set: no official ToMi files")
    return Path(os.environ["SOUL_DATA_DIR"]) / "paratomi"


@pytest.mark.parametrize("folder", ["", "thought-tracing"])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_official_files_are_read_completely(folder, split):
    examples = read_paratomi(_data() / folder, split, None)
    assert len(examples) > 4000 and len({e.id for e in examples}) == len(examples)
    for e in examples:
        assert e.gold in e.payload["cands"] and 2 <= len(e.payload["cands"]) <= 6
    assert {e.payload["question_order"] for e in take(read_paratomi(_data() / folder, split), 60)} == {0, 1, 2}


def test_the_candidate_rules_find_every_listed_container_and_place():
    """Percept-ToMi lists its candidates; apart from liked things (clothes, fruit) the two rules derive the same."""
    liked = 0
    for e in read_paratomi(_data() / "PercepToM" / "Percept-ToMi.csv", "test", None):
        derived, listed = set(story_candidates(e.payload["story"], e.gold)), set(e.payload["cands"])
        assert derived <= listed
        for thing in listed - derived:
            assert any(f"{verb} the {thing}" in e.payload["story"] for verb in ("likes", "loves", "hates", "dislikes"))
            liked += 1
    assert liked > 0
