"""A policy behind an endpoint: the prompts and scorers of local ones, without a device; failures are counted."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditto_jax.config import EvalConfig, RunConfig, SourceConfig, TaskConfig
from ditto_jax.errors import ConfigError, JudgeUnavailableError
from ditto_jax.evaluation.run import run_evaluation
from ditto_jax.judge.config import PolicyConfig
from ditto_jax.loop import train
from ditto_jax.reply_form import ReplyForm
from ditto_jax.rollouts.api_engine import form_fields
from ditto_jax.rollouts.prompts import load_task
from ditto_jax.tasks.sotopia.actions import KINDS, ActionReply
from tests.judge.server import Behaviour, completion, fails, obliges, responds, says, serving
from tests.tiny_run import run_config, story_task

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 4


def api_config(url: str, output_dir: Path, **changes) -> RunConfig:
    policy = PolicyConfig(
        kind="openai", model="small", base_url=url, max_retries=0, unparsable_retries=0, max_concurrent=1
    )
    evaluation = EvalConfig(tasks=(story_task(ITEMS, "test"),), bootstrap=50)
    values = {"run_name": "api", "tasks": (), "evaluation": evaluation, "model_name_or_path": ""}
    return dataclasses.replace(run_config(Path(), output_dir, **{**values, **changes}), policy=policy)


def results(folder: Path) -> tuple[dict, list[dict]]:
    (row,) = json.loads((folder / "evaluation.json").read_text())["tasks"]
    return row, [json.loads(line) for line in (folder / row["samples"]).read_text().splitlines()]


def asked(server) -> list[dict]:
    """The requests after the probe that comes before anything else."""
    return [received.json for received in server.received[1:]]


def gold_answers(handler) -> None:
    """Knows all answers: finds the story among the task's own."""
    text = handler.received.json["messages"][-1]["content"]
    loaded = load_task(story_task(ITEMS, "test"))
    known = {
        loaded.task.opening(example)[-1].content: loaded.task.demonstration(example) for example in loaded.examples
    }
    says(known.get(text, "no idea"))(handler)


def test_the_command_needs_no_device_and_asks_what_a_local_policy_is_asked(tmp_path):
    """With a platform that does not exist, whoever looks for a device fails."""
    with serving(gold_answers) as server:
        words = ["--task", "hitom", "--limit", str(ITEMS), "--config", "soul_eval_tiny.yaml", "--run_name", "api"]
        words += ["--policy.kind", "openai", "--policy.model", "small", "--policy.base_url", server.base_url]
        words += ["--max_concurrency", "2", "--num_trials", "2", "--evaluation.temperature", "0.7"]
        ended = subprocess.run(
            [sys.executable, "-m", "ditto_jax", "eval", *words, "--evaluation.bootstrap", "50"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "nowhere", "SOUL_DATA_DIR": ""},
            capture_output=True,
            text=True,
        )
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "runs" / "api"
    written = json.loads((run / "evaluation.json").read_text())
    assert written["policy"] == {"kind": "openai", "name": "small", "url": server.base_url, "max_tokens": 1024}
    row, samples = results(run)
    assert (row["n"], row["trials"], len(samples)) == (ITEMS, 2, 2 * ITEMS)
    sent = asked(server)
    assert sorted(json.dumps(r["messages"]) for r in sent) == sorted(json.dumps(s["prompt"]) for s in samples)
    assert {request["temperature"] for request in sent} == {0.7}
    assert len({request["seed"] for request in sent}) == 2 * ITEMS
    assert json.loads((run / "env.json").read_text())["devices"] == []


def test_right_answers_score_one_and_tokens_are_those_of_the_endpoint(tmp_path):
    with serving(gold_answers) as server:
        row, samples = results(run_evaluation(api_config(server.base_url, tmp_path), []))
    assert (row["score"], row["n"], row["outcomes"]) == (1.0, ITEMS, {"ok": ITEMS})
    assert {sample["tokens"] for sample in samples} == {7}
    assert row["scored_by"] == ["rules@hitom-1"] and row["judges"][0]["prompt_versions"] == ["hitom-1"]


@pytest.mark.parametrize(
    ("behaviour", "outcome", "score", "truncated"),
    [
        (says(""), "ok", 0.0, 0.0),
        (says("<think>so", finish_reason="length"), "ok", 0.0, 1.0),
        (says(None, refusal="I cannot"), "refused", None, 0.0),
        (responds(200, completion(None, finish_reason="content_filter")), "refused", None, 0.0),
        (responds(200, b"<html>"), "unparsable", None, 0.0),
        (fails(500), "unavailable", None, 0.0),
    ],
)
def test_silence_is_scored_and_a_failed_call_is_counted(behaviour: Behaviour, outcome, score, truncated, tmp_path):
    with serving(says("hello"), behaviour) as server:
        row, _ = results(run_evaluation(api_config(server.base_url, tmp_path), []))
    assert row["outcomes"] == {outcome: ITEMS} and row["score"] == score
    assert row["truncated_fraction"] == truncated


def test_only_what_failed_is_asked_again_when_the_command_is_repeated(tmp_path):
    with serving(says("hello"), gold_answers, fails(500), gold_answers) as server:
        config = api_config(server.base_url, tmp_path)
        row, before = results(run_evaluation(config, []))
        assert row["outcomes"] == {"ok": ITEMS - 1, "unavailable": 1}
        count = len(server.received)
        row, after = results(run_evaluation(config, []))
        assert row["outcomes"] == {"ok": ITEMS}
        assert len(server.received) == count + 2  # the probe, and one item
    (failed,) = [number for number, sample in enumerate(before) if sample["outcome"] != "ok"]
    assert [s for n, s in enumerate(after) if n != failed] == [s for n, s in enumerate(before) if n != failed]


def test_dialogues_are_played_with_partners_as_the_engine_plays_them(tmp_path):
    tasks = tuple(
        TaskConfig(name, source=SourceConfig(split="test", limit=2, seed=1), options=options)
        for name, options in (("sotopia", {"max_turns": 6}), ("userllm", {}))
    )
    with serving(obliges) as server:
        config = api_config(server.base_url, tmp_path, evaluation=EvalConfig(tasks=tasks, bootstrap=50))
        run = run_evaluation(config, [])
    sotopia, userllm = json.loads((run / "evaluation.json").read_text())["tasks"]
    assert sotopia["outcomes"] == userllm["outcomes"] == {"ok": 2}
    assert sotopia["partners"] == {"partner": "scripted@sotopia-1"}
    # The endpoint says the same phrase in every turn and never leaves.
    assert sotopia["faults"]["episodes"] == sotopia["faults"]["repetition"] == 2
    for row in (sotopia, userllm):
        for line in (run / row["samples"]).read_text().splitlines():
            prompt = json.loads(line)["prompt"]
            assert [message["role"] for message in prompt[-1:]] == ["user"]


def test_an_endpoint_that_is_down_ends_it_before_anything_is_written(tmp_path):
    with pytest.raises(JudgeUnavailableError, match=r"the policy small at http://127\.0\.0\.1:9"):
        run_evaluation(api_config("http://127.0.0.1:9/v1", tmp_path), [])
    assert not (tmp_path / "api").exists()


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"policy\.kind=openai: a policy behind an endpoint can be evaluated"):
        train(api_config("http://127.0.0.1:9/v1", tmp_path, tasks=(story_task(),)), [])
    with pytest.raises(ConfigError, match=r"policy\.temperature=0\.5: set evaluation\.temperature"):
        PolicyConfig(kind="openai", model="small", temperature=0.5)
    with pytest.raises(ConfigError, match=r"policy\.model=None"):
        PolicyConfig(kind="openai")


def held_config(url: str, output_dir: Path, **policy) -> RunConfig:
    config = api_config(url, output_dir)
    evaluation = dataclasses.replace(config.evaluation, constrained=True)
    return dataclasses.replace(config, evaluation=evaluation, policy=dataclasses.replace(config.policy, **policy))


def test_an_endpoint_is_told_the_form_of_each_reply_and_held_to_it(tmp_path):
    with serving(gold_answers) as server:
        row, _ = results(run_evaluation(held_config(server.base_url, tmp_path, regex="vllm"), []))
        assert row["constrained"] and row["score"] == 1.0
        patterns = [request["structured_outputs"]["regex"] for request in asked(server)]
    assert patterns == ["[^<]*(<answer>(A|B)</answer>)"] * ITEMS
    with serving(says("no idea")) as server:
        row, _ = results(run_evaluation(held_config(server.base_url, tmp_path / "free", regex="sglang"), []))
        assert {request["regex"] for request in asked(server)} == set(patterns)
    assert row["outcomes"] == {"unparsable": ITEMS} and row["score"] is None


def test_an_endpoint_that_takes_no_regular_expression_is_refused_before_it_is_asked(tmp_path):
    with serving(gold_answers) as server:
        with pytest.raises(ConfigError, match=r"policy.regex=refuse.*set policy.regex to vllm or sglang"):
            run_evaluation(held_config(server.base_url, tmp_path), [])
        assert not server.received


def test_json_goes_as_a_schema_where_the_endpoint_knows_that():
    form = ReplyForm(reply_model=ActionReply)
    sent = form_fields(form, PolicyConfig(kind="openai", model="small"))["response_format"]["json_schema"]
    assert sent["schema"]["properties"]["action_type"]["enum"] == [*KINDS] and sent["strict"]
    assert not sent["schema"]["additionalProperties"]
    with pytest.raises(ConfigError, match=r"policy.response_format=json_object"):
        form_fields(form, PolicyConfig(kind="openai", model="small", response_format="json_object"))
