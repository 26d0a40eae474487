"""Reads the public Sotopia files: environments, people, how pairs stand to each other, and who meets where.

In: the folder of the official JSONL files (test), or the keyed JSON of pilot scenarios (train, validation). Out: two
examples for each meeting, one from either side. Both files spell ids and pairs differently; the texts are the same.
Tags that say who may read a part of a text are obeyed and removed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.data_files import plain_or_gz, read_json, read_text
from ditto_jax.tasks.fields import Fields, fields_of
from ditto_jax.tasks.option_checks import check_choice
from ditto_jax.tasks.rows import LeftOut, RowReport, json_lines, read_rows
from ditto_jax.tasks.sotopia.scene import POSITIONS, Side, scene_payload
from ditto_jax.tasks.splits import SPLITS, split_of
from ditto_jax.types import Example

OFFICIAL = {
    "environments": "environment_profiles.jsonl",
    "people": "agent_profiles.jsonl",
    "pairs": "relationship_profiles.jsonl",
    "meetings": "env_agent_combo_storages.jsonl",
}
PILOT = "redis_json_data.json"
_CLASSES = {
    "EnvironmentProfile": "environments",
    "AgentProfile": "people",
    "RelationshipProfile": "pairs",
    "EnvAgentComboStorage": "meetings",
}
_LEVELS = (
    "strangers",
    "they know each other by name",
    "acquaintances",
    "friends",
    "in a romantic relationship",
    "family",
)
_FOR_JUDGE = re.compile(r'<p viewer="environment">(.*?)</p>', re.DOTALL)
_TAG = re.compile(r"</?(?:extra_info|strategy_hint|clarification_hint|p)\b[^<>]*>")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_HIDES = re.compile(r"secret|hidden|unbeknown|unaware|unknowing|not aware|has no clue", re.IGNORECASE)
_ID = re.compile(r'"([^"\s]+)"')


@dataclasses.dataclass(frozen=True)
class _Library:
    """Rows by identity; rows are checked where they are used."""

    environments: Mapping[str, Fields]
    people: Mapping[str, Fields]
    pairs: Mapping[frozenset[str], Fields]
    hard: frozenset[str] | None  # ids of Sotopia-hard; None: not known


def read_sotopia(path: Path, split: str, report: RowReport, only_hard: bool = False) -> list[Example]:
    """Returns both sides of all meetings of a split, ids "sotopia-<meeting>-agent1" and "-agent2".

    "test": the official environments, or of them Sotopia-hard. "train" and "validation": the pilot scenarios, a hash of
    the scenario says which.
    Raises MissingInputError (absent path), ConfigError (unknown split) or DataError (file, row, field, rule).
    """
    check_choice("source.split", split, SPLITS)
    rows = _official_rows(path, report) if split == "test" else _pilot_rows(path, report)
    hard = _hard_environments(path) if split == "test" else frozenset()
    if only_hard and not hard:
        raise MissingInputError(f"{path}: only_hard needs the split test and an env_ids.txt that lists Sotopia-hard")
    library = _Library(
        _by_id(rows["environments"], ("env_id", "pk"), report),
        _by_id(rows["people"], ("agent_id", "pk"), report),
        _by_pair(rows["pairs"], report),
        hard,
    )
    meetings = rows["meetings"]
    sides = ((f"{row.where} as {side}", (row, side)) for row in meetings for side in POSITIONS)

    def example(where: str, row: tuple[Fields, str]) -> Example:
        found = _meeting(*row, library, "official" if split == "test" else "pilot")
        if only_hard and found.payload["hard"] != "yes":
            raise LeftOut("not Sotopia-hard")
        if split != "test" and (split_of(found.payload["group"]) == "validation") != (split == "validation"):
            raise LeftOut("belongs to the other of train and validation")
        return found

    return read_rows(meetings[0].file if meetings else path, sides, example, report)


def _meeting(row: Fields, position: str, library: _Library, source: str) -> Example:
    identity = row.text("combo_id", "pk")
    env_id, agents = row.text("env_id"), row.texts("agent_ids", count=2)
    environment = library.environments.get(env_id)
    if environment is None:
        raise LeftOut("its environment is not in the file")
    people = [library.people.get(agent) for agent in agents]
    level = environment.integer("relationship")
    if not 0 <= level < len(_LEVELS):
        raise environment.error("relationship", f"must be a number from 0 to {len(_LEVELS) - 1}")
    scenario = environment.text("scenario")
    sides = []
    for person, goal in zip(people, environment.texts("agent_goals", count=2), strict=True):
        if person is None:
            raise row.error("agent_ids", "must name people of the file")
        if not goal:
            raise environment.error("agent_goals", "must not hold an empty goal")
        sides.append(_side(person, without_tags(goal)))
    if sides[0].name == sides[1].name:
        raise row.error("agent_ids", "must name two people of different names")
    relationship, kept = _relationship(level, library.pairs.get(frozenset(agents)))
    payload = scene_payload(
        without_tags(_FOR_JUDGE.sub("", scenario)),
        relationship,
        (sides[0], sides[1]),
        position,
        source,
        group=scenario,
        note=without_tags(" ".join((*_FOR_JUDGE.findall(scenario), kept))),
        hard=None if library.hard is None else env_id in library.hard,
    )
    return Example(task="sotopia", id=f"sotopia-{identity}-{position}", payload=payload, gold="")


def _side(person: Fields, goal: str) -> Side:
    name = f"{person.text('first_name')} {person.text('last_name', default='')}".strip()
    secret = person.text("secret", default="")
    parts = [
        f"{name} is {person.integer('age')} years old ({person.text('gender', default='not stated')}, "
        f"{person.text('gender_pronoun', default='they/them')}); occupation: {person.text('occupation')}.",
        person.text("public_info", default=""),
        person.text("personality_and_values", default=""),
        f"Secret: {secret}" if secret else "",
    ]
    return Side(name, " ".join(part for part in parts if part), goal, secret)


def _relationship(level: int, pair: Fields | None) -> tuple[str, str]:
    """The level that the environment asks for, with the story of the pair if that is of the same level.

    Stories often name what the two hide from each other; such sentences come second, and no player reads them.
    """
    if pair is None or pair.integer("relationship") != level:
        return _LEVELS[level], ""
    sentences = _SENTENCE.split(pair.text("background_story", default=""))
    told = [sentence for sentence in sentences if not _HIDES.search(sentence)]
    kept = [sentence for sentence in sentences if _HIDES.search(sentence)]
    return f"{_LEVELS[level]}. {' '.join(told)}".strip(), " ".join(kept)


def without_tags(text: str) -> str:
    """Returns a text without the tags around hints and extra information; what they hold stays."""
    return " ".join(_TAG.sub(" ", text).split()).replace("( ", "(").replace(" )", ")")


def _by_id(rows: Iterable[Fields], names: tuple[str, ...], report: RowReport) -> dict[str, Fields]:
    found = {}
    for row in rows:
        try:
            found[row.text(*names)] = row
        except DataError as error:
            report.refuse(error)
    return found


def _by_pair(rows: Iterable[Fields], report: RowReport) -> dict[frozenset[str], Fields]:
    found = {}
    for row in rows:
        try:
            found[frozenset((row.text("agent1_id", "agent_1_id"), row.text("agent2_id", "agent_2_id")))] = row
        except DataError as error:
            report.refuse(error)
    return found


def _official_rows(path: Path, report: RowReport) -> dict[str, list[Fields]]:
    folder = next((f for f in (path, path / "sotopia-space") if plain_or_gz(f / OFFICIAL["meetings"])), None)
    if folder is None:
        raise MissingInputError(f"{path}: no folder with {OFFICIAL['meetings']}; set the path to the official profiles")
    rows = {}
    for name, file_name in OFFICIAL.items():
        file = plain_or_gz(folder / file_name)
        if file is None:
            raise MissingInputError(
                f"{folder}: the folder lacks {file_name}[.gz], which belongs to the official profiles"
            )
        rows[name] = list(_objects(file, report))
    return rows


def _objects(file: Path, report: RowReport) -> Iterator[Fields]:
    for where, row in json_lines(file, report):
        try:
            yield fields_of(file, where, row)
        except DataError as error:
            report.found += 1
            report.refuse(error)


def _pilot_rows(path: Path, report: RowReport) -> dict[str, list[Fields]]:
    candidates = (path / PILOT, path / "sotopia" / PILOT) if path.is_dir() else (path,)
    file = next((found for candidate in candidates if (found := plain_or_gz(candidate))), None)
    if file is None:
        raise MissingInputError(
            f"{path}: no {PILOT}[.gz], which holds the scenarios for training; the official ones are the split test"
        )
    records = read_json(file)
    if not isinstance(records, Mapping):
        raise DataError(f'{file}: must be a JSON object {{":<class path>:<pk>": record}}')
    rows: dict[str, list[Fields]] = {name: [] for name in _CLASSES.values()}
    for key, record in records.items():
        kind = _CLASSES.get(str(key).strip(":").partition(":")[0].rpartition(".")[2])
        if kind is None:
            continue
        if isinstance(record, Mapping):
            rows[kind].append(Fields(file, f"record {key}", record))
        else:
            report.refuse(DataError(f"{file}: record {key}: must be a JSON object"))
    return rows


def _hard_environments(path: Path) -> frozenset[str] | None:
    """The ids under the heading SOTOPIA-HARD of env_ids.txt, beside or below the profiles; None without that file."""
    folders = (path, path / "sotopia-rl", path.parent / "sotopia-rl")
    file = next((found for folder in folders if (found := plain_or_gz(folder / "env_ids.txt"))), None)
    if file is None:
        return None
    _, heading, rest = read_text(file).partition("SOTOPIA-HARD:")
    if not heading:
        raise DataError(f"{file}: has no heading SOTOPIA-HARD:")
    return frozenset(_ID.findall(rest.partition("SOTOPIA-ALL:")[0]))
