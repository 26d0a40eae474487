"""Does verbal feedback help, at equal steps, samples and seconds, and is it what the words say?

Trains the quick start's policy under five arms and several seeds, from several warm starts (seed s from warm start s
modulo their number), with an evaluation every few steps on stories of held-out words that no setting was chosen on.
Every run is an ordinary `train` run in its own directory; finished runs are skipped, so the benchmark can be
interrupted and continued. Writes results.json, a table and a picture, whichever way they turn out.

    python benchmarks/learning.py --output learning_runs            train what is missing, then summarise
    python benchmarks/learning.py --output learning_runs --time     first, on an idle machine: the seconds of the steps

Accuracy does not depend on how busy the machine is, seconds do: so they come from one run of every arm that does
nothing else (`--time`), and are left out where there is none. Warm starts, `--policies`/seed-0, seed-1, ..., are made
by `ditto-jax sft` where they are absent (minutes each).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent

# The arms: what each changes of configs/quickstart.yaml. `grpo_equal` samples as many sequences a step as ditto can
# at most (draft and refined), with the same number of updates.
ARMS: dict[str, dict[str, Any]] = {
    "ditto": {},
    "ditto_no_fb": {"objective": {"name": "ditto_no_fb"}},
    "ditto_content_free": {"judge": {"feedback_content": "content_free"}},
    "grpo": {"objective": {"name": "grpo"}},
    "grpo_equal": {"objective": {"name": "grpo"}, "rollout": {"num_generations": 16}},
}
EVALUATION_SEED = 20260  # stories that no setting was chosen on


def warm_start(folder: Path, seed: int) -> Path:
    """Returns the warm start of one seed, made by `ditto-jax sft` if it is not there yet."""
    target = folder / f"seed-{seed}"
    if not (target / "config.json").exists():
        config = yaml.safe_load((ROOT / "configs" / "tiny_sft.yaml").read_text())
        config |= {"seed": seed, "output_dir": str(target)}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"seed-{seed}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        _command(["sft", "--config", str(path)])
    return target


def run_arm(output: Path, arm: str, seed: int, policy: str, steps: int, every: int | None) -> Path:
    """Returns the run directory of one arm and seed, trained (or continued) to its end.

    Without `every` the run is for its step times alone and evaluates nothing.
    """
    run = output / (f"time-{arm}" if every is None else f"{arm}-seed{seed}")
    if _finished(run):
        return run
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    config = _merge(config, ARMS[arm])
    tasks = [t for t in config["evaluation"]["tasks"] if t["source"]["kind"] == "generated"]
    for task in tasks:
        task["source"] = {**task["source"], "seed": EVALUATION_SEED}
    config["evaluation"] = {"tasks": tasks, "every": every} if every else {"tasks": []}
    config["train"]["max_steps"] = steps
    config |= {"seed": seed, "model_name_or_path": policy, "output_dir": str(output), "run_name": run.name}
    path = output / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    _command(["train", "--config", str(path)])
    return run


def _finished(run: Path) -> bool:
    status = run / "STATUS.json"
    return status.exists() and json.loads(status.read_text())["state"] == "finished"


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def step_seconds(output: Path, arm: str) -> list[float] | None:
    """Returns the seconds of each step of an arm's timing run, compilation set aside; None if it was not made."""
    run = output / f"time-{arm}"
    if not _finished(run):
        return None
    seconds = [row["time/step_s"] for row in _rows(run)]
    typical = sorted(seconds[1:])[len(seconds[1:]) // 2]
    # The first step compiles, and so does the first one of a new shape: neither belongs to the work of the step.
    return [min(value, 2 * typical) if index else typical for index, value in enumerate(seconds)]


def _command(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "ditto_jax", *arguments], check=True, cwd=ROOT, env=os.environ)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged


@dataclasses.dataclass(frozen=True)
class Point:
    """Accuracy on belief questions (order 1 and above) after a step, with what it had cost until then."""

    step: int
    samples: int
    seconds: float | None
    belief: float


def curve(run: Path, step_s: Sequence[float] | None) -> list[Point]:
    """Returns the belief accuracy of a run by step, pooled over the held-out evaluations."""
    rows = _rows(run)
    drafts = _drafts_per_step(run)
    right: dict[int, float] = {}
    count: dict[int, int] = {}
    for path in run.glob("eval/*/step_*.json"):
        record = json.loads(path.read_text())
        for order, entry in record["breakdown"]["order"].items():
            if order != "0":
                right[record["step"]] = right.get(record["step"], 0.0) + entry["value"] * entry["n"]
                count[record["step"]] = count.get(record["step"], 0) + entry["n"]
    points = []
    for step in sorted(right):
        before = [row for row in rows if row["step"] <= step]
        samples = sum(drafts + int(row["feedback/refined_count"]) for row in before)
        seconds = None if step_s is None else sum(step_s[: len(before)])
        points.append(Point(step, samples, seconds, right[step] / count[step]))
    return points


def _drafts_per_step(run: Path) -> int:
    rollout = yaml.safe_load((run / "config.yaml").read_text())["rollout"]
    return rollout["prompts_per_step"] * rollout["num_generations"]


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns (mean, half width of its 95 % t-interval) over seeds; infinite width for one seed."""
    import scipy.stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.inf
    return mean, float(scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def at(points: Sequence[Point], axis: str, value: float) -> float | None:
    """Returns the accuracy interpolated at a number of samples or seconds; None outside what was measured."""
    xs = [getattr(point, axis) for point in points]
    if None in xs or value > xs[-1]:
        return None
    return float(np.interp(value, xs, [point.belief for point in points]))


def summarise(curves: dict[str, dict[int, list[Point]]]) -> dict[str, Any]:
    """Returns mean and interval by arm against steps, samples and seconds, and paired differences to grpo_equal."""
    result: dict[str, Any] = {"arms": {}, "paired": {}}
    some = next(iter(curves["ditto"].values()))
    grids = {
        "step": [point.step for point in some],
        "samples": [1000, 2000, 2500],
        "seconds": [5, 10, 20],
    }
    for arm, by_seed in curves.items():
        table: dict[str, Any] = {}
        for axis, grid in grids.items():
            for value in grid:
                values = [v for v in (at(points, axis, value) for points in by_seed.values()) if v is not None]
                if len(values) == len(by_seed):
                    mean, half = mean_interval(values)
                    table[f"{axis} {value}"] = {"mean": mean, "half_width": half, "seeds": len(values)}
        result["arms"][arm] = table
    for other in ("grpo", "grpo_equal", "ditto_content_free", "ditto_no_fb"):
        rows: dict[str, Any] = {}
        for axis, grid in grids.items():
            for value in grid:
                pairs = [
                    (at(curves["ditto"][seed], axis, value), at(curves[other][seed], axis, value))
                    for seed in sorted(set(curves["ditto"]) & set(curves.get(other, {})))
                ]
                known = [a - b for a, b in pairs if a is not None and b is not None]
                if known and len(known) == len(pairs):
                    mean, half = mean_interval(known)
                    rows[f"{axis} {value}"] = {"mean": mean, "half_width": half, "seeds": len(known)}
        result["paired"][f"ditto - {other}"] = rows
    return result


def table_of(summary: dict[str, Any]) -> str:
    """Returns the summary as Markdown."""
    columns = sorted(
        {c for arm in summary["arms"].values() for c in arm}, key=lambda c: (c.split()[0], int(c.split()[1]))
    )
    lines = ["| arm | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    blocks = {**summary["arms"], **summary["paired"]}
    for name, row in blocks.items():
        cells = [f"{row[c]['mean']:+.3f} ± {row[c]['half_width']:.3f}" if c in row else "" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(curves: dict[str, dict[int, list[Point]]], path: Path) -> None:
    """Draws belief accuracy against steps, samples and seconds; bands are 95 % intervals over seeds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    timed = all(points[-1].seconds is not None for by_seed in curves.values() for points in by_seed.values())
    axes = ("step", "samples", "seconds") if timed else ("step", "samples")
    figure, panels = plt.subplots(1, len(axes), figsize=(4 * len(axes), 3.8), sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        for arm, by_seed in curves.items():
            end = min(getattr(points[-1], axis) for points in by_seed.values())
            xs = np.linspace(0, end, 31)
            stats = [mean_interval([at(points, axis, x) or 0.0 for points in by_seed.values()]) for x in xs]
            mean, half = np.array(stats).T
            (line,) = panel.plot(xs, mean, label=arm)
            if np.isfinite(half).all():
                panel.fill_between(xs, mean - half, mean + half, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.set_xlabel(
            {"step": "steps", "samples": "generated samples", "seconds": "seconds (compilation apart)"}[axis]
        )
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy on held-out belief questions")
    panels[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("learning_runs"))
    parser.add_argument("--policies", type=Path, default=None, help="folder of warm starts; default: OUTPUT/policies")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--warm_starts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--time", action="store_true", help="only measure each arm's seconds a step, with seed 0")
    parser.add_argument("--report_only", action="store_true", help="summarise finished runs, train nothing")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    policies = options.policies or options.output / "policies"
    if options.time:
        policy = str(warm_start(policies, 0).resolve())
        for arm in options.arms:
            run_arm(options.output, arm, 0, policy, options.steps, every=None)
            print(f"{arm}: {sum(step_seconds(options.output, arm) or ()):.1f} s for {options.steps} steps")
        return
    if not options.report_only:
        for seed in range(options.seeds):
            policy = str(warm_start(policies, seed % options.warm_starts).resolve())
            for arm in options.arms:
                run_arm(options.output, arm, seed, policy, options.steps, options.every)
    curves: dict[str, dict[int, list[Point]]] = {}
    for arm in options.arms:
        for seed in range(options.seeds):
            run = options.output / f"{arm}-seed{seed}"
            if _finished(run):
                curves.setdefault(arm, {})[seed] = curve(run, step_seconds(options.output, arm))
    summary = summarise(curves)
    summary["settings"] = {
        "config": "configs/quickstart.yaml",
        "steps": options.steps,
        "seeds": {arm: sorted(by_seed) for arm, by_seed in curves.items()},
        "warm_starts": options.warm_starts,
        "evaluation_seed": EVALUATION_SEED,
    }
    (options.output / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = table_of(summary)
    (options.output / "table.md").write_text(text + "\n")
    draw(curves, options.output / "learning.svg")
    print(text)


if __name__ == "__main__":
    main()
