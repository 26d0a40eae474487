"""Reads the public sources of the task `userllm`: question lists, opening prompts, and chats of another benchmark.

In: a folder or one file. Out: user turns of the three subtasks. The chats before CommonsenseQA and Natural Questions
turns are written from templates, and the other question that the assistant offers is one that shares a rare word.
PRISM's chats are not public as files: its published opening prompts give first turns, and MirrorBench's OASST1 chats
(its test set, so in the test split alone) stand in for later and last ones.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.data_files import csv_rows, find_file, plain_or_gz
from ditto_jax.tasks.fields import Fields, fields_of
from ditto_jax.tasks.rows import RowReport, json_lines, read_rows
from ditto_jax.tasks.splits import group_name, of_split, split_of
from ditto_jax.tasks.userllm.measures import content_words
from ditto_jax.tasks.userllm.turns import AI, CSQA, END, NQ, PRISM, USER, UserTurn, chat_text, csqa_turn, nq_turn
from ditto_jax.types import Example

STAND_IN = "oasst1_mirror.jsonl"
Rows = Iterator[tuple[str, Any]]
_SPEAKERS = {"user": USER, "assistant": AI}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One kind of file: where it lies in the folder, what it is named, whose turns it gives and how it is read."""

    place: str
    stem: str
    subtask: str
    read: Callable[[Path, RowReport], list[Example]]


def read_userllm(path: Path, split: str, subtasks: Sequence[str], report: RowReport) -> list[Example]:
    """Returns the user turns of a split, ids "userllm-<source>-<place>"; a group is in one split only.

    In a folder every known file is read, and the OASST1 chats also from the folder `mirrorbench` beside it. Raises
    MissingInputError (absent path, no known file) or DataError (file, row, field, rule).
    """
    examples: list[Example] = []
    for file, kind in _files(path):
        stand_in = kind.place.endswith(STAND_IN)
        if kind.subtask not in subtasks or (stand_in and split != "test"):
            continue
        found = kind.read(file, report)
        examples += found if stand_in else of_split(found, lambda example: str(example.payload["group"]), split)
    return examples


def _files(path: Path) -> list[tuple[Path, _Kind]]:
    if not path.is_dir():
        file = find_file(path, (), "a question list, opening prompts or chats", generated=True)
        kind = next((kind for kind in _KINDS if file.name.startswith(kind.stem)), None)
        if kind is None:
            names = ", ".join(f"{kind.stem}…" for kind in _KINDS)
            raise MissingInputError(f"{file}: not a known file; its name must start with one of {names}")
        return [(file, kind)]
    places = ((path / name, kind) for kind in _KINDS for name in (kind.place, Path(kind.place).name))
    found = {file: kind for place, kind in places if (file := plain_or_gz(place)) is not None}
    if not found:
        names = ", ".join(kind.place for kind in _KINDS)
        raise MissingInputError(f"{path}: the folder holds no known file (looked for {names})")
    return list(found.items())


def _read_csqa(file: Path, report: RowReport) -> list[Example]:
    def example(where: str, value: Any) -> Example:
        row = fields_of(file, where, value)
        question = row.text("question")
        options = row.part("choices").texts("text")
        if len(options) < 3 or not all(options):
            raise row.error("choices", "must hold at least three texts, none of them empty")
        turn = csqa_turn(question, options, source="commonsense_qa", group=group_name("question", question))
        return turn.example(f"userllm-csqa-{row.text('id')}")

    return read_rows(file, json_lines(file, report), example, report)


def _read_nq(file: Path, report: RowReport) -> list[Example]:
    lines = list(json_lines(file, report))
    by_split: dict[str, list[str]] = collections.defaultdict(list)
    for question in (_as_question(value["question"]) for _, value in lines if _has_question(value)):
        by_split[split_of(group_name("question", question))].append(question)
    related: dict[str, str] = {}
    for questions in by_split.values():  # so that no training prompt offers a held-out question
        related |= related_questions(questions)

    def example(where: str, value: Any) -> Example:
        question = _as_question(fields_of(file, where, value).text("question"))
        if question not in related:
            rule = "must stand beside another question of its split, for the assistant to offer"
            raise DataError(f"{file}: {where}: question={question!r}: {rule}")
        group = group_name("question", question)
        turn = nq_turn(question, related[question], source="natural_questions", group=group)
        return turn.example(f"userllm-nq-{file.name.split('.jsonl')[0]}-{where.removeprefix('line ')}")

    return read_rows(file, lines, example, report)


def related_questions(questions: Sequence[str]) -> dict[str, str]:
    """Returns for each question another one: one with which it shares its rarest shared word, else one by hash."""
    unique = sorted(set(questions))
    having: dict[str, list[str]] = collections.defaultdict(list)
    for question in unique:
        for word in content_words(question):
            having[word].append(question)
    found = {}
    for question in unique if len(unique) > 1 else ():
        shared = [(len(having[word]), word) for word in content_words(question) if len(having[word]) > 1]
        others = [other for other in (having[min(shared)[1]] if shared else unique) if other != question]
        found[question] = others[_number(question) % len(others)]
    return found


def _read_openings(file: Path, report: RowReport) -> list[Example]:
    def example(where: str, value: Any) -> Example:
        row = fields_of(file, where, value)
        wish = row.text("prompt")
        turn = UserTurn(
            subtask=PRISM,
            intent=f"a talk about this: {wish}",
            history="",
            source="prism openings",
            group=group_name("opening", wish),
            gold=wish,
        )
        return turn.example(f"userllm-prism-{row.text('cluster')}-{row.integer('number')}")

    return read_rows(file, _opening_rows(file, report), example, report)


def _opening_rows(file: Path, report: RowReport) -> Rows:
    for where, row in csv_rows(file, ("cluster_id", "top_texts")):
        fields = Fields(file, where, row)
        try:
            cluster, prompts = fields.text("cluster_id"), fields.texts("top_texts")
        except DataError as error:
            report.found += 1
            report.refuse(error)
            continue
        for k, prompt in enumerate(prompts):
            yield f"{where}: top_texts[{k}]", {"cluster": cluster, "number": k, "prompt": prompt}


def _read_chats(file: Path, report: RowReport) -> list[Example]:
    def example(where: str, value: Any) -> Example:
        row = fields_of(file, where, value)
        conversation, place = row.text("conversation_id"), row.integer("place")
        chat = [(_SPEAKERS[t.one_of("role", tuple(_SPEAKERS))], t.text("content")) for t in row.records("turns")]
        is_last = place == len(chat) > 0
        if not is_last and (not chat or chat[place][0] != USER):
            raise row.error("turns", "must hold at least one user turn")
        turn = UserTurn(
            subtask=PRISM,
            intent=row.text("task_description"),
            history=chat_text(chat[:place]),
            source="oasst1 stand-in",
            group=group_name("conversation", conversation),
            is_last=is_last,
            gold=END if is_last else chat[place][1],
        )
        return turn.example(f"userllm-oasst1-{conversation}-{place}")

    return read_rows(file, _user_places(json_lines(file, report)), example, report)


def _user_places(lines: Rows) -> Rows:
    """Every place of a chat where its user wrote, and its end if the assistant had the last word there."""
    for where, value in lines:
        turns = value.get("turns") if isinstance(value, Mapping) else None
        roles = [turn.get("role") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
        places = [k for k, role in enumerate(roles) if role == "user"]
        if places and roles[-1] == "assistant":
            places.append(len(roles))
        for place in places or [0]:  # a malformed chat goes on as one row, for the reader to refuse
            yield f"{where}: turn {place}", {**value, "place": place} if isinstance(value, Mapping) else value


def _has_question(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("question"), str)


def _as_question(text: str) -> str:
    return f"{text.strip().rstrip('?').rstrip()}?"


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:8], "big")


_KINDS = (
    _Kind("commonsenseqa/dev_rand_split.jsonl", "dev_rand_split", CSQA, _read_csqa),
    _Kind("commonsenseqa/train_rand_split.jsonl", "train_rand_split", CSQA, _read_csqa),
    _Kind("natural-questions/NQ-open.train.jsonl", "NQ-open.train", NQ, _read_nq),
    _Kind("natural-questions/NQ-open.dev.jsonl", "NQ-open.dev", NQ, _read_nq),
    _Kind("natural-questions/NQ-open.efficientqa.dev.1.1.jsonl", "NQ-open.efficientqa.dev", NQ, _read_nq),
    _Kind("natural-questions/NQ-open.efficientqa.test.1.1.jsonl", "NQ-open.efficientqa.test", NQ, _read_nq),
    _Kind("prism-alignment/opening_prompt_cluster_df_original.csv", "opening_prompt_cluster", PRISM, _read_openings),
    _Kind(f"../mirrorbench/mirrorbench/{STAND_IN}", STAND_IN.partition(".")[0], PRISM, _read_chats),
)
