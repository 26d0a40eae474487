"""Two or more evaluated runs → what differs between them, item by item, and which differences are noise.

checkpoint, **evaluation**, report

In: run directories with eval/<label>/samples_<step>.jsonl. Out: for every label that two runs share, the mean
difference over the items that both have scored, its interval, and wins, ties and losses; and the mean over labels.
Items count, not samples: the samples of an item are averaged first, and items that share a story are drawn together.
Items that either run could not score, or that are not the same in both, are left out and counted. Imports no jax.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.evaluation.record import SCHEMA_VERSION as RECORD_VERSION
from ditto_jax.evaluation.statistics import below_chance, clusters_of, resampled_means
from ditto_jax.runs.run_dir import RunDirectory

SCHEMA_VERSION = 2
AVERAGE = "average"  # the label of the mean over all labels that two runs share
_ABOUT = ("task_version", "judge", "scored_by", "temperature", "trials", "source", "constrained")
COLUMNS = ("task", "items", "baseline", "other", "difference", "win / tie / loss", "reading")


@dataclasses.dataclass(frozen=True)
class ItemScores:
    """What one run says of one label: the mean score of each scored item, and the identities the scores hang on.

    digests: item → digest of what was asked; groups: item → what it shares with others. Both may lack items.
    """

    step: int
    scores: Mapping[str, float]
    unscored: frozenset[str]
    about: Mapping[str, Any]
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    groups: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Difference:
    """`other` minus `baseline` over the `n` items that both scored; positive where the other run is better.

    low, high: interval of the mean difference at `confidence`, by a bootstrap over clusters of items; None for fewer
    than two. p_value: two-sided sign-flip test of the mean difference, by clusters; `noise` after Holm's correction
    over all comparisons (over all averages, for averages). left_out: items that one of the two lacks or could not
    score, or that are not the same in both (`changed` of them); unscored: how many the baseline and the other could not
    score. caveats: why the two may not be comparable. Of an average, n, wins, ties and losses count labels.
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
    changed: int = 0
    unscored: tuple[int, int] = (0, 0)
    clusters: int = 0
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
        if record.get("schema_version", 1) > RECORD_VERSION:
            raise ConfigError(
                f"{record_path}: schema_version={record['schema_version']}: this program knows up to {RECORD_VERSION}; "
                "compare with the program that wrote it"
            )
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
    digests: dict[str, str] = {}
    groups: dict[str, Sequence[str]] = {}
    seen = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            item, score = str(row["id"]), row["score"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: no sample record ({error!r}); evaluate again") from None
        seen.add(item)
        digests[item], groups[item] = str(row.get("item", "")), row.get("groups", ())
        if score is not None:
            by_item.setdefault(item, []).append(float(score))
    about = {name: record.get(name) for name in _ABOUT} | {"constrained": bool(record.get("constrained"))}
    scores = {item: float(np.mean(values)) for item, values in by_item.items()}
    return ItemScores(int(record["step"]), scores, frozenset(seen - by_item.keys()), about, digests, groups)


def compare(
    runs: Mapping[str, Mapping[str, ItemScores]], confidence: float = 0.95, resamples: int = 5000
) -> list[Difference]:
    """Returns the differences of every run to the first, for each label that both have, then those of their averages.

    runs: name → `read_items`, the baseline first. Raises ConfigError with fewer than two runs or no common label.
    """
    if len(runs) < 2:
        raise ConfigError("compare: name at least two run directories, the baseline first")
    (baseline, first), *others = runs.items()
    found = [
        _difference(label, (baseline, first[label]), (name, items[label]), confidence, resamples)
        for name, items in others
        for label in first
        if label in items and _shared(first[label], items[label])[0]
    ]
    if not found:
        raise ConfigError(
            f"compare: no label and item in common; {baseline} has {', '.join(first)}; "
            f"{others[0][0]} has {', '.join(others[0][1])}: evaluate both on the same tasks"
        )
    averages = [
        _average([one for one in found if one.other == name], (first, items), resamples)
        for name, items in others
        if sum(one.other == name for one in found) > 1
    ]
    return [*_marked(found, 1.0 - confidence), *_marked(averages, 1.0 - confidence)]


def _shared(a: ItemScores, b: ItemScores) -> tuple[list[str], int]:
    """(the items that both scored, how many items of the same name are not the same)."""
    both = sorted(a.scores.keys() & b.scores.keys())
    same = [item for item in both if a.digests.get(item, "") == b.digests.get(item, "")]
    return same, len(both) - len(same)


def _changes(a: ItemScores, b: ItemScores) -> tuple[np.ndarray, list[int]]:
    """(b minus a of each shared item, the cluster that it belongs to)."""
    shared, _ = _shared(a, b)
    change = np.array([b.scores[item] - a.scores[item] for item in shared])
    return change, clusters_of([a.groups.get(item, ()) for item in shared])


def _difference(
    label: str, baseline: tuple[str, ItemScores], other: tuple[str, ItemScores], confidence: float, resamples: int
) -> Difference:
    (name, a), (other_name, b) = baseline, other
    shared, changed = _shared(a, b)
    change, clusters = _changes(a, b)
    everything = a.scores.keys() | b.scores.keys() | a.unscored | b.unscored
    low, high = _interval(resampled_means(change, clusters, resamples), confidence) if len(set(clusters)) > 1 else _NONE
    sums = np.bincount(clusters, weights=change)
    return Difference(
        label=label,
        baseline=name,
        other=other_name,
        n=len(shared),
        baseline_mean=float(np.mean([a.scores[item] for item in shared])),
        other_mean=float(np.mean([b.scores[item] for item in shared])),
        value=float(change.mean()),
        low=low,
        high=high,
        confidence=confidence,
        p_value=_p_value(sums, resamples),
        wins=int((change > 0).sum()),
        ties=int((change == 0).sum()),
        losses=int((change < 0).sum()),
        left_out=len(everything) - len(shared),
        caveats=tuple(f"{field}: {a.about[field]} against {b.about[field]}" for field in _unlike(a, b)),
        changed=changed,
        unscored=(len(a.unscored), len(b.unscored)),
        clusters=len(sums),
    )


def _average(
    own: Sequence[Difference],
    runs: tuple[Mapping[str, ItemScores], Mapping[str, ItemScores]],
    resamples: int,
) -> Difference:
    """The unweighted mean over labels; items are drawn, and signs flipped, within each label."""
    means, flipped = [], []
    for number, one in enumerate(own):
        change, clusters = _changes(runs[0][one.label], runs[1][one.label])
        means.append(resampled_means(change, clusters, resamples, seed=number))
        sums = np.bincount(clusters, weights=change) / len(change)
        rng = np.random.default_rng(len(own) + number)
        flipped.append([sums @ (2.0 * rng.integers(0, 2, len(sums)) - 1.0) for _ in range(resamples)])
    value = math.fsum(one.value for one in own) / len(own)
    low, high = _interval(np.mean(means, axis=0), own[0].confidence) if min(o.clusters for o in own) > 1 else _NONE
    unlike = [one.label for one in own if one.caveats]
    by_chance = np.abs(np.mean(flipped, axis=0)) >= abs(value) - 1e-12
    return Difference(
        label=AVERAGE,
        baseline=own[0].baseline,
        other=own[0].other,
        n=len(own),
        baseline_mean=math.fsum(one.baseline_mean for one in own) / len(own),
        other_mean=math.fsum(one.other_mean for one in own) / len(own),
        value=value,
        low=low,
        high=high,
        confidence=own[0].confidence,
        p_value=float((by_chance.sum() + 1) / (resamples + 1)),
        wins=sum(one.value > 0 for one in own),
        ties=sum(one.value == 0 for one in own),
        losses=sum(one.value < 0 for one in own),
        left_out=0,
        caveats=(f"settings of {', '.join(unlike)}",) if unlike else (),
        clusters=sum(one.clusters for one in own),
    )


def _unlike(a: ItemScores, b: ItemScores) -> list[str]:
    return [field for field in a.about if a.about[field] != b.about[field]]


_NONE: tuple[None, None] = (None, None)


def _interval(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentiles: defined for constant differences too, where bias correction is not."""
    low, high = np.quantile(means, ((1.0 - confidence) / 2, (1.0 + confidence) / 2))
    return float(low), float(high)


def _p_value(sums: np.ndarray, resamples: int) -> float:
    """Two-sided: how often random signs of the clusters' differences give a sum at least as far from zero."""
    if not sums.any():
        return 1.0
    import scipy.stats

    result = scipy.stats.permutation_test(
        (sums, np.zeros_like(sums)),
        lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _marked(found: Sequence[Difference], level: float) -> list[Difference]:
    """Says of each whether it is noise, corrected for how many there are."""
    real = below_chance([one.p_value for one in found], level)
    return [dataclasses.replace(one, noise=not is_real) for one, is_real in zip(found, real, strict=True)]


def reading(difference: Difference) -> str:
    """Returns what may be said of one difference, in a few words."""
    if difference.low is None:
        return "too few items"
    verdict = "within noise" if difference.noise else "better" if difference.value > 0 else "worse"
    parts = [verdict, *(f"not the same {caveat}" for caveat in difference.caveats)]
    if difference.changed:
        parts.append(f"{difference.changed} items of the same name ask something else")
    if difference.unscored[0] != difference.unscored[1]:
        parts.append(f"without a score: {difference.unscored[0]} there, {difference.unscored[1]} here")
    return "; ".join(parts)


def cells(difference: Difference) -> tuple[str, ...]:
    """Returns the texts of one line, one for each of COLUMNS."""
    around = "" if difference.low is None else f" [{difference.low:+.3f}, {difference.high:+.3f}]"
    left_out = f" ({difference.left_out} left out)" if difference.left_out else ""
    unit = " tasks" if difference.label == AVERAGE else ""
    return (
        difference.label,
        f"{difference.n}{unit}{left_out}",
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
