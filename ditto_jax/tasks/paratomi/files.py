"""Reads the public ToMi files for the task `paratomi`: official or paraphrased stories, and the Percept-ToMi table.

In: a bAbI-style `*.txt` with its `*.trace`, or `Percept-ToMi.csv`, plain or gzipped, whole or any subset; or a folder
of them. Out: validated examples whose payload has story, question, cands, question_type, question_order, story_type
and set_id. It does not judge whether a label is right.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ditto_jax.errors import ConfigError, DataError, MissingInputError
from ditto_jax.tasks.data_files import bad_row, csv_rows, encodable, find_file, plain_or_gz, read_text, text_list
from ditto_jax.tasks.hitom.files import released_answer, released_lines
from ditto_jax.tasks.hitom.generator import story_digest
from ditto_jax.tasks.paratomi.candidates import same_name, story_candidates
from ditto_jax.tasks.rows import RowReport, read_rows
from ditto_jax.types import Example

_SPLIT_NAMES = {"train": "train", "validation": "val", "test": "test"}
_NUMBERED = re.compile(r"(\d+) (.*\S)")
_QUESTION_TYPE = re.compile(r"reality|memory|(?P<order>first|second)_order_[01]_(?:tom|no_tom)")
_STORY_TYPES = ("true_belief", "false_belief", "second_order_false_belief")
_COLUMNS = ("index", "qTypeRaw", "story", "question", "cands", "answer")


def read_paratomi(path: Path, split: str = "test", report: RowReport | None = None) -> list[Example]:
    """Returns the questions of the ToMi file at `path`, ids "paratomi-<file name>-<block from 0, or index column>".

    A folder is searched for the official ToMi file of `split` ("train", "validation", "test"), then for the
    paraphrased one; a file is read whatever the split. Candidates: the column `cands` of the table; for stories in
    text, all containers and places that the story names. Raises MissingInputError (absent path or trace) or DataError
    (file, line, field, rule).
    """
    if split not in _SPLIT_NAMES:
        raise ConfigError(f"split={split!r}: must be one of {', '.join(_SPLIT_NAMES)}")
    short = _SPLIT_NAMES[split]
    inside = (f"ToMi/fb_all_{short}.txt", f"fb_all_{short}.txt", f"{short}.txt")
    file = find_file(path, inside, f"the ToMi stories of the split '{split}'", generated=True)
    name = file.name.removesuffix(".gz")
    if name.endswith(".csv"):
        rows, make = csv_rows(file, _COLUMNS), _table_row
    elif name.endswith(".txt"):
        rows, make = _read_stories(file), _story_row
    else:
        raise DataError(f"{file}: must be a .txt file with its .trace, or a .csv table (plain or .gz)")
    report = RowReport() if report is None else report
    return read_rows(file, rows, lambda where, row: make(file, where, Path(name).stem, row), report)


def paratomi_example(file: Path, where: str, example_id: str, row: dict[str, Any]) -> Example:
    """Returns one validated example from story, question, answer, cands (empty: derived), question_type and story_type.

    `where` names the row in errors. Raises DataError.
    """
    for field in ("story", "question", "answer"):
        if not isinstance(row[field], str) or not row[field].strip() or not encodable(row[field]):
            raise bad_row(file, where, field, row[field], "must be text")
    story, question, gold = (row[field].strip() for field in ("story", "question", "answer"))
    cands = list(row["cands"])
    if cands and not any(same_name(cand, gold) for cand in cands):
        raise bad_row(file, where, "answer", gold, f"must be one of the candidates {', '.join(cands)}")
    if not cands:
        cands = story_candidates(story, gold)
    if not cands:
        raise bad_row(file, where, "answer", gold, "must be a container or place that the story names")
    payload = {
        "story": story,
        "question": question,
        "cands": tuple(gold if same_name(cand, gold) else cand for cand in cands),
        "question_type": row["question_type"],
        "question_order": question_order(row["question_type"], question),
        "story_type": row["story_type"],
        "set_id": story_digest(story),
    }
    return Example(task="paratomi", id=example_id, payload=payload, gold=gold)


def paratomi_released(file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
    """Returns the example of one released row. Raises DataError."""
    row = {
        "story": released_lines(info.get("story")),
        "question": info.get("question"),
        "answer": released_answer(file, where, info),
        "cands": _candidates(file, where, info.get("cands")),
        "question_type": str(info.get("qTypeRaw") or info.get("qType") or ""),
        "story_type": "",
    }
    return paratomi_example(file, where, example_id, row)


def _candidates(file: Path, where: str, cands: object) -> list[str]:
    if cands is None or (isinstance(cands, str) and not cands.strip()):
        return []
    names = text_list(cands)
    if names is None:
        raise bad_row(file, where, "cands", cands, "must be a list of texts, a Python list literal of texts, or empty")
    return names


def question_order(question_type: str, question: str) -> int:
    """Returns how many minds the question nests: 0 (reality, memory), 1 or 2; from its type, else from its wording."""
    for order, word in ((1, "first"), (2, "second")):
        if question_type.lower().startswith(word):
            return order
    if question_type.lower() in ("reality", "memory"):
        return 0
    return _order_by_wording(question) or 0


def _order_by_wording(question: str) -> int | None:
    """0, 1 or 2 if the question is worded as in the ToMi files, else None."""
    if re.search(r"\bthinks? that\b", question):
        return 2
    if re.search(r"\bwill \w+ look for\b", question):
        return 1
    return 0 if re.search(r"\breally\?|\bat the beginning\?", question) else None


@dataclasses.dataclass
class _Block:
    line: int  # of the question, from 1
    story: list[str]
    question: str
    answer: str


def _read_stories(file: Path) -> Iterator[tuple[str, tuple[Path, int, _Block, str]]]:
    stem = Path(file.name.removesuffix(".gz")).stem
    blocks = list(_blocks(file))
    trace = plain_or_gz(file.with_name(f"{stem}.trace"))
    if trace is None:
        raise MissingInputError(
            f"{file.with_name(f'{stem}.trace')}: no such file; {file.name} needs it for question types"
        )
    traces = [line.strip() for line in read_text(trace).split("\n") if line.strip()]
    if len(traces) != len(blocks):
        raise DataError(f"{trace}: {len(traces)} lines for the {len(blocks)} blocks of {file.name}: one line per block")
    for k, (block, line) in enumerate(zip(blocks, traces, strict=True)):
        yield f"line {block.line}", (trace, k, block, line)


def _story_row(file: Path, where: str, stem: str, row: tuple[Path, int, _Block, str]) -> Example:
    trace, k, block, line = row
    question_type, story_type = _types(trace, f"line {k + 1}", line, block.question)
    fields = {
        "story": "\n".join(block.story),
        "question": block.question,
        "answer": block.answer,
        "cands": (),
        "question_type": question_type,
        "story_type": story_type,
    }
    return paratomi_example(file, where, f"paratomi-{stem}-{k}", fields)


def _blocks(file: Path) -> Iterator[_Block]:
    """Blocks of numbered lines, each ending with `N question<TAB>answer<TAB>supporting fact`."""
    story: list[str] = []
    number, ended = 0, True
    for at, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {at}"
        numbered = _NUMBERED.fullmatch(line)
        if numbered is None:
            raise bad_row(
                file, where, "line", line, "must be a number, a space and text, like '3 Anna entered the hall.'"
            )
        if int(numbered[1]) == 1:
            if not ended:
                raise bad_row(file, where, "line", line, f"the block before ends without a question (line {at - 1})")
            story, number, ended = [], 0, False
        number += 1
        if int(numbered[1]) != number or ended:
            expected = "1, since the block before ended with its question" if ended else str(number)
            raise bad_row(file, where, "number", int(numbered[1]), f"must be {expected}")
        if "\t" not in numbered[2]:
            story.append(line.strip())
            continue
        parts = [part.strip() for part in numbered[2].split("\t")]
        if len(parts) != 3 or not all(parts) or not story:
            rule = "must be question<TAB>answer<TAB>1 after at least one sentence"
            raise bad_row(file, where, "question", numbered[2], rule)
        ended = True
        yield _Block(at, story, parts[0], parts[1])
    if not ended:
        raise DataError(f"{file}: the last block ends without a question")


def _types(trace: Path, where: str, line: str, question: str) -> tuple[str, str]:
    """Question type and story type of one trace line, checked against the question that it must belong to."""
    fields = [field.strip() for field in line.split(",")]
    question_type, story_type = (fields[-2], fields[-1]) if len(fields) >= 2 else ("", fields[0])
    if story_type not in _STORY_TYPES:
        raise bad_row(trace, where, "story type", story_type, f"must be one of {', '.join(_STORY_TYPES)}")
    _check_type(trace, where, "question type", question_type)
    worded = _order_by_wording(question)
    if worded is not None and worded != question_order(question_type, question):
        rule = f"the block's question is of order {worded} ({question!r}); trace and stories are out of step"
        raise bad_row(trace, where, "question type", question_type, rule)
    return question_type, story_type


def _check_type(file: Path, where: str, field: str, question_type: str) -> None:
    if not _QUESTION_TYPE.fullmatch(question_type):
        rule = "must be reality, memory or {first,second}_order_{0,1}_{tom,no_tom}"
        raise bad_row(file, where, field, question_type, rule)


def _table_row(file: Path, where: str, stem: str, row: dict[Any, Any]) -> Example:
    if None in row or None in row.values():
        raise bad_row(file, where, "row", row.get("index"), "must have as many fields as the header")
    index = row["index"].strip()
    if not index.isdigit():
        raise bad_row(file, where, "index", index, "must be a whole number")
    lists = {}
    for field in ("story", "cands"):
        lists[field] = text_list(row[field])
        if not lists[field]:
            raise bad_row(file, where, field, row[field], "must be a Python list literal of texts, like ['a', 'b']")
    _check_type(file, where, "qTypeRaw", row["qTypeRaw"])
    fields = {
        "story": "\n".join(lists["story"]),
        "question": row["question"],
        "answer": row["answer"],
        "cands": lists["cands"],
        "question_type": row["qTypeRaw"],
        "story_type": "",
    }
    return paratomi_example(file, where, f"paratomi-{stem}-{index}", fields)
