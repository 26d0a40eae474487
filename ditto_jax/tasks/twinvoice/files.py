"""Reads rows of the task `twinvoice`: released rows, and the public TwinBench files.

In: one `extra_info`; or TwinBench's folder or one of its files, plain or gzipped. Out: examples with options,
gold_letter, history, anchor, dimension and person. Narrative items get what their character says in earlier chunks of
the novel. The histories of social items are not public here: a person's replies in earlier items stand in for them.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ditto_jax.errors import MissingInputError
from ditto_jax.tasks.data_files import plain_or_gz, read_json
from ditto_jax.tasks.fields import Fields, fields_of
from ditto_jax.tasks.rows import LeftOut, RowReport, json_lines, read_rows
from ditto_jax.tasks.splits import group_name
from ditto_jax.types import Example

LETTERS = "ABCD"
NARRATIVE = "dimension_3/choices.jsonl"
PROFILES = "profiles.jsonl"
SOCIAL = "dimension_1/pchatbot_pccd1_twin_gpt-4o-mini_merged_samples=1-2000_20.jsonl"
_NO_HISTORY = "no earlier words of this person"

Histories = Mapping[str, list[Fields]]


def twinvoice_released(file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
    """Returns the example of one released row; its group is the person. Raises DataError (file, row, field, rule)."""
    row = Fields(file, where, info)
    return _item(
        row,
        example_id,
        options=row.texts("answer_choices", "choices", count=4),
        index=row.integer("answer_idx"),
        index_field="answer_idx",
        history=row.texts("conversation_history", "history"),
        anchor=row.text("anchor_post"),
        dimension=row.text("dimension", default="unknown"),
        person=row.text("user_id", "id", default=example_id),
    )


def read_twinvoice(path: Path, split: str, report: RowReport) -> list[Example]:
    """Returns the items of a file, or of both dimensions in a folder; items of persons not heard before are left out.

    Raises MissingInputError (absent path, file or split) or DataError (file, row, field, rule).
    """
    if split != "test":
        raise MissingInputError(f"{path}: the public items are a test set; set source.split to test")
    examples: list[Example] = []
    for file, read in _files(path):
        examples += read(file, report)
    return examples


def _files(path: Path) -> list[tuple[Path, Callable[[Path, RowReport], list[Example]]]]:
    readers = {NARRATIVE: _read_narrative, SOCIAL: _read_social}
    if path.is_dir():
        folders = [path / "TwinBench", path]
        found = [
            (file, read)
            for name, read in readers.items()
            if (file := next((f for folder in folders if (f := plain_or_gz(folder / name))), None))
        ]
        if not found:
            raise MissingInputError(f"{path}: the folder holds no TwinBench file (looked for {', '.join(readers)})")
        return found
    file = plain_or_gz(path)
    if file is None:
        raise MissingInputError(f"{path}: no such file or folder; set the path to the TwinBench folder")
    return [(file, _read_social if file.name.startswith("pchatbot") else _read_narrative)]


def _read_narrative(file: Path, report: RowReport) -> list[Example]:
    histories = _histories(file)

    def example(where: str, value: Any) -> Example:
        row = fields_of(file, where, value)
        novel, person, chunk = row.text("source_novel"), row.text("speaker_match_key"), _chunk(row)
        if person not in histories:
            raise row.error("speaker_match_key", f"must be a NameCanonical of {PROFILES}")
        question = row.part("mcq")
        choices = question.part("options")
        options, said = tuple(choices.text(letter) for letter in LETTERS), row.text("utterance")
        index = LETTERS.index(question.one_of("answer", tuple(LETTERS)))
        if options[index] != said:
            raise row.error("utterance", "must be the option that mcq.answer names")
        earlier = (entry.text("utterance") for entry in histories[person] if _chunk(entry) < chunk)
        return _item(
            row,
            f"twinvoice-{novel}-{where.removeprefix('line ')}",
            options=options,
            index=index,
            index_field="mcq",
            history=tuple(text for text in earlier if text != said),
            anchor=row.text("context"),
            dimension="narrative",
            person=f"{novel} {person}",
            group=group_name("book", novel),
        )

    return read_rows(file, json_lines(file, report), _heard(example), report)


def _histories(file: Path) -> Histories:
    """What every character says, by canonical name; the profiles lie beside the items."""
    profiles = plain_or_gz(file.parent / PROFILES)
    if profiles is None:
        raise MissingInputError(f"{file.parent / PROFILES}: no such file; the histories of {file.name} stand in it")
    characters = fields_of(profiles, "document", read_json(profiles)).part("characterList")
    found = {}
    for key in characters.row:
        character = characters.part(key)
        found[character.text("NameCanonical")] = character.records("UtteranceHistory")
    return found


def _chunk(row: Fields) -> str:
    """A place in the novel. Places are digits that sort as text: 006001 lies between 00600 and 00601."""
    chunk = row.text("chunk_id")
    if not (chunk.isascii() and chunk.isdigit()):
        raise row.error("chunk_id", "must be digits")
    return chunk


def _read_social(file: Path, report: RowReport) -> list[Example]:
    heard: dict[str, list[str]] = collections.defaultdict(list)

    def example(where: str, value: Any) -> Example:
        row = fields_of(file, where, value)
        person = row.text("user_id")
        found = _item(
            row,
            f"twinvoice-social-{row.integer('line_idx')}",
            options=row.texts("choices", count=4),
            index=row.integer("ground_truth_index"),
            index_field="ground_truth_index",
            history=tuple(heard[person]),
            anchor=row.text("anchor_post"),
            dimension="social",
            person=f"social {person}",
        )
        heard[person].append(found.gold)
        return found

    return read_rows(file, json_lines(file, report), _heard(example), report)


def _heard(example: Callable[[str, Any], Example]) -> Callable[[str, Any], Example]:
    """The same reader, which leaves out items of persons of whom nothing was read before."""

    def checked(where: str, value: Any) -> Example:
        found = example(where, value)
        if not found.payload["history"]:
            raise LeftOut(_NO_HISTORY)
        return found

    return checked


def _item(
    row: Fields,
    example_id: str,
    *,
    options: tuple[str, ...],
    index: int,
    index_field: str,
    history: tuple[str, ...],
    anchor: str,
    dimension: str,
    person: str,
    group: str = "",
) -> Example:
    if not 0 <= index < len(LETTERS):
        raise row.error(index_field, "must be a number from 0 to 3")
    if not all(options) or len(set(options)) < len(LETTERS):
        raise row.error("choices", "must be four different texts, none of them empty")
    payload = {
        "options": options,
        "gold_letter": LETTERS[index],
        "history": history,
        "anchor": anchor,
        "dimension": dimension,
        "person": person,
        "group": group or group_name("person", person),
    }
    return Example(task="twinvoice", id=example_id, payload=payload, gold=options[index])
