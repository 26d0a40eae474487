"""`ditto-jax judge`: the samples of an evaluated run → how far its judge can be trusted on them.

checkpoint, **evaluation**, report

In: a run directory with eval/<label>/samples_<step>.jsonl, and another judge if wanted. Out: judge_quality.json and .md
in the run directory. The judge is asked again about what was said then; nothing is sampled from the policy, and no
device is needed. The figures are those of `judge_quality.py`.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ditto_jax.config import RunConfig
from ditto_jax.config_io import read_yaml
from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.evaluation.judge_quality import Choice, agreement, calibrated, pairwise, self_consistency
from ditto_jax.evaluation.judge_quality_table import quality_lines
from ditto_jax.evaluation.samples import Sample, item_digest, sample_from
from ditto_jax.evaluation.statistics import estimate_mean
from ditto_jax.judge.base import Judge
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.desk import JudgeDesk
from ditto_jax.judge.openai import OpenAIJudge
from ditto_jax.keys import SampleId, derive
from ditto_jax.rollouts.prompts import LoadedTask
from ditto_jax.runs.run_dir import RunDirectory, write_atomically
from ditto_jax.setup import judge_desk, load_tasks
from ditto_jax.strict import build
from ditto_jax.types import Conversation, Example, Outcome, Verdict

SCHEMA_VERSION = 1
FILE = "judge_quality"
_SIDES = {"A": ("first", "second"), "B": ("second", "first"), "TIE": ("tie", "tie")}  # in order, swapped


@dataclasses.dataclass(frozen=True)
class SecondJudge(JudgeConfig):
    """A judge to compare that of the run with: "none", "rules" (the task's stand-in by rule), or "openai"."""

    where: ClassVar[str] = "second"
    kinds: ClassVar[tuple[str, ...]] = ("none", "rules", "openai")

    kind: Any = "none"


@dataclasses.dataclass(frozen=True)
class JudgeCheckConfig:
    """run: directory of an evaluated run. labels: of the tasks to check; all that a judge scores, if empty.

    repeats: further verdicts of the same judge on each sample. limit: samples of each label. controls: also ask about
    samples whose score is to be expected, and pairs in both orders, where the task has such. second: another judge.
    """

    run: str = ""
    labels: tuple[str, ...] = ()
    repeats: int = 2
    limit: int = 100
    controls: bool = True
    second: SecondJudge = dataclasses.field(default_factory=SecondJudge)

    def __post_init__(self):
        if self.repeats < 0:
            raise ConfigError(f"repeats={self.repeats}: must be 0 or more; 2 works")
        if self.limit < 1:
            raise ConfigError(f"limit={self.limit}: must be at least 1")


def check_judge(config: JudgeCheckConfig) -> tuple[Path, list[dict[str, Any]]]:
    """Returns (the file written, one record a label).

    Raises ConfigError or MissingInputError for a run that cannot be checked, JudgeUnavailableError for a judge that
    cannot be asked.
    """
    folder = Path(config.run).expanduser()
    if not config.run or not (folder / "config.yaml").is_file():
        raise ConfigError(f"run={config.run!r}: no run directory (no config.yaml); for example --run runs/run")
    run = RunDirectory(folder)
    settings = build(RunConfig, read_yaml(folder / "config.yaml"), where=str(folder / "config.yaml"))
    tasks, _ = load_tasks(settings.evaluation.tasks)
    chosen = [task for task in tasks if not config.labels or task.label in config.labels]
    unknown = set(config.labels) - {task.label for task in tasks}
    if unknown or not chosen:
        raise ConfigError(f"labels={sorted(unknown)}: the run evaluates {', '.join(task.label for task in tasks)}")
    first = judge_desk(settings, chosen)
    second = _second_desk(settings, chosen, config.second)
    with asyncio.Runner() as runner:
        try:
            runner.run(first.check())
            if second is not None:
                runner.run(second.check())
            records = [runner.run(_check(config, settings, run, task, first, second)) for task in chosen]
        finally:
            runner.run(first.aclose())
            if second is not None:
                runner.run(second.aclose())
    body = {"schema_version": SCHEMA_VERSION, "labels": records}
    write_atomically(folder / f"{FILE}.json", json.dumps(body, indent=1) + "\n")
    write_atomically(folder / f"{FILE}.md", "\n".join(quality_lines(records)) + "\n")
    return folder / f"{FILE}.md", records


def _second_desk(settings: RunConfig, tasks: Sequence[LoadedTask], config: SecondJudge) -> JudgeDesk | None:
    if config.kind == "none":
        return None
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(JudgeConfig)}
    alone = [
        dataclasses.replace(task, config=dataclasses.replace(task.config, judge={})) for task in tasks if task.config
    ]
    return judge_desk(dataclasses.replace(settings, judge=JudgeConfig(**values)), alone)


def read_samples(run: RunDirectory, loaded: LoadedTask) -> list[Sample]:
    """Returns the samples of a task's newest evaluation. Raises MissingInputError if none fits the task's items."""
    files = sorted((run.evaluations / loaded.label).glob("samples_*.jsonl"))
    if not files:
        raise MissingInputError(f"{run.path}: no samples of {loaded.label}; evaluate it first")
    prompts = {prompt.example.id: prompt for prompt in loaded.prompts}
    found = []
    for number, line in enumerate(files[-1].read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            prompt = prompts.get(row["id"])
            if prompt is not None and item_digest(prompt) == row["item"]:
                found.append(sample_from(loaded, prompt.example, row))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MissingInputError(f"{files[-1]}:{number}: no sample ({error!r}); evaluate again") from None
    if not found:
        raise MissingInputError(
            f"{files[-1]}: its items are not those that {loaded.label} has now; evaluate again, or restore the data"
        )
    return found


class _Questions:
    """Asks judges about samples; every question has a number of its own, so that no cache answers for a repeat."""

    def __init__(self, seed: int, loaded: LoadedTask):
        self._seed = seed
        self._loaded = loaded

    def key(self, sample: Sample, purpose: str) -> SampleId:
        """Returns the identity of one question about a sample."""
        number = derive(0, purpose, sample.number) % 2**31
        return SampleId(self._seed, 0, f"{self._loaded.label}/{sample.example.id}", number, "draft")

    async def scores(
        self, judge: Judge, samples: Sequence[Sample], purpose: str, asked: Sequence[tuple[Example, Conversation]] = ()
    ) -> list[Verdict]:
        """Returns one verdict per sample, on the sample itself or on what stands in its place."""
        pairs = asked or [(sample.example, sample.conversation) for sample in samples]
        return await asyncio.gather(
            *(
                judge.score(self._loaded.task, example, conversation, self.key(sample, purpose))
                for sample, (example, conversation) in zip(samples, pairs, strict=True)
            )
        )


async def _check(
    config: JudgeCheckConfig,
    settings: RunConfig,
    run: RunDirectory,
    loaded: LoadedTask,
    first: JudgeDesk,
    second: JudgeDesk | None,
) -> dict[str, Any]:
    """The record of one label."""
    record: dict[str, Any] = {"label": loaded.label, "task": loaded.task.name, "judge": first.judge_of(loaded.task)}
    scored = [sample for sample in read_samples(run, loaded) if sample.verdict.score is not None]
    judged = [s for s in scored if loaded.task.rule_score(s.example, s.conversation) is None][: config.limit]
    if not judged:
        return {**record, "not_checked": "scored by rules alone: the same words always get the same score"}
    questions, judge = _Questions(settings.seed, loaded), first.scorer_of(loaded.task)
    record["samples"] = len(judged)
    repeats = [await questions.scores(judge, judged, f"repeat {number}") for number in range(config.repeats)]
    record["failed_verdicts"] = _failures(verdict for verdicts in repeats for verdict in verdicts)
    record["self_consistency"] = _consistency(judged, repeats)
    if second is not None:
        theirs = await questions.scores(second.scorer_of(loaded.task), judged, "second judge")
        pairs = [(s.verdict.score, v.score) for s, v in zip(judged, theirs, strict=True) if v.score is not None]
        both = agreement([float(a or 0.0) for a, _ in pairs], [float(b) for _, b in pairs])
        who = sorted({verdict.judge for verdict in theirs})
        record["agreement"] = {"with": who, "failed_verdicts": _failures(theirs), **both}
    if config.controls:
        record["controls"] = await _controls(questions, judge, loaded, judged)
        record["pairwise"] = await _pairwise(questions, judge, loaded, judged)
    return record


def _failures(verdicts: Iterable[Verdict]) -> dict[str, int]:
    return dict(collections.Counter(v.outcome.value for v in verdicts if v.outcome is not Outcome.OK))


def _consistency(samples: Sequence[Sample], repeats: Sequence[Sequence[Verdict]]) -> dict[str, Any]:
    """Over the score and each of its dimensions; the verdict of the evaluation counts as the first."""
    given = [[sample.verdict, *(verdicts[i] for verdicts in repeats)] for i, sample in enumerate(samples)]
    # A verdict by other prompts or another model is no repetition.
    given = [[v for v in own if v.score is not None and v.judge == own[-1].judge] for own in given]
    names = sorted({name for own in given for verdict in own for name in verdict.dimensions})
    return {
        **self_consistency([[float(v.score or 0.0) for v in own] for own in given]),
        "dimensions": {
            name: self_consistency([[v.dimensions[name] for v in own if name in v.dimensions] for own in given])
            for name in names
        },
    }


async def _controls(
    questions: _Questions, judge: Judge, loaded: LoadedTask, samples: Sequence[Sample]
) -> dict[str, Any] | None:
    """Mean scores where they are to be expected, beside that of the samples."""
    by_name: dict[str, list[tuple[Sample, Example, Conversation]]] = collections.defaultdict(list)
    for sample in samples:
        for name, (example, conversation) in loaded.task.controls(sample.example, sample.conversation).items():
            by_name[name].append((sample, example, conversation))
    if not by_name:
        return None
    found: dict[str, Any] = {"proxy_vs_human": _mean([float(s.verdict.score or 0.0) for s in samples])}
    for name, asked in by_name.items():
        verdicts = await questions.scores(
            judge, [sample for sample, _, _ in asked], f"control {name}", [(e, c) for _, e, c in asked]
        )
        scores = [float(v.score) for v in verdicts if v.score is not None]
        found[name] = {**_mean(scores), "failed_verdicts": _failures(verdicts)}
    return found


def _mean(scores: Sequence[float]) -> dict[str, Any]:
    estimate = estimate_mean([[score] for score in scores])
    if estimate is None:
        return {"value": None, "low": None, "high": None, "n": 0}
    is_bounded = estimate.n > 1
    low, high = (estimate.low, estimate.high) if is_bounded else (None, None)
    return {"value": estimate.value, "low": low, "high": high, "n": estimate.n}


async def _pairwise(
    questions: _Questions, judge: Judge, loaded: LoadedTask, samples: Sequence[Sample]
) -> dict[str, Any] | None:
    """Choices between the policy's words and a real person's, each asked in both orders."""
    asked = [loaded.task.pair_questions(sample.example, sample.conversation) for sample in samples]
    if not any(asked):
        return None
    if not isinstance(judge, OpenAIJudge):
        return {"not_asked": "needs a language model as judge"}
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for own in asked for name in own):
        pairs = [(sample, own[name]) for sample, own in zip(samples, asked, strict=True) if name in own]
        in_order, swapped = await asyncio.gather(
            asyncio.gather(*(judge.ask(p.in_order, questions.key(s, f"{name} in order")) for s, p in pairs)),
            asyncio.gather(*(judge.ask(p.swapped, questions.key(s, f"{name} swapped")) for s, p in pairs)),
        )
        choices = [
            Choice(_SIDES[a.parsed.verdict][0], _SIDES[b.parsed.verdict][1])
            for a, b in zip(in_order, swapped, strict=True)
            if a.parsed is not None and b.parsed is not None
        ]
        found[name] = {**pairwise(choices), "failed": len(pairs) - len(choices)}
    rates = [found.get(name, {}).get("win_rate") for name in ("proxy_vs_human", "human_vs_human", "proxy_vs_proxy")]
    found["calibrated_win_rate"] = None if None in rates else calibrated(*map(float, rates))
    return found
