"""Reads public files of the task `fantom`: belief questions with their gold as CSV, and the authors' own JSON.

In: the folder of belief files (`AutoToM/`, with `PercepToM/flattened_fantom.csv` for the numbers of question sets), one
of its files, or `fantom_v1.json`, plain or gzipped. Out: examples of the split "test", the only one: FANToM is for
evaluation. Options stand in an order by hash, since the belief files always list the right one first.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.data_files import csv_rows, find_file, plain_or_gz, read_json
from ditto_jax.tasks.fantom.rows import TOPICS, fantom_row, kind_of, with_options
from ditto_jax.tasks.fields import Fields
from ditto_jax.tasks.rows import LeftOut, RowReport, read_rows
from ditto_jax.types import Example

_BELIEF_FILE = re.compile(
    r"FANToM_tom:belief:(?P<access>(?:in)?accessible)_(?P<length>short|full)_context_(?P<order>first|second)-order\.csv"
)
_FLAT = "PercepToM/flattened_fantom.csv"
_COMPLETE = "fantom_v1.json"
_CHOICE = ":multiple-choice"
# Fields of a question set in the authors' file, and what a question there is about.
_MANY = ("beliefQAs", "answerabilityQAs_binary", "infoAccessibilityQAs_binary")
_SINGLE = ("answerabilityQA_list", "infoAccessibilityQA_list")


class FantomFiles:
    """The public files as a task's options want them: which chat, and which questions beyond those of the suite."""

    def __init__(self, report: RowReport, length: str = "short", open_belief: bool = False, facts: bool = False):
        self._report, self._length, self._open, self._facts = report, length, open_belief, facts

    def read(self, path: Path, split: str) -> list[Example]:
        """Returns all examples at `path`. Raises MissingInputError (path or split) or DataError (file, row, field)."""
        if split != "test":
            raise MissingInputError(
                f"{path}: the public FANToM files are for evaluation alone; set source.split to test"
            )
        complete = plain_or_gz(path / _COMPLETE) if path.is_dir() else path if ".json" in path.name else None
        if complete is not None:
            file = find_file(complete, (), f"FANToM's {_COMPLETE}", generated=True)
            rows = self._questions(file)
            return _counted(read_rows(file, rows, lambda where, row: self._made(file, where, row), self._report))
        examples: list[Example] = []
        files = _belief_files(path, self._length)
        sets = self._set_numbers(path, files[0])
        for file in files:
            rows = self._beliefs(file, sets)
            examples += read_rows(file, rows, lambda where, row, file=file: self._made(file, where, row), self._report)
        return _counted(examples)

    def _made(self, file: Path, where: str, info: Mapping[str, Any]) -> Example:
        if self._length == "short" and info.get("correct_answer") == "no:long":
            raise LeftOut("person who is only in the full chat")  # as the authors' own evaluation does
        return fantom_row(file, where, str(info["id"]), info, self._length)

    def _refuse(self, error: DataError) -> None:
        self._report.found += 1
        self._report.refuse(error)

    def _set_numbers(self, path: Path, near: Path) -> dict[str, str]:
        """Belief question → number of its set, from the flattened file; empty without it.

        The other questions there have no gold that is public, which the report says.
        """
        roots = (path, path.parent, near.parent.parent)
        file = next((found for root in roots if (found := plain_or_gz(root / _FLAT)) is not None), None)
        if file is None:
            return {}
        sets: dict[str, str] = {}
        for where, row in csv_rows(file, ("question", "question_type", "set_id")):
            fields = Fields(file, where, row)
            try:
                kind, set_id = kind_of(fields.text("question_type")), fields.text("set_id")
                if kind is None:
                    raise fields.error("question_type", "must be a question type of FANToM")
                if kind[0] != "belief":
                    self._report.found += 1
                    self._report.left_out[f"{kind[0]} question without a public answer"] += 1
                elif kind[1] == "open":
                    sets[fields.text("question")] = set_id
            except DataError as error:
                self._refuse(error)
        return sets

    def _beliefs(self, file: Path, sets: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
        """Rows of one belief file in the released schema, each also as an open question if those are wanted."""
        about = _BELIEF_FILE.match(file.name)
        if about is None:
            raise DataError(f"{file}: its name must say accessibility, length of context and order, as AutoToM's do")
        for where, row in csv_rows(file, ("context", "question", "answer_choices", "gt_answer")):
            fields = Fields(file, where, row)
            try:
                question, gold = fields.text("question"), fields.text("gt_answer")
                options = fields.texts("answer_choices", count=2)
                if gold not in options:
                    raise fields.error("gt_answer", "must be one of answer_choices")
                context = fields.text("context")
            except DataError as error:
                self._refuse(error)
                continue
            belief = {
                "question": question,
                "correct_answer": gold,
                "wrong_answer": options[1 - options.index(gold)],
                "question_type": f"tom:belief:{about['access']}",
                "missed_info_accessibility": about["access"],
                "tom_type": f"{about['order']}-order",
                "context": context,
                "full_context": context,
                "set_id": sets.get(question),
                "source": "AutoToM",
            }
            yield from self._belief(Fields(file, where, belief))

    def _questions(self, file: Path) -> Iterator[tuple[str, Any]]:
        """Questions of the authors' file in the released schema, set by set."""
        sets = read_json(file)
        if not isinstance(sets, list):
            raise DataError(f"{file}: must be a JSON list of question sets")
        for i, row in enumerate(sets):
            try:
                if not isinstance(row, Mapping):
                    raise DataError(f"{file}: [{i}]: must be a JSON object")
                questions = list(self._set(Fields(file, f"[{i}]", row)))
            except DataError as error:
                self._refuse(error)
                continue
            yield from questions

    def _set(self, row: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
        fact = row.part("factQA")
        fact_question, fact_answer = fact.text("question"), fact.text("correct_answer")
        shared = {
            "context": row.text("short_context"),
            "full_context": row.text("full_context"),
            "set_id": row.text("set_id"),
            "fact_question": fact_question,
            "fact_answer": fact_answer,
            "source": _COMPLETE,
        }
        if self._facts:
            question = {"question": fact_question, "question_type": "fact", "correct_answer": fact_answer}
            yield _named(fact.where, {**shared, **question})
        parts = [part for field in _MANY for part in row.records(field)] + [row.part(field) for field in _SINGLE]
        missed = any(_tells_of_ignorance(part) for part in parts)
        for part in parts:
            info = {**shared, **part.row, "source": _COMPLETE}
            kind = kind_of(part.text("question_type"))
            if kind == ("belief", "open"):
                yield from self._belief(Fields(row.file, part.where, info))
                continue
            if self._length == "full" and missed:  # somebody of the whole chat, whoever is in the short one
                info["missed_info_accessibility"] = "inaccessible"
            about = f"The information: {fact_question} {fact_answer}"
            if kind is not None and kind[0] == "answerability":
                about = f"What there is to answer: {fact_question}"
            yield _named(part.where, {**info, "complete_question": f"{about}\n{part.text('question')}"})

    def _belief(self, row: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
        """A belief as a question with two options, and as an open one if those are wanted."""
        info = dict(row.row)
        if self._open:
            yield _named(row.where, info)
        question, gold, wrong = row.text("question"), row.text("correct_answer"), row.text("wrong_answer")
        options = tuple(sorted((gold, wrong), key=lambda text: _digest(question, text)))
        choice = {
            "question_type": row.text("question_type") + _CHOICE,
            "complete_question": with_options(question, options),
            "correct_answer": str(options.index(gold)),
        }
        yield _named(row.where, {**info, **choice})


def _tells_of_ignorance(part: Fields) -> bool:
    """Whether a question on several people has somebody in its gold who does not know."""
    question_type = part.text("question_type")
    if question_type.endswith(":list"):
        return bool(part.texts("wrong_answer", default=()))
    return question_type.endswith(":binary") and part.text("correct_answer").startswith("no")


def _named(where: str, info: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A row and its place, with an id made of set, type and question."""
    kind = kind_of(str(info["question_type"])) or ("unknown", "")
    of = info.get("set_id") or _digest(str(info.get("context")))[:8]
    name = "-".join(("fantom", str(of), *dict.fromkeys(kind), _digest(str(info.get("question")))[:8]))
    return where, {**info, "id": name}


def _counted(examples: Sequence[Example]) -> list[Example]:
    """The examples, each with the number of questions on minds that its set has."""
    sizes = collections.Counter(str(e.payload["set_id"]) for e in examples if e.payload["topic"] in TOPICS)
    return [
        dataclasses.replace(e, payload={**e.payload, "set_size": sizes[str(e.payload["set_id"])]}) for e in examples
    ]


def _digest(*texts: str) -> str:
    return hashlib.sha256("|".join(texts).encode(errors="replace")).hexdigest()


def _belief_files(path: Path, length: str) -> Sequence[Path]:
    if not path.is_dir():
        return [find_file(path, (), "a FANToM belief file, its folder, or fantom_v1.json", generated=True)]
    folder = path / "AutoToM" if (path / "AutoToM").is_dir() else path
    found = [f for f in sorted(folder.iterdir()) if (about := _BELIEF_FILE.match(f.name)) and about["length"] == length]
    if not found:
        raise MissingInputError(
            f"{path}: the folder holds neither {_COMPLETE} nor a belief file with the {length} context "
            f"(looked for AutoToM/FANToM_tom:belief:…_{length}_context_….csv[.gz])"
        )
    return found
