"""Training with a judge behind HTTP: faults are masked, no failure's text reaches a prompt, outages stop and
continue.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.config import EvalConfig, RunConfig
from ditto_jax.errors import JudgeUnavailableError
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.types import Outcome
from launch.launch import free_port
from tests.judge.server import (
    Behaviour,
    drops_mid_body,
    fails,
    gives_feedback,
    resets,
    responds,
    says,
    serving,
    waits,
)
from tests.tiny_run import contents, learned, run_config, saved_arrays, status, train_config, train_quietly

POISON = "OUTAGE-7731"
WORDS = "who was there?"
PROBE: Behaviour = gives_feedback("{}")


def judged_by(base_url: str | None, **changes: Any) -> JudgeConfig:
    values: dict[str, Any] = {
        "kind": "openai",
        "model": "tiny-judge",
        "base_url": base_url,
        "max_concurrent": 4,
        "max_retries": 0,
        "unparsable_retries": 0,
        "timeout_s": 2.0,
        "max_outage_s": 0.0,
        "max_error_rate": 1.0,
    }
    return JudgeConfig(**{**values, **changes})


def judged_run(policy_folder: Path, output_dir: Path, judge: JudgeConfig, steps: int = 2, **changes: Any) -> RunConfig:
    values = {"judge": judge, "train": train_config(steps), "evaluation": EvalConfig(), **changes}
    return run_config(policy_folder, output_dir, **values)


FAULTS: list[Behaviour] = [
    fails(500, POISON),
    says(POISON),  # no JSON
    says(json.dumps({"advice": POISON})),  # JSON, not of the schema
    says(None, refusal=POISON),
    says(json.dumps({"feedback": POISON}), finish_reason="content_filter"),
    drops_mid_body,
    resets,
    fails(429, POISON, Retry_After="3600"),
    responds(302, POISON.encode(), Location="http://127.0.0.1:9/v1"),
    fails(401, POISON),
    waits(4.0, gives_feedback(POISON)),
]


@pytest.fixture(scope="module")
def faulty(policy_folder, tmp_path_factory) -> RunDirectory:
    """Two steps with a judge that fails in every way, between answers that are good."""
    script = [PROBE]
    for fault in FAULTS:
        script += [fault, gives_feedback(WORDS)]
    with serving(*script) as server:
        config = judged_run(policy_folder, tmp_path_factory.mktemp("faulty"), judged_by(server.base_url), steps=5)
        run = train_quietly(config)
        assert len(server.received) >= len(script)  # every fault was met
    return run


def test_a_run_outlives_every_fault_of_its_judge(faulty):
    assert status(faulty)["state"] == "finished"
    rows = [row for rows in contents(faulty).values() for row in rows]
    outcomes = {row["feedback"]["outcome"] for row in rows if row["feedback"]}
    assert outcomes >= {"ok", "refused", "unparsable", "timed_out", "unavailable"}
    last = faulty.read_metrics()[-1]
    for outcome in Outcome:
        counted = sum(bool(row["feedback"]) and row["feedback"]["outcome"] == outcome for row in rows)
        assert last[f"judge/feedback/{outcome}"] == counted
        assert sum(m[f"judge/feedback_{outcome}_count"] for m in faulty.read_metrics()) == counted


def test_only_words_of_the_judge_are_in_prompts_and_no_failure_is(faulty):
    refined = [row for rows in contents(faulty).values() for row in rows if row["role"] == "refined"]
    assert refined and all(row["used_feedback"] == WORDS for row in refined)
    assert all(row["prompt"][-1]["content"].endswith(f"\nHint: {WORDS}") for row in refined)
    for rows in contents(faulty).values():
        for row in rows:
            assert POISON not in json.dumps(row["prompt"])
            failed = row["feedback"] and row["feedback"]["outcome"] != "ok"
            assert not failed or (row["feedback"]["text"] is None and row["feedback"]["detail"])
            asked = json.dumps([row["prompt"], row["used_feedback"]])
            assert "Traceback" not in asked and "timed_out" not in asked and "127.0.0.1" not in asked


def test_the_judge_is_told_the_story_the_reply_and_nothing_of_the_machine(policy_folder, tmp_path):
    with serving(PROBE, gives_feedback(WORDS)) as server:
        run = train_quietly(judged_run(policy_folder, tmp_path, judged_by(server.base_url), steps=1))
        sent = [received.json for received in server.received[1:]]
    drafts = [row for row in run.read_rollouts(1) if row["role"] == "draft" and row["score"] < 1]
    assert len(sent) == len(drafts) > 0
    for request in sent:
        assert request["model"] == "tiny-judge"
        assert str(tmp_path) not in json.dumps(request)
    for draft in drafts:
        assert any(draft["reply"] in request["messages"][-1]["content"] for request in sent)


def test_a_judge_that_is_down_at_start_ends_it_and_blocks_no_rerun(policy_folder, tmp_path):
    down = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(JudgeUnavailableError) as caught:
        train_quietly(judged_run(policy_folder, tmp_path, judged_by(down), steps=1))
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert down in message and "start the server or correct judge.base_url" in message
    assert not (tmp_path / "tiny").exists()
    with serving(PROBE, gives_feedback(WORDS)) as server:
        # Another model, too: nothing was written that ties the directory to the first try.
        judge = judged_by(server.base_url, model="other-judge")
        assert status(train_quietly(judged_run(policy_folder, tmp_path, judge, steps=1)))["state"] == "finished"


class _Mortal:
    """A server's behaviour: good answers until it is told to die, then none."""

    def __init__(self, answers: int):
        self.left = answers

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        self.left -= 1
        (gives_feedback(WORDS) if self.left >= 0 else resets)(handler)


def test_a_judge_that_dies_midway_stops_the_run_with_its_state_saved(policy_folder, tmp_path):
    with serving(PROBE, gives_feedback(WORDS)) as server:
        straight = train_quietly(judged_run(policy_folder, tmp_path / "a", judged_by(server.base_url), steps=3))
    asked = [sum(bool(r["feedback"]) for r in straight.read_rollouts(step)) for step in (1, 2, 3)]
    assert asked[1] >= 4  # fewer failures would decide nothing
    with serving(_Mortal(1 + asked[0])) as server:
        judge = judged_by(server.base_url, max_error_rate=0.5)
        with pytest.raises(JudgeUnavailableError, match=r"pieces of feedback of step 2 failed \(unavailable") as caught:
            train_quietly(judged_run(policy_folder, tmp_path / "b", judge, steps=3))
    assert "continue from the last checkpoint" in str(caught.value)
    run = RunDirectory(tmp_path / "b" / "tiny")
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 1)
    assert [p.name for p in run.checkpoints.iterdir()] == ["1"]
    assert run.rollout_steps() == [1] and len(run.read_metrics()) == 1
    with serving(PROBE, gives_feedback(WORDS)) as server:  # at another address, as after a restart
        judge = judged_by(server.base_url, max_error_rate=0.5)
        run = train_quietly(judged_run(policy_folder, tmp_path / "b", judge, steps=3))
    assert contents(run) == contents(straight)
    assert learned(run) == learned(straight)
    for mine, theirs in zip(saved_arrays(run), saved_arrays(straight), strict=True):
        assert (mine == theirs).all()
