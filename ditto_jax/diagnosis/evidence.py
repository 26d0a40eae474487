"""A run directory → what its checks read: metrics rows, facts of rollouts, evaluations, configuration, status.

**records of a run** → checks → findings

Everything may be missing; a check that lacks its records says nothing. Reads what training wrote and computes only the
views that several checks share: late steps, groups of drafts, pairs of draft and refined rollout.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ditto_jax.config_io import read_yaml
from ditto_jax.diagnosis.finding import Advice, Place
from ditto_jax.errors import MissingInputError
from ditto_jax.evaluation.comparison import Pair, pair_evaluations
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.report.findings import configured_labels
from ditto_jax.report.rollout_reading import read_rollouts
from ditto_jax.runs.readings import Row, number
from ditto_jax.runs.rollout_facts import RolloutFact
from ditto_jax.runs.run_dir import RunDirectory

_MOST_EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of one run. rows: of metrics.jsonl. facts: of the rollouts of the steps that were read.

    control: a run of the same setting whose words had no content, if there is one at hand.
    """

    run: RunDirectory
    config: Mapping[str, Any]
    status: Mapping[str, Any]
    rows: Sequence[Row]
    pairs: Sequence[Pair]
    facts: Sequence[RolloutFact]
    control: Evidence | None = None

    def setting(self, name: str, default: Any = None) -> Any:
        """Returns the value of a dotted setting in config.yaml, or `default`."""
        value: Any = self.config
        for part in name.split("."):
            if not isinstance(value, Mapping) or value.get(part) is None:
                return default
            value = value[part]
        return value

    @property
    def learning_rate(self) -> float:
        """The run's optimizer.learning_rate."""
        return float(self.setting("optimizer.learning_rate", 5.0e-6))

    def other_rate(self, factor: float, why: str) -> Advice:
        """Returns the advice to multiply the learning rate."""
        return Advice("optimizer.learning_rate", f"{factor * self.learning_rate:.1e}", why)

    @property
    def drafts(self) -> list[RolloutFact]:
        return [fact for fact in self.facts if fact.role == "draft"]

    @property
    def refined(self) -> list[RolloutFact]:
        return [fact for fact in self.facts if fact.role == "refined"]

    @property
    def score_spread(self) -> float:
        """Standard deviation of all scores that were recorded: the unit in which effects on scores are measured."""
        scores = [fact.score for fact in self.facts if fact.score is not None]
        if not scores:
            spreads = series(self.rows, "reward_std")
            return sum(value for _, value in spreads) / len(spreads) if spreads else 0.0
        mean = sum(scores) / len(scores)
        return (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5


def read_evidence(path: Path, control: Path | None = None) -> Evidence:
    """Returns what a run directory holds. Raises MissingInputError if it is no folder."""
    if not path.is_dir():
        raise MissingInputError(
            f"diagnose: {path} is no run directory; name a folder that `ditto-jax train` has written"
        )
    run = RunDirectory(path)
    config = read_yaml(path / "config.yaml") if (path / "config.yaml").exists() else {}
    return Evidence(
        run=run,
        config=config,
        status=run.read_status(),
        rows=run.read_metrics(),
        pairs=pair_evaluations(read_evaluations(run), configured_labels(config)),
        facts=read_rollouts(run).facts,
        control=None if control is None else read_evidence(control),
    )


def series(rows: Iterable[Row], key: str) -> list[tuple[int, float]]:
    """Returns (step, value) wherever the metric is a finite number, in the order of steps."""
    found = [(int(row["step"]), value) for row in rows if (value := number(row, key)) is not None]
    return sorted(found)


def late(rows: Sequence[Row]) -> Sequence[Row]:
    """Returns the second half of the rows: what a run has come to, not what it began with."""
    return rows[len(rows) // 2 :]


def late_facts(facts: Sequence[RolloutFact]) -> list[RolloutFact]:
    """Returns the facts of the second half of the steps that were read."""
    steps = sorted({fact.step for fact in facts})
    return [fact for fact in facts if fact.step >= steps[len(steps) // 2]] if steps else []


def total(rows: Iterable[Row], key: str) -> int:
    """Returns the sum of a count over the rows."""
    return int(sum(number(row, key) or 0 for row in rows))


def span(steps: Iterable[int]) -> tuple[int, int] | None:
    """Returns the first and the last of the steps, or None without any."""
    known = list(steps)
    return (min(known), max(known)) if known else None


def span_of(rows: Iterable[Row]) -> tuple[int, int] | None:
    """Returns the first and last step of metrics rows."""
    return span(int(row["step"]) for row in rows)


def places(facts: Iterable[RolloutFact]) -> tuple[Place, ...]:
    """Returns where up to five of the rollouts are, the latest first, each of another prompt as far as possible."""
    by_group: dict[tuple[int, int], list[RolloutFact]] = collections.defaultdict(list)
    for fact in sorted(facts, key=lambda fact: fact.slot, reverse=True):
        by_group[fact.group].append(fact)
    firsts = [members[-1] for members in by_group.values()][:_MOST_EXAMPLES]
    return tuple(Place(*fact.slot) for fact in firsts)


def groups(drafts: Iterable[RolloutFact]) -> dict[tuple[int, int], list[RolloutFact]]:
    """Returns the drafts by group."""
    found: dict[tuple[int, int], list[RolloutFact]] = collections.defaultdict(list)
    for fact in drafts:
        found[fact.group].append(fact)
    return dict(found)
