"""Scored questions → figures over whole sets: every question about one piece of information right, or not.

In: scored conversations of the task `fantom`, several samples of a question allowed. Out: the benchmark's ALL scores by
topic and over all topics, by whether somebody missed the information, and weighted F1 of the yes-or-no questions.
Sets of which questions are known to be missing from the evaluation are not counted.
"""

from __future__ import annotations

import collections
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from ditto_jax.tasks.base import Scored
from ditto_jax.tasks.fantom.rows import TOPICS
from ditto_jax.types import Conversation

_ALL = frozenset(
    {("belief", "choice"), *((topic, form) for topic in TOPICS[1:] for form in ("list", "binary"))}
)  # ALL; with open belief questions too it is ALL*
_OPEN = ("belief", "open")
Polarity = Callable[[Conversation], bool | None]


def set_metrics(scored: Iterable[Scored], polarity: Polarity) -> dict[str, float]:
    """Returns `<accessibility>_set_<what>` in [0, 1], and how many sets were counted (`sets`, `sets_complete`).

    polarity: what a reply to a yes-or-no question says; None for neither. `set_all` is ALL, over the five kinds of
    question of the suite; `set_all_star_token_f1` adds open belief questions, as ALL* does, with token F1 in place of
    embeddings.
    """
    scenarios: dict[str, list[Scored]] = collections.defaultdict(list)
    for one in scored:
        if one.example.payload["topic"] in TOPICS:
            scenarios[str(one.example.payload["accessibility"])].append(one)
    metrics: dict[str, float] = {}
    for name, members in sorted(scenarios.items()):
        found = {**_wholes(_sets(members)), **_binary_f1(members, polarity)}
        metrics |= {f"{name}_{key}": value for key, value in found.items()}
    return metrics


def _sets(scored: Sequence[Scored]) -> list[list[Scored]]:
    """The questions of each set, once for every sample: the n-th sample of each question belongs to the n-th trial."""
    seen: collections.Counter[str] = collections.Counter()
    sets: dict[tuple[str, int], list[Scored]] = collections.defaultdict(list)
    for one in scored:
        sets[str(one.example.payload["set_id"]), seen[one.example.id]].append(one)
        seen[one.example.id] += 1
    return list(sets.values())


def _wholes(sets: Sequence[Sequence[Scored]]) -> dict[str, float]:
    whole = [members for members in sets if len(members) >= int(members[0].example.payload["set_size"])]
    complete = [members for members in whole if {_kind(one) for one in members} >= _ALL]
    with_open = [members for members in complete if _OPEN in {_kind(one) for one in members}]
    metrics = {f"set_{topic}": _share_right(whole, lambda kind, topic=topic: kind[0] == topic) for topic in TOPICS}
    metrics["set_all"] = _share_right(complete, lambda kind: kind != _OPEN)
    metrics["set_all_star_token_f1"] = _share_right(with_open, lambda kind: True)
    known = {name: value for name, value in metrics.items() if value is not None}
    return {**known, "sets": float(len(whole)), "sets_complete": float(len(complete))}


def _share_right(sets: Sequence[Sequence[Scored]], wanted: Callable[[tuple[str, str]], bool]) -> float | None:
    chosen = [[one for one in members if wanted(_kind(one))] for members in sets]
    shares = [float(all(one.verdict.score == 1.0 for one in members)) for members in chosen if members]
    return statistics.fmean(shares) if shares else None


def _kind(one: Scored) -> tuple[str, str]:
    return str(one.example.payload["topic"]), str(one.example.payload["form"])


def _binary_f1(scored: Sequence[Scored], polarity: Polarity) -> dict[str, float]:
    pairs: Mapping[str, list[tuple[bool, bool | None]]] = collections.defaultdict(list)
    for one in scored:
        if one.example.payload["form"] == "binary":
            pairs[str(one.example.payload["topic"])].append((one.example.gold == "yes", polarity(one.conversation)))
    return {f"{topic}_binary_weighted_f1": weighted_f1(found) for topic, found in sorted(pairs.items())}


def weighted_f1(pairs: Sequence[tuple[bool, bool | None]]) -> float:
    """Returns the F1 of both classes, weighted by how often each is the gold of (gold, predicted); None predicts
    neither.
    """
    total = 0.0
    for label in (True, False):
        support = sum(gold is label for gold, _ in pairs)
        predicted = sum(answer is label for _, answer in pairs)
        hits = sum(gold is label and answer is label for gold, answer in pairs)
        total += support * 2.0 * hits / max(1, support + predicted)
    return total / len(pairs)
