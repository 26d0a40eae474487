"""The Hi-ToM reader accepts the official file and any subset, and says where a bad row is."""

from __future__ import annotations

import copy
import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.data_files import take
from ditto_jax.tasks.hitom.files import read_choices, read_hitom

ROW = {
    "prompting_type": "CoTP",
    "deception": True,
    "story_length": 2,
    "question_order": 3,
    "sample_id": 7,
    "story": "1 Ann and Bob entered the den.\n2 The pear is in the red_box.\n\n***",
    "question": "Where is the pear really?",
    "choices": "A. blue_crate, B. red_box, C. treasure_chest",
    "answer": "red_box",
}


def _rows(count: int = 1, **changes) -> list[dict]:
    return [{**copy.deepcopy(ROW), **changes} for _ in range(count)]


def _write(path: Path, rows: object, wrap: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": rows} if wrap else rows))
    return path


def test_a_row_becomes_an_example_with_every_payload_field(tmp_path):
    (example,) = read_hitom(_write(tmp_path / "some.json", _rows()), "train", None)
    payload = dict(example.payload)
    assert (example.task, example.id, example.gold) == ("hitom", "hitom-0", "red_box")
    assert len(payload.pop("set_id")) == 12
    assert payload == {
        "story": "1 Ann and Bob entered the den.\n2 The pear is in the red_box.",
        "question": "Where is the pear really?",
        "choices": "A. blue_crate, B. red_box, C. treasure_chest",
        "gold_letter": "B",
        "deception": True,
        "story_length": 2,
        "question_order": 3,
    }


def test_rows_of_the_other_prompting_style_are_skipped_and_ids_keep_the_file_row(tmp_path):
    rows = [
        *_rows(prompting_type="VP", answer="nowhere"),
        *_rows(),
        *_rows(prompting_type="VP"),
        *_rows(answer="blue_crate"),
    ]
    examples = read_hitom(_write(tmp_path / "h.json", rows), "test", None)
    assert [(e.id, e.gold, e.payload["gold_letter"]) for e in examples] == [
        ("hitom-1", "red_box", "B"),
        ("hitom-3", "blue_crate", "A"),
    ]


def test_questions_about_one_story_share_the_set_id(tmp_path):
    rows = [*_rows(), *_rows(story=ROW["story"].replace("\n\n***", "\n")), *_rows(story="1 Zoe entered the hall.")]
    sets = [e.payload["set_id"] for e in read_hitom(_write(tmp_path / "h.json", rows), "test", None)]
    assert sets[0] == sets[1] != sets[2]


@pytest.mark.parametrize("place", ["Hi-ToM_data.json", "Hi-ToM_dataset/Hi-ToM_data.json"])
def test_folders_and_gzipped_twins_are_found(tmp_path, place):
    plain = _write(tmp_path / place, _rows(2))
    direct = read_hitom(plain, "test", None)
    packed = plain.with_name(plain.name + ".gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert (
        read_hitom(tmp_path, "test", None)
        == read_hitom(plain, "test", None)
        == read_hitom(packed, "test", None)
        == direct
    )


def test_a_limited_sample_is_fixed_nested_and_in_file_order(tmp_path):
    file = _write(tmp_path / "h.json", _rows(40))
    few, more = ([int(e.id.split("-")[1]) for e in take(read_hitom(file, "test"), limit)] for limit in (8, 16))
    assert len(few) == 8 and len(more) == 16 and set(few) < set(more)
    assert few == sorted(few) and few != list(range(8))
    assert len(take(read_hitom(file, "test"), 100)) == 40


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompting_type": "other"}, "prompting_type"),
        ({"story": ""}, "story"),
        ({"question": None}, "question"),
        ({"question_order": 5}, "question_order"),
        ({"question_order": "many"}, "question_order"),
        ({"story_length": 0}, "story_length"),
        ({"deception": "perhaps"}, "deception"),
        ({"answer": "green_crate"}, "answer"),
        ({"answer": "B"}, "answer"),
        ({"choices": "blue_crate, red_box"}, "choices"),
        ({"choices": "A. blue_crate, C. red_box"}, "choices"),
        ({"choices": "A. red_box, B. red_box"}, "choices"),
        ({"choices": "A. blue_crate, B. red_box, B. den"}, "choices"),
        ({"choices": "A. red_box"}, "choices"),
    ],
)
def test_a_bad_field_is_named_with_file_and_row(tmp_path, changes, field):
    file = _write(tmp_path / "h.json", [*_rows(2), *_rows(**changes)])
    with pytest.raises(DataError, match=rf"h\.json: data\[2\]: {field}="):
        read_hitom(file, "test", None)


@pytest.mark.parametrize(
    "field", ["story", "question", "choices", "answer", "deception", "story_length", "question_order"]
)
def test_a_missing_field_is_named(tmp_path, field):
    rows = _rows(1)
    del rows[0][field]
    with pytest.raises(DataError, match=rf"data\[0\]: {field}=None: Field required"):
        read_hitom(_write(tmp_path / "h.json", rows), "test", None)


def test_files_that_are_no_hitom_file_are_refused(tmp_path):
    (tmp_path / "broken.json").write_text('{"data": [\n{]}')
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        read_hitom(tmp_path / "broken.json", "test", None)
    with pytest.raises(DataError, match="must be a JSON object"):
        read_hitom(_write(tmp_path / "list.json", _rows(), wrap=False), "test", None)
    with pytest.raises(DataError, match=r"data\[0\]: row='text'"):
        read_hitom(_write(tmp_path / "text.json", ["text"]), "test", None)
    with pytest.raises(DataError, match="left out: prompting_type VP"):
        read_hitom(_write(tmp_path / "vp.json", _rows(prompting_type="VP")), "test", None)
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(json.dumps({"data": _rows()}).encode())[:-12])
    with pytest.raises(DataError, match="not readable"):
        read_hitom(tmp_path / "cut.json.gz", "test", None)


def test_absent_paths_and_splits_say_what_to_set(tmp_path):
    with pytest.raises(MissingInputError, match=r"absent\.json: no such file.*generated"):
        read_hitom(tmp_path / "absent.json", "test", None)
    with pytest.raises(MissingInputError, match=r"looked for .*Hi-ToM_data\.json"):
        read_hitom(tmp_path, "test", None)
    _write(tmp_path / "Hi-ToM_data.json", _rows())
    with pytest.raises(MissingInputError, match="no split 'train'"):
        read_hitom(tmp_path, "train", None)


def test_option_texts_may_hold_commas_and_spaces():
    assert read_choices("A. the box, the red one, B. Mrs. Hall's den") == {
        "A": "the box, the red one",
        "B": "Mrs. Hall's den",
    }
    assert read_choices("so, A. x, B. y") is None


def test_the_official_file_is_read_completely():
    if not os.environ.get("SOUL_DATA_DIR"):
        pytest.skip("SOUL_DATA_DIR is not set: no official Hi-ToM file")
    folder = Path(os.environ["SOUL_DATA_DIR"]) / "hitom"
    examples = read_hitom(folder, "test", None)
    orders = Counter(e.payload["question_order"] for e in examples)
    assert set(orders) == {0, 1, 2, 3, 4} and len(set(orders.values())) == 1
    assert len({e.payload["set_id"] for e in examples}) * 5 == len(examples) == len({e.id for e in examples})
    for e in examples:
        options = read_choices(e.payload["choices"])
        assert options is not None and options[e.payload["gold_letter"]] == e.gold and len(options) == 15
        assert e.payload["story"].endswith(".")
    assert len(set(Counter(e.payload["question_order"] for e in take(read_hitom(folder, "test"), 100)))) == 5
