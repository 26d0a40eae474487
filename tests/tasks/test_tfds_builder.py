"""Examples survive the way through tfds array_record files, in order, without TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow_datasets", reason="tensorflow_datasets is not installed")

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.registry import built_in_names, get_task, task_type
from ditto_jax.tasks.released import PARTS, SOUL
from ditto_jax.tasks.tfds_builder import DittoSoul, examples_from_tfds, soul_config, to_record
from ditto_jax.types import Example
from tests.released_rows import write_part

SIZES = {"train": 7, "validation": 3, "test": 4}


def _source(builder: DittoSoul, split: str) -> Any:
    return builder.as_data_source(split)  # pyright: ignore[reportCallIssue]  (its decorator hides the parameters)


def _hitom_file(path: Path, answer: str = "red_box") -> Path:
    row = {
        "prompting_type": "CoTP",
        "deception": False,
        "story_length": 1,
        "question_order": 0,
        "story": "1 Zoë entered the den.\n2 The pear is in the red_box.",
        "question": "Where is the pear really?",
        "choices": "A. blue_crate, B. red_box",
    }
    rows = [{**row, "answer": "red_box"}, {**row, "answer": "blue_crate"}, {**row, "answer": answer}]
    path.write_text(json.dumps({"data": rows}))
    return path


GENERATED = [name for name in built_in_names() if "generated" in task_type(name).sources]


@pytest.mark.parametrize("task", GENERATED)
def test_generated_examples_come_back_equal_and_in_order(tmp_path, task):
    config = soul_config(task, "generated", sizes=SIZES, seed=5)
    builder = DittoSoul(config=config, data_dir=tmp_path)
    builder.download_and_prepare()
    for split, size in SIZES.items():
        written = get_task(task, {}).load(Source(kind="generated", split=split, limit=size, seed=5))
        assert examples_from_tfds(_source(builder, split)) == list(written)
        assert len(written) == size
    assert len(_source(builder, "train[:3]")) == 3
    assert dict(builder.info.metadata or {})["seed"] == 5
    assert list(tmp_path.rglob("*array_record*"))


def test_a_stored_record_is_text_in_every_field(tmp_path):
    config = soul_config("hitom", "files", path=_hitom_file(tmp_path / "h.json"))
    builder = DittoSoul(config=config, data_dir=tmp_path / "data")
    builder.download_and_prepare()
    source = _source(builder, "test")
    assert {name: type(value) for name, value in source[1].items()} == dict.fromkeys(
        ("task", "id", "gold", "payload"), bytes
    )
    examples = examples_from_tfds(source)
    assert [(e.task, e.id, e.gold) for e in examples] == [
        ("hitom", "hitom-0", "red_box"),
        ("hitom", "hitom-1", "blue_crate"),
        ("hitom", "hitom-2", "red_box"),
    ]
    assert "Zoë" in examples[0].payload["story"] and examples[0].payload["deception"] is False


@pytest.mark.parametrize("task", SOUL)
def test_released_rows_are_found_by_part_and_come_back_equal(tmp_path, monkeypatch, task):
    monkeypatch.delenv("SOUL_PARQUET_DIR", raising=False)
    with pytest.raises(MissingInputError, match="set SOUL_PARQUET_DIR to the folder that holds train/"):
        DittoSoul(config=f"{task}_parquet", data_dir=tmp_path / "data").download_and_prepare()
    for part in PARTS:
        write_part(tmp_path, part)
    monkeypatch.setenv("SOUL_PARQUET_DIR", str(tmp_path))
    builder = DittoSoul(config=f"{task}_parquet", data_dir=tmp_path / "data")
    builder.download_and_prepare()
    for split, part in (("train", "train"), ("test", "eval")):
        read = get_task(task, {}).load(Source(kind="parquet", path=tmp_path / part, split=split))
        assert examples_from_tfds(_source(builder, split)) == list(read) and len(read) == 3


def test_a_bad_row_leaves_no_data_set_behind(tmp_path):
    config = soul_config("hitom", "files", path=_hitom_file(tmp_path / "h.json", answer="green_box"))
    with pytest.raises(DataError, match=r"data\[2\]: answer='green_box'"):
        DittoSoul(config=config, data_dir=tmp_path / "data").download_and_prepare()
    assert not list((tmp_path / "data").rglob("*array_record*"))


def test_files_need_a_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)
    with pytest.raises(MissingInputError, match="set SOUL_DATA_DIR to the folder that holds paratomi/"):
        DittoSoul(config="paratomi_files", data_dir=tmp_path).download_and_prepare()
    monkeypatch.setenv("SOUL_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(MissingInputError, match="nowhere/paratomi: no such file or folder"):
        DittoSoul(config="paratomi_files", data_dir=tmp_path).download_and_prepare()


def test_every_task_and_source_has_a_named_configuration():
    names = {f"{task}_{kind}" for task in SOUL for kind in task_type(task).sources}
    assert set(DittoSoul.builder_configs) == names and len(names) > 2 * len(SOUL)
    assert names >= {f"{task}_parquet" for task in SOUL}
    assert set(soul_config("twinvoice", "parquet").sizes) == {"train", "test"}
    assert set(soul_config("paratomi", "generated").sizes) == {"train", "validation", "test"}
    assert set(soul_config("paratomi", "files").sizes) == {"train", "validation", "test"}
    assert set(soul_config("hitom", "files").sizes) == {"test"}


def test_configurations_with_other_contents_have_other_names():
    variants = [
        soul_config("hitom", "generated"),
        soul_config("hitom", "generated", seed=1),
        soul_config("hitom", "generated", sizes=SIZES),
        soul_config("hitom", "generated", sizes={**SIZES, "test": 5}),
        soul_config("hitom", "generated", options={"some": 1}),
        soul_config("hitom", "files"),
        soul_config("hitom", "files", path=Path("/a")),
        soul_config("paratomi", "generated"),
    ]
    assert len({config.name for config in variants}) == len(variants)
    assert soul_config("hitom", "generated", seed=0).name == "hitom_generated"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "maths", "kind": "files"}, "task 'maths' is unknown"),
        ({"task": "hitom", "kind": "web"}, "kind='web': task 'hitom' has no such source; it has generated, files, par"),
        ({"task": "twinvoice", "kind": "generated"}, "it has files, parquet"),
        ({"task": "hitom", "kind": "generated", "sizes": {"dev": 3}}, "sizes=.'dev': 3"),
        ({"task": "hitom", "kind": "generated", "sizes": {"train": None}}, "sizes=.'train': None"),
        ({"task": "hitom", "kind": "files", "sizes": {"test": 0}}, "sizes=.'test': 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        soul_config(**arguments)


def test_payloads_that_json_would_change_are_refused():
    good = Example(task="t", id="t-1", payload={"names": ("a", "b"), "deep": {"x": [1, (2.5, None)]}}, gold="g")
    assert examples_from_tfds([to_record(good)])[0].payload == {"names": ("a", "b"), "deep": {"x": (1, (2.5, None))}}
    with pytest.raises(DataError, match="t-2: payload changes"):
        to_record(Example(task="t", id="t-2", payload={"by_number": {1: "a"}}, gold="g"))
    with pytest.raises(DataError, match="t-3: payload cannot be stored"):
        to_record(Example(task="t", id="t-3", payload={"names": {"a"}}, gold="g"))


def test_tensorflow_is_not_imported_even_where_it_is_installed(tmp_path):
    """A decoy package named tensorflow leaves a mark when imported; preparing and reading must not touch it."""
    decoy, mark = tmp_path / "site" / "tensorflow", tmp_path / "imported"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise ImportError('decoy')\n")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ditto_jax.tasks.tfds_builder import DittoSoul, examples_from_tfds, soul_config\n"
        "config = soul_config('hitom', 'files', path=Path(sys.argv[1]))\n"
        "builder = DittoSoul(config=config, data_dir=sys.argv[2])\n"
        "builder.download_and_prepare()\n"
        "count = len(examples_from_tfds(builder.as_data_source('test')))\n"
        "print(count, 'tensorflow' in sys.modules, 'jax' in sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(decoy.parent), str(root)])
    arguments = [str(_hitom_file(tmp_path / "h.json")), str(tmp_path / "data")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "3 False False"
    assert not mark.exists()
