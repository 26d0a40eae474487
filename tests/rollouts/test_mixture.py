"""One policy on all ten tasks: the preset, and a small run whose judge, partners and coach are one HTTP server."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditto_jax.config import EvalConfig, RolloutConfig, RunConfig, SourceConfig, TaskConfig, TrainConfig
from ditto_jax.config_io import load_config
from ditto_jax.evaluation.evaluate import read_evaluations
from ditto_jax.judge.config import JudgeConfig, PartnerConfig, RoleConfig
from ditto_jax.objective import PgClip, make_objective
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.sampling.slot_shapes import SamplerShapes
from ditto_jax.tasks.released import SOUL
from ditto_jax.types import Outcome
from tests.judge.server import Received, fails, says, serving
from tests.released_rows import write_part
from tests.tiny_run import contents, run_config, status, train_quietly

STEPS, DRAFTS, FAILED_CALL = 2, 2, 2
TRAINED_SCENES = ("share a kitchen", "Evening in the shop")
WORDS = "Look at it once more, from where the person stands."
TALKING = {"coser": {"next_speaker"}, "sotopia": {"partner"}, "mirrorbench": {"assistant"}}
ROLES = ("narrator", "next_speaker", "partner", "assistant")
OPTIONS = {"coser": {"max_rounds": 4, "min_rounds": 2}, "sotopia": {"max_turns": 4}}


def least(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """The least value of a JSON schema, as far as reply models use the language."""
    if "$ref" in schema:
        return least(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        parts = schema["properties"].items()
        return {name: WORDS if name == "feedback" else least(part, definitions) for name, part in parts}
    if schema["type"] in ("integer", "number"):
        return schema["minimum"]
    return {"string": "fine", "array": []}[schema["type"]]


class Everybody:
    """Answers as judge and coach by the schema asked for, and as anybody else in plain words, but for one call.

    That one is of a scene of the training rows, so that no measured score is lost.
    """

    def __init__(self):
        self.trained_on = 0

    def __call__(self, handler: Any) -> None:
        asked = handler.received.json
        if "response_format" in asked:
            schema = asked["response_format"]["json_schema"]["schema"]
            says(json.dumps(least(schema, schema.get("$defs", {}))))(handler)
            return
        of_training = any(scene in json.dumps(asked["messages"]) for scene in TRAINED_SCENES)
        self.trained_on += of_training
        failing = of_training and self.trained_on == FAILED_CALL
        (fails(500) if failing else says("I see. Please go on."))(handler)


@pytest.fixture(scope="module")
def mixture(policy_folder, tmp_path_factory) -> tuple[RunDirectory, list[Received]]:
    """Two steps over a row of every task, measured before and after, by a policy that was made for none of them."""
    folder = tmp_path_factory.mktemp("mixture")
    rows = write_part(folder / "rows")
    write_part(folder / "rows", "eval")
    with serving(Everybody()) as server:
        config = run_config(policy_folder, folder, **settings(server.base_url, rows))
        return train_quietly(config), list(server.received)


def settings(url: str, rows: Path) -> dict[str, Any]:
    endpoint = {
        "kind": "openai",
        "base_url": url,
        "max_retries": 0,
        "unparsable_retries": 0,
        "max_concurrent": 1,
        "cache": "off",
    }

    def tasks(source: SourceConfig, ending: str = "") -> tuple[TaskConfig, ...]:
        judges = {"userllm": {"model": "other-judge"}}
        return tuple(
            TaskConfig(
                name, label=name + ending, source=source, options=OPTIONS.get(name, {}), judge=judges.get(name, {})
            )
            for name in SOUL
        )

    held_out = SourceConfig(kind="parquet", path=str(rows / "eval"), split="test", limit=2, overlong="skip")
    return {
        "tasks": tasks(SourceConfig(kind="parquet", path=str(rows / "train"), limit=3, overlong="skip")),
        "judge": JudgeConfig(model="judge", **endpoint),
        "partner": PartnerConfig(model="partner", **endpoint),
        "endpoints": (
            RoleConfig(roles=("feedback",), model="coach", **endpoint),
            RoleConfig(roles=("narrator", "next_speaker"), model="director", **endpoint),
        ),
        "rollout": RolloutConfig(prompts_per_step=len(SOUL), num_generations=DRAFTS, max_completion_length=400),
        "sampler": SamplerShapes(prefix=(1280,), tail=(1, 512), max_new_tokens=12, max_rows=16, chunk=12),
        "train": TrainConfig(max_steps=STEPS, micro_batch=8, prefix=(1280,), suffix=(1280,), lanes=2),
        "evaluation": EvalConfig(tasks=tasks(held_out, "-heldout"), temperature=1.0, bootstrap=20),
        "save_steps": STEPS,
    }


def test_every_task_has_its_prompts_metrics_and_counts_in_every_step(mixture):
    run, _ = mixture
    assert status(run)["state"] == "finished"
    for row in run.read_metrics():
        for name in SOUL:
            assert row[f"tasks/{name}/drafts_count"] == DRAFTS
            assert row[f"tasks/{name}/abandoned_count"] <= row[f"tasks/{name}/unscored_count"]
            assert f"rewards/{name}/mean" in row or row[f"tasks/{name}/unscored_count"] >= DRAFTS
        assert {"rewards/coser/mean", "rewards/sotopia/mean", "rewards/mirrorbench/mean", "rewards/userllm/mean"} <= {
            *row,
            *(f"rewards/{name}/mean" for name in SOUL if row[f"tasks/{name}/abandoned_count"]),
        }
        assert all(np.isfinite(value) for value in row.values())


def test_outcomes_add_up_and_metrics_say_what_the_records_say(mixture):
    run, _ = mixture
    for metrics, rows in zip(run.read_metrics(), contents(run).values(), strict=True):
        assert sum(metrics[f"judge/score_{outcome}_count"] for outcome in Outcome) == len(rows)
        asked = [row["feedback"] for row in rows if row["feedback"]]
        assert sum(metrics[f"judge/feedback_{outcome}_count"] for outcome in Outcome) == len(asked)
        assert metrics["judge/feedback_leaked_count"] == sum(bool(words["leak"]) for words in asked)
        for what in ("refined", "unscored", "abandoned", "leaked", "self_reference", "feedback"):
            total = sum(metrics[f"tasks/{name}/{what}_count"] for name in SOUL)
            whole = {
                "refined": sum(row["role"] == "refined" for row in rows),
                "unscored": sum(row["score"] is None for row in rows),
                "abandoned": metrics["episodes/abandoned_count"],
                "leaked": metrics["judge/feedback_leaked_count"],
                "self_reference": metrics["feedback/self_reference_count"],
                "feedback": len(asked),
            }
            assert total == whole[what], what
        for name in SOUL:
            scores = [r["score"] for r in rows if r["task"] == name and r["role"] == "draft" and r["score"] is not None]
            if scores:
                assert metrics[f"rewards/{name}/mean"] == pytest.approx(np.mean(scores))


def test_the_call_that_failed_is_one_abandoned_episode_without_a_score(mixture):
    run, _ = mixture
    rows = [row for rows in contents(run).values() for row in rows]
    [lost] = [row for row in rows if row["judge"] == "none"]
    assert lost["task"] in TALKING and lost["score"] is None and lost["outcome"] == "unavailable" and lost["detail"]
    last = run.read_metrics()[-1]
    assert last["partner/failed"] == 1 and sum(last.get(f"partner/failed/{r}", 0) for r in ROLES) == 1
    assert all(row["outcome"] == "ok" or row["detail"] for row in rows)


def test_everyone_who_spoke_judged_or_coached_is_named(mixture):
    run, received = mixture
    rows = [row for rows in contents(run).values() for row in rows]
    models = {"next_speaker": "director", "narrator": "director", "partner": "partner", "assistant": "partner"}
    for name in SOUL:
        heard = {role for row in rows if row["task"] == name for role in row["partners"]}
        assert heard >= TALKING.get(name, set()) and (name in TALKING or not heard)
    assert all(row["partners"][role] == f"openai:{models[role]}" for row in rows for role in row["partners"])
    assert {row["feedback"]["judge"].split("@")[0] for row in rows if row["feedback"]} == {"openai:coach"}
    assert any(row["judge"].startswith("openai:other-judge@userllm") for row in rows if row["task"] == "userllm")
    asked = Counter(request.json["model"] for request in received)
    assert set(asked) == {"judge", "other-judge", "partner", "coach", "director"}
    assert any(row["role"] == "refined" and row["used_feedback"] == WORDS for row in rows)


def test_held_out_rows_of_every_task_are_measured_before_and_after_and_never_coached(mixture):
    run, received = mixture
    records = {(record["label"], record["step"]): record for record in read_evaluations(run)}
    assert set(records) == {(f"{name}-heldout", step) for name in SOUL for step in (0, STEPS)}
    judged = {"coser": "judge", "sotopia": "judge", "mirrorbench": "judge", "userllm": "other-judge"}
    for record in records.values():
        task = record["task"]
        assert record["rows"]["found"] == 3 and record["rows"]["used"] == sum(record["outcomes"].values()) == 2
        assert record["n"] == record["outcomes"]["score_ok_count"] == 2 and record["temperature"] == 1.0
        assert record["source"]["kind"] == "parquet" and record["source"]["split"] == "test"
        assert set(record["partners"]) >= TALKING.get(task, set())
        assert all(who.startswith("openai:") for who in record["partners"].values())
        models = {who.partition("@")[0] for who in record["scored_by"]}
        assert models <= {"rules", f"openai:{judged.get(task)}"}
    drafts = [row for rows in contents(run).values() for row in rows if row["feedback"]]
    coached = sum(request.json["model"] == "coach" for request in received)
    assert coached - 1 == len(drafts) > 0  # the first call asks whether the coach is there at all


def test_the_preset_has_the_ten_tasks_and_the_papers_hyper_parameters():
    config, _ = load_config(RunConfig, ["soul_8b.yaml"])
    assert [task.name for task in config.tasks] == list(SOUL)
    assert [task.name for task in config.evaluation.tasks] == list(SOUL)
    assert {(task.weight, task.source.limit, task.source.kind) for task in config.tasks} == {(1.0, 1024, "parquet")}
    assert {task.source.limit for task in config.evaluation.tasks} == {100} and config.evaluation.temperature == 1.0
    rollout, optimizer, lora = config.rollout, config.optimizer, config.lora
    assert (rollout.prompts_per_step, rollout.num_generations, rollout.temperature) == (64, 8, 1.0)
    assert (config.sampler.prefix[-2], rollout.max_completion_length) == (8192, 8192)
    assert (lora.rank, lora.alpha) == (32, 64.0)
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.weight_decay) == (5e-6, "constant", 0.01)
    assert (optimizer.beta1, optimizer.beta2, optimizer.max_grad_norm, optimizer.warmup_steps) == (0.9, 0.999, 1.0, 0)
    objective = make_objective(config.objective)
    assert objective.name == "ditto"
    losses = [term.loss for term in objective.terms if isinstance(term.loss, PgClip)]
    clips = {(loss.epsilon, loss.epsilon_high, loss.dual_clip) for loss in losses}
    assert clips == {(0.2, 0.28, 10.0)}
    assert (config.train.max_steps, config.train.updates_per_step, config.save_steps) == (120, 4, 50)
    assert {t.name: t.judge for t in config.evaluation.tasks} == {t.name: t.judge for t in config.tasks}
    sources = {(t.source.kind, t.source.split, t.source.overlong) for t in config.evaluation.tasks}
    assert sources == {("parquet", "test", "skip")} and config.evaluation.every == 5
    until = {task.name: task.feedback.until_step for task in config.tasks if task.feedback.until_step is not None}
    assert until == {"hitom": 99, "coser": 29, "mistakes": 89}
