"""Two or more evaluated runs → what differs between them, item by item, and which differences are noise.

checkpoint, **evaluation**, report

In: run directories with eval/<label>/samples_<step>.jsonl. Out: for every label that two runs share, the mean
difference over the items that both have scored, its interval, and wins, ties and losses. Items count, not samples: the
samples of an item are averaged first. Items that either run could not score are left out and counted. Imports no jax.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.run_dir import RunDirectory

SCHEMA_VERSION = 1
COLUMNS = ("task", "items", "baseline", "other", "difference", "win / tie / loss", "reading")


@dataclasses.dataclass(frozen=True)
class ItemScores:
    """What one run says of one label: the mean score of each scored item, and the identities the scores hang on."""

    step: int
    scores: Mapping[str, float]
    unscored: frozenset[str]
    about: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Difference:
    """`other` minus `baseline` over the `n` items that both scored; positive where the other run is better.

    low, high: interval of the mean difference at `confidence`, by a bootstrap over items; None for fewer than two.
    p_value: two-sided sign-flip test of the mean difference; `noise` after Holm's correction over all comparisons.
    left_out: items that one of the two lacks or could not score. caveats: why the two may not be comparable.
    """

    label: str
    baseline: str
    other: str
    n: int
    baseline_mean: float
    other_mean: float
    value: float
    low: float | None
    high: float | None
    confidence: float
    p_value: float
    wins: int
    ties: int
    losses: int
    left_out: int
    caveats: tuple[str, ...]
    noise: bool = True


def read_items(name: str) -> dict[str, ItemScores]:
    """Returns label → scores by item, of the newest evaluated step of each label.

    name: a run directory, or DIRECTORY@STEP for what was measured at that step. Raises MissingInputError for a folder
    without such evaluations, ConfigError with file and line for a broken record.
    """
    folder, at, step = name.rpartition("@")
    if not at or not step.isdecimal():
        folder, step = name, ""
    found = {}
    pattern = f"*/step_{int(step):06d}.json" if step else "*/step_*.json"
    for record_path in sorted(RunDirectory(Path(folder)).evaluations.glob(pattern)):  # the newest step last: it stays
        record = json.loads(record_path.read_text(encoding="utf-8"))
        samples = record_path.with_name(record_path.name.replace("step_", "samples_")).with_suffix(".jsonl")
        found[str(record["label"])] = _read_samples(samples, record)
    if not found:
        raise MissingInputError(
            f"compare: {name} holds no evaluation; name folders that `ditto-jax eval` or `train` has written"
        )
    return found


def _read_samples(path: Path, record: Mapping[str, Any]) -> ItemScores:
    if not path.is_file():
        raise MissingInputError(f"compare: {path} is missing, so that its items cannot be paired; evaluate again")
    by_item: dict[str, list[float]] = {}
    seen = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            item, score = str(row["id"]), row["score"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: no sample record ({error!r}); evaluate again") from None
        seen.add(item)
        if score is not None:
            by_item.setdefault(item, []).append(float(score))
    about = {name: record.get(name) for name in ("task_version", "judge", "temperature", "trials", "source")}
    scores = {item: float(np.mean(values)) for item, values in by_item.items()}
    return ItemScores(int(record["step"]), scores, frozenset(seen - by_item.keys()), about)


def compare(
    runs: Mapping[str, Mapping[str, ItemScores]], confidence: float = 0.95, resamples: int = 5000
) -> list[Difference]:
    """Returns the differences of every run to the first, for each label that both have.

    runs: name → `read_items`, the baseline first. Raises ConfigError with fewer than two runs or no common label.
    """
    if len(runs) < 2:
        raise ConfigError("compare: name at least two run directories, the baseline first")
    (baseline, first), *others = runs.items()
    found = [
        _difference(label, (baseline, first[label]), (name, items[label]), confidence, resamples)
        for name, items in others
        for label in first
        if label in items and first[label].scores.keys() & items[label].scores.keys()
    ]
    if not found:
        raise ConfigError(
            f"compare: no label and item in common; {baseline} has {', '.join(first)}; "
            f"{others[0][0]} has {', '.join(others[0][1])}: evaluate both on the same tasks"
        )
    return _marked(found, 1.0 - confidence)


def _difference(
    label: str, baseline: tuple[str, ItemScores], other: tuple[str, ItemScores], confidence: float, resamples: int
) -> Difference:
    (name, a), (other_name, b) = baseline, other
    shared = sorted(a.scores.keys() & b.scores.keys())
    before = np.array([a.scores[item] for item in shared])
    after = np.array([b.scores[item] for item in shared])
    change = after - before
    everything = a.scores.keys() | b.scores.keys() | a.unscored | b.unscored
    low, high = _interval(change, confidence, resamples)
    return Difference(
        label=label,
        baseline=name,
        other=other_name,
        n=len(shared),
        baseline_mean=float(before.mean()),
        other_mean=float(after.mean()),
        value=float(change.mean()),
        low=low,
        high=high,
        confidence=confidence,
        p_value=_p_value(change, resamples),
        wins=int((change > 0).sum()),
        ties=int((change == 0).sum()),
        losses=int((change < 0).sum()),
        left_out=len(everything) - len(shared),
        caveats=tuple(f"{field}: {a.about[field]} against {b.about[field]}" for field in _unlike(a, b)),
    )


def _unlike(a: ItemScores, b: ItemScores) -> list[str]:
    return [field for field in a.about if a.about[field] != b.about[field]]


def _interval(change: np.ndarray, confidence: float, resamples: int) -> tuple[float | None, float | None]:
    """Percentile bootstrap over items: defined for constant differences too, where bias correction is not."""
    if len(change) < 2:
        return None, None
    import scipy.stats

    result = scipy.stats.bootstrap(
        (change,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _p_value(change: np.ndarray, resamples: int) -> float:
    """Two-sided: how often random signs of the items' differences give a mean at least as far from zero."""
    if not change.any():
        return 1.0
    import scipy.stats

    result = scipy.stats.permutation_test(
        (change, np.zeros_like(change)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _marked(found: Sequence[Difference], level: float) -> list[Difference]:
    """Holm's step-down: the k-th smallest of m p-values must be below level / (m - k), and all smaller ones too."""
    order = sorted(range(len(found)), key=lambda i: found[i].p_value)
    real, holds = set(), True
    for rank, index in enumerate(order):
        holds = holds and found[index].p_value <= level / (len(found) - rank)
        if holds:
            real.add(index)
    return [dataclasses.replace(one, noise=index not in real) for index, one in enumerate(found)]


def reading(difference: Difference) -> str:
    """Returns what may be said of one difference, in a few words."""
    if difference.n < 2:
        return "too few items"
    verdict = "within noise" if difference.noise else "better" if difference.value > 0 else "worse"
    return "; ".join([verdict, *(f"not the same {caveat}" for caveat in difference.caveats)])


def cells(difference: Difference) -> tuple[str, ...]:
    """Returns the texts of one line, one for each of COLUMNS."""
    around = "" if difference.low is None else f" [{difference.low:+.3f}, {difference.high:+.3f}]"
    left_out = f" ({difference.left_out} left out)" if difference.left_out else ""
    return (
        difference.label,
        f"{difference.n}{left_out}",
        f"{difference.baseline_mean:.3f}",
        f"{difference.other_mean:.3f}",
        f"{difference.value:+.3f}{around}",
        f"{difference.wins} / {difference.ties} / {difference.losses}",
        reading(difference),
    )


def as_json(found: Sequence[Difference]) -> str:
    """Returns the comparison as JSON text with its schema version."""
    body = {"schema_version": SCHEMA_VERSION, "differences": [dataclasses.asdict(one) for one in found]}
    return json.dumps(body, indent=1) + "\n"


def as_markdown(found: Sequence[Difference]) -> str:
    """Returns one table for each run that was compared with the baseline."""
    parts = []
    for other in dict.fromkeys(one.other for one in found):
        mine = [one for one in found if one.other == other]
        lines = [COLUMNS, tuple("---" for _ in COLUMNS), *map(cells, mine)]
        rows = "".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |\n" for line in lines)
        parts.append(f"{other} compared with {mine[0].baseline}, {mine[0].confidence:.0%} intervals\n\n{rows}")
    return "\n".join(parts)
