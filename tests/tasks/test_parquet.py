"""The released parquet envelope is read with types normalised, and never mistaken for another task's."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.registry import get_task

HITOM = {
    "index": 5,
    "story": "1 Ann entered the den.\n2 The pear is in the red_box.",
    "question": "Where is the pear really?",
    "choices": "A. blue_crate, B. red_box",
    "correct_answer": "red_box",
    "deception": "True",
    "story_length": "2",
    "question_order": "3",
    "set_id": 11,
}
PARATOMI = {
    "index": 8,
    "story": "['Ann shuffled into the den.', 'The box has the pear.']",
    "question": "Where will Ann look for the pear?",
    "correct_answer": "box",
    "cands": "['box', 'den']",
    "qType": "first_order_tom",
    "qTypeRaw": "first_order_1_tom",
    "extra_info": "",
}
ROWS = {"hitom": HITOM, "paratomi": PARATOMI}


def read_parquet(path: Path, task: str, limit: int | None, split: str = "train"):
    return get_task(task).load(Source("parquet", path, split, limit))


def _write(path: Path, source: str, *infos: dict, sources: tuple[str, ...] = ()) -> Path:
    dummy = [[{"content": "x", "role": "user"}]] * len(infos)
    columns = {"prompt": dummy, "data_source": list(sources) or [source] * len(infos), "extra_info": list(infos)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_hitom_row_has_the_payload_of_the_public_file(tmp_path):
    (example,) = read_parquet(_write(tmp_path / "h.parquet", "hitom", HITOM), "hitom", None)
    assert (example.task, example.id, example.gold) == ("hitom", "hitom-5", "red_box")
    assert example.payload == {
        "story": HITOM["story"],
        "question": "Where is the pear really?",
        "choices": "A. blue_crate, B. red_box",
        "gold_letter": "B",
        "deception": True,
        "story_length": 2,
        "question_order": 3,
        "set_id": "11",
    }


def test_a_paratomi_row_has_the_payload_of_the_public_files(tmp_path):
    (example,) = read_parquet(_write(tmp_path / "p.parquet", "paratomi", PARATOMI), "paratomi", None)
    assert (example.task, example.id, example.gold) == ("paratomi", "paratomi-8", "box")
    payload = dict(example.payload)
    assert len(payload.pop("set_id")) == 12
    assert payload == {
        "story": "Ann shuffled into the den.\nThe box has the pear.",
        "question": "Where will Ann look for the pear?",
        "cands": ("box", "den"),
        "question_type": "first_order_1_tom",
        "question_order": 1,
        "story_type": "",
    }


@pytest.mark.parametrize("deception", [True, "True", "true", 1])
@pytest.mark.parametrize("number", [3, "3"])
def test_hitom_types_are_normalised(tmp_path, deception, number):
    info = {**HITOM, "deception": deception, "question_order": number, "story_length": number}
    (example,) = read_parquet(_write(tmp_path / "h.parquet", "hitom", info), "hitom", None)
    assert example.payload["deception"] is True
    assert (example.payload["question_order"], example.payload["story_length"]) == (3, 3)


@pytest.mark.parametrize("deception", [False, "False", 0])
def test_the_text_false_is_false(tmp_path, deception):
    info = {**HITOM, "deception": deception}
    assert read_parquet(_write(tmp_path / "h.parquet", "hitom", info), "hitom", None)[0].payload["deception"] is False


SENTENCES = ["Ann shuffled into the den.", "The box has the pear."]


@pytest.mark.parametrize("story", [SENTENCES, str(SENTENCES), "\n".join(SENTENCES)])
@pytest.mark.parametrize("cands", [["den", "box"], "['den', 'box']", "", "[]", [], None])
def test_stories_and_candidates_may_be_lists_literals_text_or_absent(tmp_path, story, cands):
    info = {**PARATOMI, "story": story, "cands": cands}
    (example,) = read_parquet(_write(tmp_path / "p.parquet", "paratomi", info), "paratomi", None)
    assert example.payload["story"] == "\n".join(SENTENCES)
    assert example.payload["cands"] == ("den", "box")


def test_only_what_the_scorer_needs_is_required_of_paratomi(tmp_path):
    info = {name: PARATOMI[name] for name in ("story", "question", "correct_answer")}
    (example,) = read_parquet(_write(tmp_path / "p.parquet", "paratomi", info), "paratomi", None)
    assert (example.id, example.payload["question_type"], example.payload["question_order"]) == ("paratomi-0", "", 1)


@pytest.mark.parametrize("task", ["hitom", "paratomi"])
def test_extra_information_is_kept_only_if_there_is_any(tmp_path, task):
    infos = [{**ROWS[task], "index": i, "extra_info": extra} for i, extra in enumerate((" Ann is shy. ", "", None))]
    examples = read_parquet(_write(tmp_path / "x.parquet", task, *infos), task, None)
    assert [e.payload.get("extra_info") for e in examples] == ["Ann is shy.", None, None]


def test_absent_set_ids_and_indices_are_replaced(tmp_path):
    infos = [{**HITOM, "index": None, "set_id": None}] * 2
    one, two = read_parquet(_write(tmp_path / "h.parquet", "hitom", *infos), "hitom", None)
    assert (one.id, two.id) == ("hitom-0", "hitom-1")
    assert one.payload["set_id"] == two.payload["set_id"] != ""


@pytest.mark.parametrize(
    ("task", "changes", "field"),
    [
        ("hitom", {"correct_answer": "green_box"}, "answer"),
        ("hitom", {"correct_answer": None}, "extra_info.correct_answer"),
        ("hitom", {"question_order": "7"}, "question_order"),
        ("hitom", {"deception": "unsure"}, "deception"),
        ("hitom", {"story": None}, "story"),
        ("paratomi", {"correct_answer": " "}, "extra_info.correct_answer"),
        ("paratomi", {"correct_answer": "jar"}, "answer"),
        ("paratomi", {"cands": "box, den"}, "cands"),
        ("paratomi", {"cands": "open('x')"}, "cands"),
        ("paratomi", {"story": ""}, "story"),
        ("paratomi", {"question": None}, "question"),
    ],
)
def test_a_bad_field_is_named_with_file_and_row(tmp_path, task, changes, field):
    good = ROWS[task]
    file = _write(tmp_path / "x.parquet", task, {**good, "index": 1}, {**good, **changes})
    with pytest.raises(DataError, match=rf"x\.parquet: row\[1\]: {field}="):
        read_parquet(file, task, None)


def test_rows_of_unknown_or_other_tasks_are_errors(tmp_path):
    unknown = _write(tmp_path / "u.parquet", "", HITOM, {**HITOM, "index": 6}, sources=("hitom", "maths"))
    with pytest.raises(DataError, match=r"row\[1\]: data_source='maths': 'maths' is unknown; known: .*hitom, paratomi"):
        read_parquet(unknown, "hitom", None)
    mixed = _write(tmp_path / "m.parquet", "", HITOM, {**HITOM, "index": 6}, sources=("hitom", "paratomi"))
    with pytest.raises(DataError, match=r"row\[1\]: data_source='paratomi': must be 'hitom'"):
        read_parquet(mixed, "hitom", None)
    later = _write(tmp_path / "l.parquet", "", HITOM, sources=("alignx_demo",))
    with pytest.raises(DataError, match="'alignx_demo' is known but not yet a task of this suite"):
        read_parquet(later, "hitom", None)
    with pytest.raises(ConfigError, match="task 'maths' is unknown"):
        read_parquet(mixed, "maths", None)
    with pytest.raises(ConfigError, match="task 'behavior_chain' is known but not yet here"):
        read_parquet(mixed, "behavior_chain", None)


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"text\.parquet: not a readable parquet file"):
        read_parquet(tmp_path / "text.parquet", "hitom", None)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="no column data_source, extra_info"):
        read_parquet(tmp_path / "c.parquet", "hitom", None)
    pyarrow.parquet.write_table(pyarrow.table({"data_source": ["hitom"], "extra_info": ["x"]}), tmp_path / "s.parquet")
    with pytest.raises(DataError, match=r"row\[0\]: extra_info='x': must be a struct"):
        read_parquet(tmp_path / "s.parquet", "hitom", None)
    with pytest.raises(DataError, match="id='hitom-5': a row before has it"):
        read_parquet(_write(tmp_path / "d.parquet", "hitom", HITOM, HITOM), "hitom", None)
    with pytest.raises(DataError, match="holds no row"):
        read_parquet(_write(tmp_path / "e.parquet", "hitom"), "hitom", None)


def test_folders_are_searched_by_the_released_names(tmp_path):
    _write(tmp_path / "hitom_rl_train.parquet", "hitom", HITOM)
    _write(tmp_path / "hitom_val.parquet", "hitom", {**HITOM, "index": 6})
    assert read_parquet(tmp_path, "hitom", None)[0].id == "hitom-5"
    assert read_parquet(tmp_path, "hitom", None, split="test")[0].id == "hitom-6"
    with pytest.raises(MissingInputError, match=r"paratomi_rl_train\.parquet: no such file; set the path"):
        read_parquet(tmp_path, "paratomi", None)
    with pytest.raises(ConfigError, match="split='dev'"):
        read_parquet(tmp_path, "hitom", None, split="dev")


def test_a_limited_sample_is_fixed_and_nested(tmp_path):
    file = _write(tmp_path / "h.parquet", "hitom", *({**HITOM, "index": i} for i in range(30)))
    few, more = ([e.id for e in read_parquet(file, "hitom", limit)] for limit in (5, 10))
    assert len(few) == 5 and len(more) == 10 and set(few) < set(more)
