"""How much of a slow judge's latency is hidden: whole DITTO steps against a loopback server, with and without overlap.

A step samples drafts of ragged lengths, has each graded and then written about, samples a refined rollout with the
words, has that graded, and makes one update. The server (benchmarks/slow_judge.py) answers in `--places` places; its
latencies are log-normal with a deviation of 0.6 of their mean (5 ± 3 s, scaled to the machine). The device floor of a
round is its fastest rollouts with a judge that answers at once; the judge floor is the time that the judge's places
were taken, over their number; `--floors` sweeps the second over the first, the knee being 1. Efficiency is the larger
floor over the time of the rollouts, from the prompts to the last verdict; that of whole steps counts the update with
the device, during which no judge can work for a step on policy. All modes do the same work: rounds replay steps 2 and 3
and alternate between "streaming", "barrier" (the same call of the sampler, nothing refined before all drafts are
judged), "off" (two calls) and "behind" (streaming with `rollout.steps_behind: 1`, whose whole steps alone mean
something). Seconds are of one step. Writes judge_overlap.json, judge_overlap.md and judge_overlap.svg.

    python -m benchmarks.judge_overlap --output benchmark_results
    python -m benchmarks.judge_overlap --size tiny --prompts 2 --group 2 --new 8 --rounds 1 --floors 1    # a trial
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from benchmarks.figures import machine, spread, text_of, versions, write_results
from benchmarks.paired import ROOT, rotation
from benchmarks.slow_judge import GRADES
from benchmarks.word_task import WordOptions, WordTask, words_of
from benchmarks.workloads import SIZES, export, parameters
from ditto_jax.tasks.base import JudgeRequest, Source
from ditto_jax.types import Conversation, Example, Message, Outcome, Verdict
from launch.environment import prepare_allocator, set_defaults

Mode = Literal["streaming", "barrier", "off", "behind"]
ON_POLICY: tuple[Mode, ...] = ("streaming", "barrier", "off")
MODES: tuple[Mode, ...] = (*ON_POLICY, "behind")
_TIMED = 2  # steps, after the first: one step behind, that is when the machine is in its stride
_DEVIATION = 0.6
_WORDS = 12
_STOP = "t40"  # ends a reply of random words after 38 tokens on average, with a vocabulary of 4,096

Round = dict[str, Any]


class Grade(pydantic.BaseModel):
    """What the judge answers when asked for a score."""

    grade: int


class JudgedWords(WordTask):
    """The same rows of words, scored by a judge."""

    name = "judged_words"

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:  # type: ignore[override]
        return None

    def score_requests(self, example: Example, conversation: Conversation) -> Mapping[str, JudgeRequest]:
        question = f"Grade this: {example.payload['words']}\n{conversation.reply}"
        return {"grade": JudgeRequest((Message("user", question),), Grade, self.version)}

    def judged_score(
        self, example: Example, conversation: Conversation, replies: Mapping[str, pydantic.BaseModel]
    ) -> Verdict:
        grade = replies["grade"]
        assert isinstance(grade, Grade)
        return Verdict(Outcome.OK, grade.grade / GRADES)

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        asked = super().feedback_request(example, conversation, verdict)
        return dataclasses.replace(asked, messages=(*asked.messages, Message("user", conversation.reply)))


class Judge:
    """The server, in a process of its own."""

    def __init__(self, port: int):
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._port = port

    def settle(self, mean_s: float) -> dict[str, Any]:
        """Returns what was done since the last call; latencies have this mean from now on."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/latency?mean={mean_s!r}") as reply:
            return json.load(reply)


@contextlib.contextmanager
def judge_process(places: int, words: str) -> Iterator[Judge]:
    """Yields a running server, which ends with the block."""
    command = [sys.executable, "-m", "benchmarks.slow_judge", str(places), str(_DEVIATION), words]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield Judge(int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(timeout=10)


class Steps:
    """The same steps as often as wanted, by a trainer of one mode."""

    def __init__(self, options: argparse.Namespace, folder: Path, judge: Judge, mode: Mode):
        from ditto_jax.config import RolloutConfig, RunConfig, TrainConfig
        from ditto_jax.judge.config import JudgeConfig
        from ditto_jax.objective import ObjectiveConfig
        from ditto_jax.rollouts.prompts import LoadedTask, PromptStream
        from ditto_jax.sampling.slot_shapes import SamplerShapes
        from ditto_jax.setup import assemble
        from ditto_jax.trainer import Trainer
        from ditto_jax.update.state import OptimizerConfig

        prompt, group, new = options.prompt, options.group, options.new
        asked: dict[str, Any] = {"kind": "openai", "model": "slow", "base_url": judge.base_url, "cache": "off"}
        config = RunConfig(
            model_name_or_path=str(folder),
            rollout=RolloutConfig(
                options.prompts,
                group,
                new,
                stop_strings=(_STOP,),
                overlap="streaming" if mode == "behind" else mode,
                max_feedback_length=_WORDS + 4,
                steps_behind=1 if mode == "behind" else 0,
            ),
            sampler=SamplerShapes(
                prefix=(prompt,), tail=(1, _WORDS + 4), max_new_tokens=new, max_rows=options.rows, chunk=options.chunk
            ),
            judge=JudgeConfig(**asked, max_concurrent=options.places, timeout_s=600.0),
            objective=ObjectiveConfig(name="ditto", truncated="keep", mismatch="token_tis"),
            optimizer=OptimizerConfig(learning_rate=1e-9),
            train=TrainConfig(max_steps=1 + _TIMED, micro_batch=1, prefix=(prompt,), suffix=(new + _WORDS + 8,)),
        )
        task = JudgedWords(WordOptions(SIZES[options.size].config.vocab_size, prompt))
        examples = task.load(Source(limit=options.prompts))
        stream = PromptStream([LoadedTask("words", 1.0, task, examples)], config.seed)
        self._judge, self._trainer = judge, Trainer(config, assemble(config), stream)
        self._runner = asyncio.Runner()

    def run(self, mean_s: float) -> Round:
        """Returns the seconds of a step with latencies of this mean, its time split, and what the judge did."""
        import jax

        from benchmarks.paired import timed
        from ditto_jax.runs.metrics import Stopwatch

        trainer, watch = self._trainer, Stopwatch()
        trainer.done_steps = 0 if trainer.config.rollout.steps_behind else 1
        trainer.position = trainer.done_steps * trainer.config.rollout.prompts_per_step
        self._judge.settle(mean_s)
        if not trainer.done_steps:
            self._runner.run(trainer.step(Stopwatch()))  # the next one is on its way at its end

        def work() -> list[dict[str, Any]]:
            rows = [self._runner.run(trainer.step(watch))[0] for _ in range(_TIMED)]
            jax.block_until_ready(trainer.state)
            return rows

        spent, rows = timed(work)
        spent = {name: value / _TIMED for name, value in spent.items()}
        split = {name: seconds / _TIMED for name, seconds in watch.split().items() if name != "time/step_s"}
        rollouts_s = sum(split.get(f"time/{phase}_s", 0.0) for phase in ("draft", "refine", "rollout"))
        names = ("completions/sampled_tokens", "reward", "feedback/revised_reward")
        learned = [{name: row[name] for name in names} for row in rows]
        idle = [row["judge/unhidden_latency_s"] for row in rows if "judge/unhidden_latency_s" in row]
        judged = {name: value / _TIMED for name, value in self._judge.settle(0.0).items()}
        told = {"unhidden_s": sum(idle) / _TIMED} if idle else {}
        return {**spent, "rollouts_s": rollouts_s, **judged, **told, "split": split, "learned": learned}

    def close(self) -> None:
        self._runner.run(self._trainer.parts.aclose())
        self._runner.close()


def play(steps: Mapping[str, Steps], floors: Sequence[float], places: int, rounds: int) -> list[dict[str, Any]]:
    """Returns for each round what every mode did, with a judge that answers at once and at each ratio of floors."""
    for mode in steps:
        steps[mode].run(0.0)  # compiles
    played = []
    for number in range(rounds):
        order = rotation(list(steps), number)
        at_once = {mode: steps[mode].run(0.0) for mode in order}
        device_s = min(at_once[mode]["rollouts_s"] for mode in ON_POLICY)
        calls = at_once["streaming"]["calls"]
        points = []
        for ratio in floors:
            mean_s = ratio * device_s * places / calls
            modes = {mode: steps[mode].run(mean_s) for mode in order}
            points.append({"ratio": ratio, "mean_latency_s": mean_s, "modes": modes})
            told = ", ".join(
                f"{mode} {step['rollouts_s']:.2f} of {step['seconds']:.2f} s" for mode, step in modes.items()
            )
            print(f"  round {number + 1} of {rounds}, floors {ratio:g}: rollouts {told}", flush=True)
        played.append({"device_floor_s": device_s, "at_once": at_once, "points": points})
    return played


def figures(played: Sequence[Mapping[str, Any]], places: int) -> dict[str, Any]:
    """Returns by point of the sweep: floors, seconds and efficiency of every mode, and how much faster streaming is."""
    _require_same_work(played)
    points = [_point(played, number, places) for number in range(len(played[0]["points"]))]
    at_once = {mode: spread([one["at_once"][mode]["rollouts_s"] for one in played]) for mode in ON_POLICY}
    return {"at_once_s": at_once, "calls": played[0]["at_once"]["streaming"]["calls"], "points": points}


def _point(played: Sequence[Mapping[str, Any]], number: int, places: int) -> dict[str, Any]:
    points = [one["points"][number] for one in played]
    judged = [statistics.fmean(point["modes"][mode]["busy_s"] for mode in ON_POLICY) / places for point in points]
    device = [one["device_floor_s"] for one in played]
    whole = [min(step["seconds"] for step in one["at_once"].values()) for one in played]
    rollouts = {mode: [point["modes"][mode]["rollouts_s"] for point in points] for mode in ON_POLICY}
    steps = {mode: [point["modes"][mode]["seconds"] for point in points] for mode in MODES}
    streamed = rollouts["streaming"]
    return {
        "ratio": points[0]["ratio"],
        "mean_latency_s": spread([point["mean_latency_s"] for point in points]),
        "device_floor_s": spread(device),
        "judge_floor_s": spread(judged),
        "rollouts_s": {mode: spread(taken) for mode, taken in rollouts.items()},
        "steps_s": {mode: spread(taken) for mode, taken in steps.items()},
        "efficiency": {mode: _over(map(max, device, judged), taken) for mode, taken in rollouts.items()},
        "efficiency_of_steps": {mode: _over(map(max, whole, judged), taken) for mode, taken in steps.items()},
        "streaming_is_faster_than": {mode: _over(rollouts[mode], streamed) for mode in ON_POLICY[1:]},
        "behind_is_faster_than": {mode: _over(steps[mode], steps["behind"]) for mode in ON_POLICY},
        "unhidden_s": spread([point["modes"]["streaming"]["unhidden_s"] for point in points]),
    }


def _over(values: Iterable[float], others: Sequence[float]) -> dict[str, Any]:
    """Returns the spread of the ratios within rounds."""
    return spread([value / other for value, other in zip(values, others, strict=True)])


def _require_same_work(played: Sequence[Mapping[str, Any]]) -> None:
    """Exits if a streamed step learned anything else than the one without overlap."""
    steps = [modes for one in played for modes in (one["at_once"], *(point["modes"] for point in one["points"]))]
    if any(modes["streaming"]["learned"] != modes["barrier"]["learned"] for modes in steps):
        raise SystemExit("streaming and barrier did not sample and learn the same")


def table(result: Mapping[str, Any]) -> str:
    """Returns Markdown: a line a point."""
    names = ["judge floor / device floor", "mean latency, s", *(f"{mode}, s" for mode in ON_POLICY)]
    names += [*(f"efficiency, {mode}" for mode in ON_POLICY), *(f"{mode} / streaming" for mode in ON_POLICY[1:])]
    whole: tuple[Mode, ...] = ("streaming", "behind")
    names += [*(f"whole step, {mode}, s" for mode in whole), *(f"its efficiency, {mode}" for mode in whole)]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for point in result["points"]:
        cells = [f"{point['ratio']:g}", text_of(point["mean_latency_s"], 3)]
        cells += [text_of(point["rollouts_s"][mode], 2) for mode in ON_POLICY]
        cells += [text_of(point["efficiency"][mode], 2) for mode in ON_POLICY]
        cells += [text_of(point["streaming_is_faster_than"][mode], 2) for mode in ON_POLICY[1:]]
        cells += [text_of(point["steps_s"][mode], 2) for mode in whole]
        cells += [text_of(point["efficiency_of_steps"][mode], 2) for mode in whole]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(result: Mapping[str, Any]) -> str:
    """Returns an SVG file: seconds of the rollouts of a step against the judge's latency, above the two floors."""
    from ditto_jax.report.svg import SERIES, drawing, ink, standalone, to_svg

    figure, axes = drawing(300)
    places = [point["mean_latency_s"]["median"] for point in result["points"]]
    for number, mode in enumerate(ON_POLICY):
        colour, points = ink(SERIES[number]), [point["rollouts_s"][mode] for point in result["points"]]
        axes.plot(places, [p["median"] for p in points], color=colour, marker="o", markersize=4, label=mode)
        axes.fill_between(places, [p["low"] for p in points], [p["high"] for p in points], color=colour, alpha=0.2)
    floors = [max(point["device_floor_s"]["median"], point["judge_floor_s"]["median"]) for point in result["points"]]
    axes.plot(places, floors, color=ink("muted"), linestyle=(0, (5, 2.5)), label="larger floor")
    axes.set_xlabel("mean latency of the judge, s")
    axes.set_ylabel("seconds for the rollouts of a step")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, labelcolor=ink("ink"))
    said = "; ".join(f"{p['ratio']:g}: {p['efficiency']['streaming']['median']:.2f}" for p in result["points"])
    text = (
        "Seconds for the rollouts of a step against the judge's latency. Efficiency of streaming by judge floor over "
        f"device floor: {said}"
    )
    return standalone(to_svg(figure, "judge-overlap", text))


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Returns the settings and figures of the benchmark."""
    config = SIZES[options.size].config
    folder = export(scratch / "model", config)
    words = words_of(range(1, 1 + _WORDS))
    with judge_process(options.places, words) as judge, contextlib.ExitStack() as stack:
        steps = {}
        for mode in MODES:
            steps[mode] = Steps(options, folder, judge, mode)
            stack.callback(steps[mode].close)
        played = play(steps, options.floors, options.places, options.rounds)
    drafts = options.prompts * options.group
    work = {"drafts": drafts, "prompt_tokens": options.prompt, "rows": options.rows, "places": options.places}
    facts = {"parameters": parameters(config), "work": work, "latency_deviation": _DEVIATION}
    return {**facts, **figures(played, options.places), "rounds": played}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="3.9M", choices=list(SIZES))
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--group", type=int, default=4, help="drafts of each prompt")
    parser.add_argument("--rows", type=int, default=32, help="rows decoded together")
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of every prompt")
    parser.add_argument("--new", type=int, default=96, help="most tokens of a reply")
    parser.add_argument("--places", type=int, default=8, help="requests that the judge works on at once")
    parser.add_argument(
        "--floors", type=float, nargs="*", default=[0.25, 0.5, 0.75, 1.0, 1.5, 2.0], help="judge over device"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    set_defaults()
    prepare_allocator()
    results: dict[str, Any] = {
        "benchmark": "judge_overlap",
        "machine": machine(),
        "versions": versions("jax", "jaxlib"),
    }
    with tempfile.TemporaryDirectory() as scratch:
        results |= measure(options, Path(scratch))
    text = table(results)
    write_results(options.output, "judge_overlap", results, text)
    (options.output / "judge_overlap.svg").write_text(picture(results), encoding="utf-8")
    print(f"median (lowest–highest) of {options.rounds} rounds; ratios within rounds\n\n{text}")


if __name__ == "__main__":
    main()
