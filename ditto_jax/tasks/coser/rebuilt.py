"""Rebuilds scenes for training from the public training sample, which shows them through the eyes of each role.

In: `sft_sharegpt.json`: chats whose system prompt casts the model as the environment, as a character, or as whoever
names the next speaker. Out: one scene for every chat of the environment (it hears all lines, without thoughts), with
profiles and motives from the chats of the same scene's characters. What no chat tells stays empty.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.errors import DataError
from ditto_jax.tasks.coser.files import json_list, reference_turns, scene_payload, speaker_name
from ditto_jax.tasks.coser.lines import ENVIRONMENT, spoken
from ditto_jax.tasks.fields import Fields
from ditto_jax.tasks.rows import LeftOut, RowReport, read_rows
from ditto_jax.types import Example

_IS_ENVIRONMENT = re.compile(r"\A.{0,20}(?:environment|world) (?:model|simulator)")
_IS_DIRECTOR = re.compile(r"\A.{0,40}predict the next speaker")
_SCENARIO = re.compile(r"^===The scenario is as follows===\s*", re.MULTILINE)
_MAIN = re.compile(r"main characters \(including (\[.*?\])\)")
_LINE = re.compile(r"^([A-Z][^:\n()\[\]]{0,60}):\s*", re.MULTILINE)
_BOOK = re.compile(r"(?:from|in) ([A-Z][\w’' ]{2,60}?)[.,]?$")
# Headings of a character's prompt come in many spellings: between signs, or a line that ends with a colon.
_HEADING = re.compile(r"^(?:=+[^=\n]+=+|\*(?!\*)[^*\n]+\*(?!\*)|#+[^\n]+|[A-Z][^*\n]{3,70}:)\s*$", re.MULTILINE)
_RULES = re.compile(r"^Your output should.*", re.MULTILINE | re.DOTALL)  # stands last, and may have no heading
_KINDS = {
    "others": re.compile(r"other characters", re.IGNORECASE),
    "motive": re.compile(r"thought|monologue", re.IGNORECASE),
    "summary": re.compile(r"plot|story arc", re.IGNORECASE),
    "scenario": re.compile(r"scenario|situation", re.IGNORECASE),
    "rules": re.compile(r"requirement|instruction", re.IGNORECASE),
    "profile": re.compile(r"profile|background|information about|knowledge", re.IGNORECASE),
}
Chat = Sequence[Mapping[str, str]]


def read_rebuilt(file: Path, report: RowReport) -> list[Example]:
    """Returns the scenes of the training sample, ids "coser-sample-<place in the file>".

    Chats of characters and of the director are counted as left out: they show scenes that are already here, or that no
    chat shows whole. Raises DataError (file, row, field, rule).
    """
    rows = [(f"[{i}]", row) for i, row in enumerate(json_list(file))]
    cast = [_Part(chat) for _, row in rows if (chat := _chat(row)) and _role(chat) == "character"]
    seen: set[str] = set()

    def example(where: str, row: Any) -> Example:
        chat = _chat(row)
        if chat is None:
            raise DataError(f"{file}: {where}: conversations: must be chats of from and value, the system prompt first")
        role = _role(chat)
        if role != "environment":
            raise LeftOut(f"a chat of a {role}")
        made = _scene(Fields(file, where, row), f"coser-sample-{where.strip('[]')}", chat, cast)
        if made.payload["scenario"] in seen:
            raise LeftOut("the scene of a chat before")
        seen.add(made.payload["scenario"])
        return made

    return read_rows(file, rows, example, report)


def _chat(row: Any) -> Chat | None:
    chat = row.get("conversations") if isinstance(row, Mapping) else None
    if not isinstance(chat, list) or not chat:
        return None
    whole = all(isinstance(m, Mapping) and all(isinstance(m.get(k), str) for k in ("from", "value")) for m in chat)
    return chat if whole and chat[0]["from"] == "system" else None


def _role(chat: Chat) -> str:
    system = chat[0]["value"]
    if _IS_ENVIRONMENT.search(system):
        return "environment"
    return "director" if _IS_DIRECTOR.search(system) else "character"


class _Part:
    """What the prompt of one character tells: who it is, and the sections of its prompt by kind."""

    def __init__(self, chat: Chat):
        self.prompt = chat[0]["value"]
        opening = self.prompt.strip().split("\n", 1)[0]
        found = _BOOK.search(opening)
        self.book = found[1] if found else ""
        lines = (m["value"] for m in chat[1:] if m["from"] == "assistant")
        names = [start[1] for text in lines if (start := _LINE.match(text.strip()))]
        self.name = collections.Counter(names).most_common(1)[0][0] if names else ""
        self.sections = _sections(self.prompt)


def _sections(prompt: str) -> dict[str, str]:
    """The first text of every kind of section. Headings inside a profile ("Relationships:") belong to it."""
    heads = [(h, kind) for h in _HEADING.finditer(prompt) if (kind := _kind(h[0]))]
    sections: dict[str, str] = {}
    ends = [*(head.start() for head, _ in heads), len(prompt)][1:]
    for (head, kind), end in zip(heads, ends, strict=False):
        text = prompt[head.end() : end].strip()
        if text:
            sections.setdefault(kind, _RULES.sub("", text).strip())
    return sections


def _kind(heading: str) -> str:
    return next((kind for kind, words in _KINDS.items() if words.search(heading)), "")


def _scene(row: Fields, example_id: str, chat: Chat, cast: Iterable[_Part]) -> Example:
    system = chat[0]["value"]
    start, main = _SCENARIO.search(system), _MAIN.search(system)
    scenario = system[start.end() :].strip() if start else ""
    if not scenario or not main:
        raise row.error("conversations", "the system prompt must name the main characters and the scenario")
    lines = _lines(row, chat)
    speaking = list(dict.fromkeys(line["character"] for line in lines))
    own = [part for part in cast if scenario in part.prompt]
    if all(name == ENVIRONMENT for name in speaking):
        raise LeftOut("a scene in which nobody speaks")
    payload = scene_payload(
        row,
        speaking,
        book=_book(own, [part for part in cast if part.name in speaking]),
        summary=next((part.sections["summary"] for part in own if "summary" in part.sections), ""),
        scenario=scenario,
        major=Fields(row.file, row.where, {"main characters": main[1]}).texts("main characters"),
        profiles={name: _told(own, name, "profile") or _told(cast, name, "profile") for name in speaking},
        motivations={name: _told(own, name, "motive") for name in speaking},
        reference=lines,
        tag="unknown",
        source="training sample",
    )
    return Example(task="coser", id=example_id, payload=payload, gold=spoken(reference_turns(payload)))


def _book(own: Iterable[_Part], same_people: Iterable[_Part]) -> str:
    """The book that the scene's own prompts name most, else the one that prompts of the same people name most."""
    for parts in (own, same_people):
        named = collections.Counter(part.book for part in parts if part.book)
        if named:
            return named.most_common(1)[0][0]
    raise LeftOut("a scene whose book no prompt names")


def _told(parts: Iterable[_Part], name: str, kind: str) -> str:
    return next((part.sections[kind] for part in parts if part.name == name and kind in part.sections), "")


def _lines(row: Fields, chat: Chat) -> tuple[dict[str, str], ...]:
    """The dialogue in order. A paragraph without a name goes on with the line before it."""
    lines: list[dict[str, str]] = []
    for message in chat[1:]:
        found = list(_LINE.finditer(message["value"]))
        ends = [*(head.start() for head in found), None][1:]
        for head, end in zip(found, ends, strict=False):
            text = message["value"][head.end() : end].strip()
            if text:
                lines.append({"character": speaker_name(row, "conversations", head[1].strip()), "message": text})
    return tuple(lines)
