"""One evaluated sample ↔ one line of samples_<step>.jsonl: what was asked, said and scored, enough to score it again.

checkpoint, **evaluation**, report

In: judged rollouts. Out: lines that are written as verdicts arrive, so that an evaluation that was killed goes on where
it stopped. A kept line counts only if nothing has changed that decided it (`key`). Computes no mean. Imports no jax.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ditto_jax.errors import RunDirectoryError
from ditto_jax.evaluation.simulator_faults import simulator_faults
from ditto_jax.rollouts.prompts import LoadedTask, Prompt
from ditto_jax.runs.run_dir import write_atomically
from ditto_jax.tasks.base import Task
from ditto_jax.types import Conversation, Example, Message, Outcome, Rollout, RolloutRole, Turn, Verdict

# Outcomes that say nothing about the reply: a continued evaluation asks again.
_ASKED_AGAIN = frozenset({Outcome.TIMED_OUT, Outcome.UNAVAILABLE, Outcome.OVER_BUDGET})


@dataclasses.dataclass(frozen=True)
class Sample:
    """One judged sample of an item. tokens: sampled by the policy; None where an endpoint does not tell.

    item: digest of what was asked and the reference, equal in two runs iff they measured the same item. key: digest of
    all that decided the sample. groups: what the item shares with others (story, conversation, book).
    """

    example: Example
    number: int
    item: str
    key: str
    conversation: Conversation
    verdict: Verdict
    partners: Mapping[str, str]
    tokens: int | None
    truncated: bool
    labels: Mapping[str, str]
    groups: tuple[str, ...]
    faults: tuple[str, ...]

    def as_draft(self, prompt_index: int) -> Rollout:
        """Returns the sample as a draft rollout without tokens, for whoever asks for words about it."""
        return Rollout(
            self.example,
            RolloutRole.DRAFT,
            prompt_index,
            self.number,
            {},
            self.conversation,
            self.verdict,
            partners=self.partners,
        )

    def as_row(self) -> dict[str, Any]:
        """Returns the sample as plain values; `sample_from` reads them back."""
        verdict = self.verdict
        return {
            "id": self.example.id,
            "sample": self.number,
            "item": self.item,
            "key": self.key,
            "prompt": [dataclasses.asdict(m) for m in self.conversation.messages[:-1]],
            "reply": self.conversation.reply,
            "gold": self.example.gold,
            "turns": [dataclasses.asdict(turn) for turn in self.conversation.turns],
            "facts": dict(self.conversation.facts),
            "partners": dict(self.partners),
            "outcome": verdict.outcome.value,
            "score": verdict.score,
            "dimensions": dict(verdict.dimensions),
            "critique": verdict.critique,
            "detail": verdict.detail,
            "judge": verdict.judge,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "labels": dict(self.labels),
            "groups": list(self.groups),
            "faults": list(self.faults),
        }


def sample_of(loaded: LoadedTask, rollout: Rollout, item: str, key: str) -> Sample:
    """Returns a judged rollout of a task as a sample."""
    task, example, conversation = loaded.task, rollout.example, rollout.conversation
    transcripts = rollout.transcripts.values()
    return Sample(
        example,
        rollout.sample_index,
        item,
        key,
        conversation,
        rollout.verdict,
        rollout.partners,
        sum(int(t.loss_mask.sum()) for t in transcripts) if transcripts else None,
        rollout.truncated,
        task.breakdown(example),
        tuple(sorted(task.groups(example))),
        faults_of(task, example, conversation),
    )


def faults_of(task: Task[Any], example: Example, conversation: Conversation) -> tuple[str, ...]:
    """Returns the faults of an episode in which the policy speaks as somebody; none for answers about somebody."""
    if not task.in_character or not conversation.messages:  # without messages it was abandoned before anything was said
        return ()
    ending = task.ending(example, conversation)
    return tuple(sorted(simulator_faults(conversation, ending, task.simulates_user)))


def sample_from(loaded: LoadedTask, example: Example, row: Mapping[str, Any]) -> Sample:
    """Returns the sample of a line. Raises KeyError, TypeError or ValueError if the line is none."""
    messages = tuple(Message(m["role"], m["content"]) for m in row["prompt"])
    if messages:
        messages = (*messages, Message("assistant", row["reply"]))
    turns = tuple(Turn(t["speaker"], t["text"], t["author"]) for t in row["turns"])
    conversation = Conversation(messages, row["reply"], turns, row["facts"])
    verdict = Verdict(
        Outcome(row["outcome"]), row["score"], row["dimensions"], row["critique"], row["judge"], row["detail"]
    )
    return Sample(
        example,
        int(row["sample"]),
        row["item"],
        row["key"],
        conversation,
        verdict,
        row["partners"],
        row["tokens"],
        bool(row["truncated"]),
        loaded.task.breakdown(example),
        tuple(sorted(loaded.task.groups(example))),
        faults_of(loaded.task, example, conversation),
    )


def item_digest(prompt: Prompt) -> str:
    """Returns the identity of an item: its task, what every role is asked first, and the reference."""
    task, example = prompt.task, prompt.example
    openings = {
        role: [[message.role, message.content] for message in opening]
        for role, opening in task.openings(example).items()
    }
    return digest([task.name, task.version, openings, example.gold])


def digest(value: Any) -> str:
    """Returns 16 hexadecimal digits that depend on plain values alone."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


class SampleFile:
    """The lines of one task at one step, appended as they come. Nothing is kept of a file unless `keep`."""

    def __init__(self, path: Path, keep: bool):
        self.path = path
        self._kept = _good_rows(path) if keep else {}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lines_of(self._kept.values()))  # a torn last line would swallow the next one

    def kept(self, loaded: LoadedTask, example: Example, number: int, key: str) -> Sample | None:
        """Returns the kept sample of an item, or None if there is none that can stand."""
        row = self._kept.get((example.id, number))
        if row is None or row.get("key") != key:
            return None
        try:
            sample = sample_from(loaded, example, row)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return None if sample.verdict.outcome in _ASKED_AGAIN else sample

    def append(self, sample: Sample) -> None:
        """Adds a line. Raises RunDirectoryError if it cannot be written."""
        try:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(lines_of([sample.as_row()]))
        except OSError as error:
            raise RunDirectoryError(
                f"cannot write {self.path}: {error.strerror or error}; free space or choose another output_dir"
            ) from error


def lines_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def _good_rows(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(item, sample) → its last line; lines that were torn or are of no sample are left out."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
            found[(str(row["id"]), int(row["sample"]))] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found
