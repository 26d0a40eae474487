"""Does verbal feedback help, at equal steps, samples and seconds, and is it what the words say?

Trains the quick start's policy under five arms and several seeds, each from its own warm start, with an evaluation
every few steps on stories of held-out words that no setting was chosen on. Every run is an ordinary `train` run in
its own directory; finished runs are skipped, so the benchmark can be interrupted and continued. Writes results.json,
a table and a picture, whichever way they turn out.

    python benchmarks/learning.py --output learning_runs [--seeds 5] [--steps 30] [--policies DIR]

`--policies` is a folder of warm starts named seed-0, seed-1, ... made by `--warm_start` (slow: minutes each).
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


def run_arm(output: Path, arm: str, seed: int, policy: str, steps: int, every: int) -> Path:
    """Returns the run directory of one arm and seed, trained (or continued) to its end."""
    run = output / f"{arm}-seed{seed}"
    status = run / "STATUS.json"
    if status.exists() and json.loads(status.read_text())["state"] == "finished":
        return run
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    config = _merge(config, ARMS[arm])
    tasks = [t for t in config["evaluation"]["tasks"] if t["source"]["kind"] == "generated"]
    for task in tasks:
        task["source"] = {**task["source"], "seed": EVALUATION_SEED}
    config["evaluation"] |= {"tasks": tasks, "every": every}
    config["train"]["max_steps"] = steps
    config |= {"seed": seed, "model_name_or_path": policy, "output_dir": str(output), "run_name": run.name}
    path = output / f"{run.name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    _command(["train", "--config", str(path)])
    return run


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
    seconds: float
    belief: float


def curve(run: Path) -> list[Point]:
    """Returns the belief accuracy of a run by step, pooled over the held-out evaluations."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
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
        # The first step compiles; its excess over the second is set aside and named in the results.
        seconds = [row["time/step_s"] for row in before]
        if len(seconds) > 1:
            seconds[0] = seconds[1]
        samples = sum(drafts + int(row["feedback/refined_count"]) for row in before)
        points.append(Point(step, samples, sum(seconds), right[step] / count[step]))
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
    if value > xs[-1]:
        return None
    return float(np.interp(value, xs, [point.belief for point in points]))


def summarise(curves: dict[str, dict[int, list[Point]]]) -> dict[str, Any]:
    """Returns mean and interval by arm against steps, samples and seconds, and paired differences to grpo_equal."""
    result: dict[str, Any] = {"arms": {}, "paired": {}}
    some = next(iter(curves["ditto"].values()))
    grids = {
        "step": [point.step for point in some],
        "samples": [2000, 4000, 6000],
        "seconds": [5, 10, 20, 30],
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

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True)
    for axis, panel in zip(("step", "samples", "seconds"), panels, strict=True):
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
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--report_only", action="store_true", help="summarise finished runs, train nothing")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    policies = options.policies or options.output / "policies"
    if not options.report_only:
        for seed in range(options.seeds):
            policy = str(warm_start(policies, seed).resolve())
            for arm in options.arms:
                run_arm(options.output, arm, seed, policy, options.steps, options.every)
    curves: dict[str, dict[int, list[Point]]] = {}
    for arm in options.arms:
        for seed in range(options.seeds):
            run = options.output / f"{arm}-seed{seed}"
            status = run / "STATUS.json"
            if status.exists() and json.loads(status.read_text())["state"] == "finished":
                curves.setdefault(arm, {})[seed] = curve(run)
    summary = summarise(curves)
    summary["settings"] = {
        "config": "configs/quickstart.yaml",
        "steps": options.steps,
        "seeds": {arm: sorted(by_seed) for arm, by_seed in curves.items()},
        "evaluation_seed": EVALUATION_SEED,
    }
    (options.output / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    text = table_of(summary)
    (options.output / "table.md").write_text(text + "\n")
    draw(curves, options.output / "learning.svg")
    print(text)


if __name__ == "__main__":
    main()
