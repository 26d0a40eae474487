"""A small ablation whose runs are written by hand: what the comparison reads, without training anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ditto_jax.ablation.config import AblationConfig
from ditto_jax.ablation.plan import Plan, PlannedRun, make_plan
from ditto_jax.strict import build

STEPS = 4
TASK = {"name": "hitom", "source": {"split": "test", "limit": 8, "seed": 1}}
TRAINED = {"name": "hitom", "source": {"limit": 8}}


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """Returns an ablation of `grpo` (to twice the steps) and `ditto` with two seeds from two warm starts."""
    base = folder / "base.yaml"
    base.write_text(yaml.safe_dump({"tasks": [TRAINED], "train": {"max_steps": STEPS}}))
    values: dict[str, Any] = {
        "name": "small",
        "output_dir": str(folder / "ablations"),
        "base": str(base),
        "seeds": 2,
        "warm_starts": {"folder": str(folder / "policies"), "count": 2},
        "updates": STEPS,
        "samples": [12],
        "references": ["grpo"],
        "score": {"breakdown": "order", "without": ["0"]},
        "setting": {"evaluation": {"every": 2, "tasks": [TASK]}},
        "arms": [
            {"name": "grpo", "settings": {"objective": {"name": "grpo"}, "train": {"max_steps": 2 * STEPS}}},
            {"name": "ditto", "settings": {"objective": {"name": "ditto"}}},
        ],
    }
    return {**values, **changes}


def plan_of(folder: Path, **changes: Any) -> Plan:
    return make_plan(build(AblationConfig, settings(folder, **changes)))


def write_run(
    run: PlannedRun,
    scores: Mapping[int, float],
    samples: Sequence[int],
    entropy: Sequence[float | None] | None = None,
    state: str = "finished",
) -> None:
    """Writes a run: the score of orders 1 and 2 by step (order 0 is always right), samples and entropy of its steps."""
    run.folder.mkdir(parents=True)
    rows = []
    for index, count in enumerate(samples):
        row = {"step": index + 1, "completions/count": count, "completions/sampled_tokens": 10 * count, "reward": 0.25}
        row["entropy"] = 0.5 if entropy is None else entropy[index]
        if run.arm != "grpo":
            row["feedback/with_feedback_reward"] = 0.75 - 0.1 * index
            row["feedback/refined_count"] = count // 2
        rows.append(json.dumps(row) + "\n")
    (run.folder / "metrics.jsonl").write_text("".join(rows))
    for step, score in scores.items():
        orders = {"0": {"value": 1.0, "n": 4}, "1": {"value": score, "n": 6}, "2": {"value": score, "n": 2}}
        record = {"label": "hitom", "step": step, "value": 1.0, "n": 12, "breakdown": {"order": orders}}
        file = run.folder / "eval" / "hitom" / f"step_{step:06d}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record))
    (run.folder / "STATUS.json").write_text(json.dumps({"state": state}))


def write_all(plan: Plan) -> None:
    """Writes every run: grpo reaches .4 and .6 with 4 samples a step, ditto .8 and .8 with 8, 6, 6 and 4."""
    for run in plan.runs:
        if run.arm == "grpo":
            top = 0.4 + 0.2 * run.seed
            write_run(run, {0: 0.2, 2: 0.3, 4: top, 6: top, 8: top}, [4] * 8)
        else:
            write_run(run, {0: 0.2, 2: 0.6, 4: 0.8}, [8, 6, 6, 4])
