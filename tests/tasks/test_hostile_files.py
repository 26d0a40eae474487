"""Every reader of public files against damage: cut short, overwritten, or with one hostile value anywhere inside.

A damaged file is read in part or refused by name; nothing else is ever raised, and the account of rows adds up.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.base import Source
from ditto_jax.tasks.registry import get_task
from ditto_jax.tasks.rows import RowReport
from ditto_jax.tasks.sotopia.files import OFFICIAL
from tests.released_rows import ROWS
from tests.tasks import test_fantom_files as fantom
from tests.tasks import test_hitom_files as hitom
from tests.tasks import test_paratomi_files as paratomi
from tests.tasks import test_sotopia_files as sotopia
from tests.tasks import test_twinvoice as twinvoice
from tests.tasks import test_userllm_files as userllm
from tests.tasks.test_hostile_input import TASKS, places, replaced, use

_SCENE = json.loads(ROWS["coser"]["circumstance"])
_CHAT = {"conversation_id": "c", **ROWS["mirrorbench"]}
_PUPIL = {
    "Misconception": "Joins digits",
    "Misconception ID": "MaE1",
    "Topic": "Numbers",
    "Example Number": 1,
    "Question": "2 + 3",
    "Incorrect Answer": "23",
    "Correct Answer": "5",
    "Question image": "",
}
_PUPILS = [
    {**_PUPIL, "Misconception ID": f"MaE{kind}", "Example Number": k, "Incorrect Answer": f"{kind}{k}"}
    for kind in range(1, 9)
    for k in (1, 2)
]


def lines(*rows: Any) -> str:
    return "\n".join(map(json.dumps, rows))


def table(*rows: Mapping[str, str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_OPENINGS = {"cluster_id": "4", "cluster_size": "9", "top_texts": "['hi there', 'what is new?']"}
# One small valid folder for every kind of public file: task → name → text.
FOLDERS: dict[str, tuple[str, dict[str, str]]] = {
    "hitom": ("hitom", {"Hi-ToM_data.json": json.dumps({"data": [hitom.ROW, {**hitom.ROW, "sample_id": 8}]})}),
    "tomi stories": ("paratomi", {"fb_all_test.txt": paratomi.TEXT, "fb_all_test.trace": paratomi.TRACE}),
    "tomi table": ("paratomi", {"Percept-ToMi.csv": table(paratomi.TABLE_ROW)}),
    "fantom beliefs": ("fantom", {f"AutoToM/{fantom.BELIEFS}": table(fantom.BELIEF)}),
    "fantom complete": ("fantom", {"fantom_v1.json": json.dumps([fantom.SET])}),
    "coser": ("coser", {"test_set.json": json.dumps([_SCENE, {**_SCENE, "i_c": 1}])}),
    "lifechoices": (
        "lifechoices",
        {"data.json": json.dumps([[{**ROWS["lifechoices"], "book": str(k)} for k in range(9)]])},
    ),
    "sotopia": ("sotopia", {name: lines(*sotopia.RECORDS[kind]) for kind, name in OFFICIAL.items()}),
    "mistakes": ("mistakes", {"data.json": json.dumps(_PUPILS)}),
    "mirrorbench": ("mirrorbench", {"oasst1_mirror.jsonl": lines(_CHAT, {**_CHAT, "conversation_id": "d"})}),
    "csqa": (
        "userllm",
        {
            "dev_rand_split.jsonl": lines(
                *({**userllm.FILES["dev_rand_split.jsonl"], "id": str(k), "question": f"q{k}?"} for k in range(9))
            )
        },
    ),
    "nq": ("userllm", {"NQ-open.dev.jsonl": lines(*({"question": f"who was number {k}"} for k in range(12)))}),
    "prism": (
        "userllm",
        {"opening_prompt_cluster_df_original.csv": table(_OPENINGS, {**_OPENINGS, "cluster_id": "5"})},
    ),
    "oasst1": ("userllm", {"oasst1_mirror.jsonl": lines(userllm.FILES["oasst1_mirror.jsonl"])}),
    "narrative": (
        "twinvoice",
        {
            "dimension_3/choices.jsonl": lines(twinvoice.ITEM, {**twinvoice.ITEM, "chunk_id": "00700"}),
            "dimension_3/profiles.jsonl": json.dumps({"characterList": {"CHAR_0": twinvoice.PROFILE}}),
        },
    ),
    "social": ("twinvoice", {"pchatbot_some.jsonl": lines(twinvoice.SOCIAL, {**twinvoice.SOCIAL, "line_idx": 2})}),
}
_NAMED_ALONE = ("tomi table", "social")  # files that a folder is not searched for
HOSTILE = st.one_of(
    st.none() | st.booleans() | st.floats() | st.integers(-(10**30), 10**30),
    st.text(st.characters(categories=None), max_size=20),
    st.sampled_from(["[" * 3000, "{'a': ", "__import__('os')", "\u2028", "9" * 5000, [], {}, [[]], {"": {}}]),
)


def read(kind: str, folder: Path, texts: Mapping[str, str | bytes], split: str = "test") -> RowReport:
    """Reads a folder with these texts; returns the account. Raises only what says what is wrong."""
    name, _ = FOLDERS[kind]
    for file, text in texts.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    path = folder / next(iter(texts)) if kind in _NAMED_ALONE else folder
    report = RowReport(skip_bad=True)
    examples = get_task(name).load(Source("files", path, split, rows=report))
    for example in examples:
        use(TASKS[name], example)
    assert len(examples) + report.left_out.total() <= report.found
    return report


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_small_folders_are_valid(kind, tmp_path):
    found = 0
    for split in ("train", "validation", "test"):
        try:
            report = read(kind, tmp_path, FOLDERS[kind][1], split)
        except MissingInputError:  # the files of this task are for one split
            continue
        assert not report.refused
        found += report.found
    assert found


def damaged(data: st.DataObject, text: str) -> str | bytes:
    """A file cut at any place, with something in the place of a part, or with one hostile value in its JSON."""
    how = data.draw(st.sampled_from(["cut", "overwrite", "bytes", "value"]))
    at = data.draw(st.integers(0, len(text)))
    if how == "cut":
        return text[:at]
    if how == "overwrite":
        return text[:at] + data.draw(st.text(st.characters(categories=None), max_size=9)) + text[at + 3 :]
    if how == "bytes":
        return text[:at].encode() + data.draw(st.binary(max_size=9)) + text[at:].encode()
    rows = text.split("\n")
    row = data.draw(st.integers(0, len(rows) - 1))
    try:
        value = json.loads(rows[row])
    except ValueError:
        return text[:at] + str(data.draw(HOSTILE)) + text[at:]
    changed = replaced(value, data.draw(st.sampled_from(places(value))), data.draw(HOSTILE))
    return "\n".join([*rows[:row], json.dumps(changed), *rows[row + 1 :]])


@pytest.mark.parametrize("kind", FOLDERS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_in_part_or_refused_by_name(kind, data, tmp_path):
    texts = FOLDERS[kind][1]
    file = data.draw(st.sampled_from([*texts]))
    try:
        read(kind, tmp_path, {**texts, file: damaged(data, texts[file])})
    except (DataError, MissingInputError) as error:
        why = str(error)
    else:
        return
    assert str(tmp_path) in why


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "9" * 5000, '"' * 200_001, "null", "\x00", "{}", "[7]", "\ufeff[]"]
)
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_file_that_holds_something_else_is_refused_by_name(kind, text, tmp_path):
    for file in FOLDERS[kind][1]:
        if kind == "sotopia" and file in (OFFICIAL["people"], OFFICIAL["pairs"]):
            continue  # what a meeting does not find there is an error of the meeting, or no story of the pair
        with pytest.raises(DataError) as caught:
            read(kind, tmp_path, {**FOLDERS[kind][1], file: text})
        assert str(tmp_path) in str(caught.value)
