"""Reads circumstances: the benchmark's test file and its three examples, and released parquet rows.

In: `test_set.json` or `example_test_set.json`, plain or gzipped, or one `extra_info` whose `circumstance` is an object
or JSON text. Out: examples whose payload is a scene (see `scene_payload`); gold is the book's dialogue without
thoughts. The training sample, which holds no circumstances, is read elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError
from ditto_jax.tasks.coser.lines import ENVIRONMENT, spoken
from ditto_jax.tasks.data_files import read_json
from ditto_jax.tasks.fields import Fields
from ditto_jax.tasks.rows import RowReport, read_rows
from ditto_jax.types import Example, Turn

TAGS = ("id", "ood", "unknown")
_LONGEST_NAME = 100  # characters


def read_circumstances(file: Path, report: RowReport) -> list[Example]:
    """Returns the circumstances of a JSON list, ids "coser-<book>-<plot>-<conversation>".

    Raises DataError (file, row, field, rule).
    """

    def example(where: str, row: Any) -> Example:
        if not isinstance(row, Mapping):
            raise DataError(f"{file}: {where}: must be a JSON object")
        fields = Fields(file, where, row)
        book = "-".join("".join(c if c.isalnum() else " " for c in fields.text("book").casefold()).split())
        return coser_example(f"coser-{book}-{fields.integer('i_p')}-{fields.integer('i_c')}", fields, "circumstances")

    return read_rows(file, [(f"[{i}]", row) for i, row in enumerate(json_list(file))], example, report)


def released_circumstance(file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
    """Returns the example of one released row. Raises DataError (file, row, field)."""
    row = Fields(file, where, info)
    wo_thought, continue_from = row.flag("wo_thought", default=False), row.integer("continue_from", default=0)
    if continue_from < 0:
        raise row.error("continue_from", "must not be negative")
    example = coser_example(example_id, row.part("circumstance"), "released")
    payload = {**example.payload, "wo_thought": wo_thought, "continue_from": continue_from}
    return dataclasses.replace(example, payload=payload)


def coser_example(example_id: str, row: Fields, source: str) -> Example:
    """Returns the example of one circumstance. Raises DataError (file, row, field, rule)."""
    plot = row.part("plot")
    in_plot = {
        one.text("name"): one.text("description", default="", empty=True) for one in plot.records("key_characters")
    }
    speaking = [speaker_name(row, "speaking_characters_w_env", name) for name in row.texts("speaking_characters_w_env")]
    profiles = profile_texts(row, speaking, in_plot)
    lines = tuple(
        {"character": speaker_name(line, "character", line.text("character")), "message": line.text("message")}
        for line in row.records("dialogues")
    )
    if not lines:
        raise row.error("dialogues", "must hold at least one line")
    payload = scene_payload(
        row,
        speaking,
        book=row.text("book"),
        summary=plot.text("summary"),
        scenario=row.text("scenario"),
        major=row.texts("major_characters"),
        profiles=profiles,
        motivations={
            one.text("name"): one.text("motivation", "thought", default="", empty=True)
            for one in row.records("key_characters")
        },
        reference=lines,
        tag=row.one_of("tag", TAGS, default="unknown"),
        source=source,
    )
    return Example(task="coser", id=example_id, payload=payload, gold=spoken(reference_turns(payload)))


def scene_payload(
    row: Fields,
    speaking: Sequence[str],
    *,
    book: str,
    summary: str,
    scenario: str,
    major: Sequence[str],
    profiles: Mapping[str, str],
    motivations: Mapping[str, str],
    reference: Sequence[Mapping[str, str]],
    tag: str,
    source: str,
) -> dict[str, Any]:
    """Returns a scene as every reader makes it.

    first opens the scene, and may be the environment; characters are those that the policy plays, in the order of
    `speaking`; major are the ones of them (all, if none) among whom an undecided turn is drawn. Raises DataError.
    """
    characters = tuple(name for name in speaking if name != ENVIRONMENT)
    if not characters:
        raise row.error("speaking_characters_w_env", "must name at least one character beside the environment")
    if len({name.casefold() for name in speaking}) < len(speaking):
        raise row.error("speaking_characters_w_env", "must name everybody once")
    return {
        "book": book,
        "summary": summary,
        "scenario": scenario,
        "first": speaking[0],
        "characters": characters,
        "major": tuple(name for name in characters if name in major) or characters,
        "profiles": {name: text for name, text in profiles.items() if text},
        "motivations": {name: text for name, text in motivations.items() if text},
        "reference": tuple(reference),
        "tag": tag,
        "source": source,
        "wo_thought": False,
        "continue_from": 0,
    }


def reference_turns(payload: Mapping[str, Any]) -> list[Turn]:
    """Returns the book's dialogue, thoughts included."""
    return [Turn(line["character"], line["message"], "given") for line in payload["reference"]]


def speaker_name(row: Fields, field: str, name: str) -> str:
    """Returns a participant's name, the environment's in one spelling. Raises DataError for what is no name."""
    if not name or "\n" in name or ":" in name or len(name) > _LONGEST_NAME:
        raise row.error(field, f"must be names of one line without a colon, up to {_LONGEST_NAME} characters")
    return ENVIRONMENT if name.casefold() == ENVIRONMENT.casefold() else name


def profile_texts(row: Fields, speaking: Sequence[str], in_plot: Mapping[str, str]) -> dict[str, str]:
    """Returns who each speaking character is: what the plot says of it, then the book's profile."""
    profiles = Fields(row.file, f"{row.where}: character_profiles", row.mapping("character_profiles"))
    texts = {}
    for name in speaking:
        if name != ENVIRONMENT:
            parts = (in_plot.get(name, ""), profiles.text(name, default="", empty=True))
            texts[name] = "\n\n".join(part for part in parts if part)
    return texts


def json_list(file: Path) -> list[Any]:
    """Returns the members of a JSON list. Raises DataError if the file holds something else."""
    rows = read_json(file)
    if not isinstance(rows, list):
        raise DataError(f"{file}: must be a JSON list")
    return rows
