"""Run directories made by hand for the tests of report and progress: curves, evaluations, rollouts, hostile text."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import yaml

from ditto_jax.runs.run_dir import RunDirectory

HOSTILE = (
    '</div></pre><script>alert("owned")</script><img src=https://evil.example/x.png onerror=alert(1)>\n'
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; <style>*{display:none}</style> \x1b[31mred\x07 \u202eright-to-left\u202c "
    "zero\u200bwidth \ud800 half \u05e9\u05dc\u05d5\u05dd <!-- "
)

_STORY = (
    "Below is a story and a question about it. Give only the place as <answer>place</answer>.\n\n"
    "1 Julian, Philip and Flora entered the basement.\n2 The camera is in the yellow_safe.\n"
    "3 Julian moved the camera to the green_basket.\n4 Julian exited the basement.\n"
    "5 Philip moved the camera to the red_cupboard.\n6 Philip exited the basement.\n\n"
    "Where does Julian think the camera is?"
)


def make_run(
    folder: Path, steps: int = 40, *, name: str = "quickstart", objective: str = "ditto", **parts: Any
) -> Path:
    """Returns a run directory. parts: evaluations, rollouts (bool), hostile (bool)."""
    run = RunDirectory(folder)
    for path in (run.path, run.rollouts, run.evaluations):
        path.mkdir(parents=True, exist_ok=True)
    config = {
        "run_name": name,
        "seed": 0,
        "objective": {"name": objective, "truncated": "drop"},
        "judge": {"kind": "rules", "model": None},
        "train": {"max_steps": steps},
        "evaluation": {"tasks": [{"name": "hitom", "label": "hitom-heldout"}, {"name": "paratomi", "label": "b-tomi"}]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "cli.txt").write_text("ditto-jax train --config configs/quickstart.yaml\n")
    environment = {"python": "3.11.7", "packages": {"jax": "0.10.2", "flax": None}, "devices": ["cpu:cpu"], "flags": {}}
    (folder / "env.json").write_text(json.dumps(environment))
    run.set_status("finished", steps, 0)
    refines = objective != "grpo"
    for step in range(1, steps + 1):
        run.append_metrics(metrics_row(step, steps, refines))
    if parts.get("evaluations", True):
        write_record(run, record("hitom-heldout", 0, 0.255, 240, real=0.56, free=0.007))
        write_record(run, record("hitom-heldout", steps, 0.671, 240, real=0.61, free=0.02))
        write_record(run, record("b-tomi", 0, 0.40, 120))
        write_record(run, record("b-tomi", steps, 0.45, 120))
        write_record(run, record("official-tomi", 0, 0.31, 100))
        write_record(run, record("official-tomi", steps, 0.33, 100))
    if parts.get("rollouts", True):
        for step in range(1, steps + 1):
            rows = rollout_rows(step, refines, parts.get("hostile", False))
            # Not through write_rollouts: half of a surrogate pair can stand in a JSON file, but not in UTF-8.
            run.rollout_file(step).write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    return folder


def metrics_row(step: int, steps: int, refines: bool) -> dict[str, Any]:
    """One line of metrics.jsonl of a run that learns quickly and then levels off."""
    progress = 1 - math.exp(-4 * step / steps)
    wobble = 0.03 * math.sin(2.1 * step)
    row: dict[str, Any] = {
        "step": step,
        "reward": 0.2 + 0.5 * progress + wobble,
        "reward_std": 0.4,
        "entropy": 0.9 - 0.4 * progress,
        "completions/mean_length": 14.0,
        "completions/clipped_ratio": 0.004,
        "judge/score_ok_count": 230,
        "judge/score_timed_out_count": 1 if step % 10 == 0 else 0,
        "judge/score_refused_count": 0,
        "judge/calls": 300 * step,
        "time/step_s": (9.0 if step == 1 else 0.85) + wobble,
        "time/draft_s": 0.15,
        "time/update_s": 8.0 if step == 1 else 0.45,
        "time/write_s": 0.01,
        "tokens_per_s": 4200 + 900 * wobble,
    }
    if refines:
        row |= {
            "feedback/with_feedback_reward": 0.7 + 0.1 * progress,
            "feedback/revised_reward": 0.62 + 0.12 * progress - wobble,
            "feedback/uplift": 0.6 + 0.1 * progress,
            "feedback/gate_rate": 0.8 - 0.5 * progress,
            "policy/context_gap_mean": 0.35 * (1 - progress) + 0.02 + abs(wobble) / 5,
            "judge/feedback_ok_count": 100,
            "judge/feedback_unparsable_count": 2 * (step % 3 == 0),
            "judge/feedback_leaked_count": int(step % 7 == 0),
            "time/refine_s": 0.18,
        }
    return row


def record(
    label: str,
    step: int,
    value: float,
    n: int,
    real: float | None = None,
    free: float | None = None,
    judge: str = "rules:1",
) -> dict[str, Any]:
    """One evaluation record with a breakdown by order and by another label."""
    orders = {str(order): _mean(value + 0.06 * (1 - order), n // 4) for order in range(4)}
    written = {
        "schema_version": 1,
        "label": label,
        "task": "hitom",
        "task_version": "1",
        "metric": "mean_score",
        **_mean(value, n),
        "trials": 1,
        "temperature": 0.0,
        "judge": judge,
        "outcomes": {"score_ok_count": n},
        "step": step,
        "truncated_fraction": 0.0,
        "mean_completion_tokens": 14.0,
        "breakdown": {"order": orders, "deception": {"False": _mean(value, n)}},
    }
    if real is not None and free is not None:
        written["fixed_by_feedback"] = {**_mean(real, 150), "without_usable_feedback": 3}
        written["fixed_by_content_free_feedback"] = {**_mean(free, 150), "without_usable_feedback": 0}
    return written


def _mean(value: float, n: int) -> dict[str, Any]:
    reach = 1.96 * math.sqrt(max(value * (1 - value), 0.005) / n)
    interval = {"low": max(0, value - reach), "high": min(1, value + reach), "confidence": 0.95, "method": "wilson"}
    return {"value": value, "interval": interval, "n": n}


def write_record(run: RunDirectory, written: dict[str, Any]) -> None:
    folder = run.evaluations / written["label"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"step_{written['step']:06d}.json").write_text(json.dumps(written))


def rollout_rows(step: int, refines: bool, hostile: bool) -> list[dict[str, Any]]:
    """Rollouts of one step: three drafts of two tasks, two of them wrong, one of these raised by feedback."""
    rows = []
    scores = ((0.0, 1.0), (0.0, 0.0), (1.0, None))
    for sample, (draft, refined) in enumerate(scores):
        task = ("hitom", "paratomi")[(sample + step) % 2]
        words = "Julian was away when Philip moved it. What did Julian see last?"
        text = HOSTILE if hostile else ""
        common = {
            "step": step,
            "prompt_id": f"{task}/{task}-{step % 5}",  # so that scenes come again
            "prompt_index": 0,
            "sample": sample,
            "task": task,
            "prompt": [{"role": "user", "content": _STORY + text}],
            "gold": "green_basket",
            "outcome": "ok",
            "detail": f"answer compared with the reference{text}",
            "judge": f"rules:{task}@1",
            "dimensions": {},
            "critique": "",
            "tokens": {"policy": [1, 2, 3]},
        }
        wanted = draft < 1.0 and refines
        feedback = {"text": words + text, "outcome": "ok", "leak": "", "judge": common["judge"], "detail": ""}
        rows.append(
            {
                **common,
                "role": "draft",
                "reply": f"red_cupboard Philip: all saw. <answer>red_cupboard</answer>{text}",
                "score": draft,
                "feedback": feedback if wanted else None,
                "used_feedback": None,
                "advantage": {"draft": -0.71},
                "truncated": sample == 1,
            }
        )
        if wanted:
            good = "red_cupboard Philip: Julian away; green_basket Julian: all saw. <answer>green_basket</answer>"
            rows.append(
                {
                    **common,
                    "role": "refined",
                    "reply": (good if refined else "yellow_safe: all saw. <answer>yellow_safe</answer>") + text,
                    "score": refined,
                    "feedback": None,
                    "used_feedback": words + text,
                    "advantage": {"refined_plain": 1.2, "refined_fb": 0.9},
                    "truncated": False,
                }
            )
    return rows
