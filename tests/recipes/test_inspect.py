"""The recipes of inspect_ai, with the real package: the simulator as the model of a role, and SOUL tasks as a task."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import zlib
from pathlib import Path

import pytest

from ditto_jax.config import EvalConfig, SourceConfig, TaskConfig
from ditto_jax.evaluation.run import run_evaluation
from ditto_jax.judge.config import JudgeConfig, PolicyConfig
from ditto_jax.own_code import from_file
from ditto_jax.rollouts.prompts import load_task
from tests.serving.scripted import ScriptedBackend, listening, says, whole
from tests.tiny_run import run_config

pytest.importorskip("inspect_ai", reason="install the recipes extra: pip install 'ditto-jax[recipes]'")
pytest.importorskip("openai", reason="install the recipes extra: pip install 'ditto-jax[recipes]'")

# inspect imports this in the middle of an evaluation and parses its classes' sources; CPython 3.11 may fail there with
# "AST constructor recursion depth mismatch" while another thread, here the server's, is at work.
import acp.schema  # noqa: F401
from inspect_ai import eval as inspect_eval
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    get_model,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # its own use of tenacity
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # connections that it leaves open
]


def test_the_simulator_answers_as_a_model_of_inspect(monkeypatch):
    backend = ScriptedBackend(says("", "number twelve"))
    messages = [
        ChatMessageSystem(content="You want a refund."),
        ChatMessageAssistant(content="hi"),
        ChatMessageUser(content="Which order?"),
    ]
    with listening(backend) as url:
        monkeypatch.setenv("DITTO_API_KEY", "any")
        monkeypatch.setenv("DITTO_BASE_URL", f"{url}/v1")

        async def run():
            config = GenerateConfig(seed=3, max_tokens=20, temperature=0.7)
            return await get_model("openai-api/ditto/ditto", config=config, memoize=False).generate(messages)

        with asyncio.Runner() as runner:
            output = runner.run(run())
    assert output.completion == "number twelve" and output.stop_reason == "stop"
    assert [said.role for said in backend.asks[0].chat] == ["system", "assistant", "user"]
    assert (backend.asks[0].temperature, backend.asks[0].max_tokens) == (0.7, 20)


SOUL = Path(__file__).resolve().parents[2] / "docs" / "examples" / "inspect_soul.py"
REPLIES = ("<answer>A</answer>", "I do not know", "could you say it shorter?")


def worked(name, source):
    """The task's own worked replies, by the question."""
    loaded = load_task(TaskConfig(name, source=source))
    return {loaded.task.opening(one)[-1].content: loaded.task.demonstration(one) for one in loaded.examples}


def answers(ask, known=None):
    """A reply that depends on the chat alone, every other time one that is known; of a judge, a verdict as JSON."""
    asked = ask.chat[-1].content
    number = zlib.crc32(asked.encode())
    if known and asked in known and number % 2:
        return [whole(known[asked])]
    if ask.schema is not None:
        verdict = ("REFUSED", "ACCEPTED")[number % 2]
        said = {"reasoning": "so", "human": number % 11 / 10, "verdict": verdict, "feedback": "more"}
        return [whole(json.dumps(said))]
    return [whole(REPLIES[number % len(REPLIES)])]


def test_soul_tasks_have_the_scores_of_our_own_evaluation_in_inspect(tmp_path, monkeypatch):
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)  # what tasks generate
    names, limit = ("hitom", "paratomi", "userllm"), 8
    source = SourceConfig(kind="auto", split="test", limit=limit)
    known = worked("hitom", source) | worked("paratomi", source)
    with listening(ScriptedBackend(lambda ask: answers(ask, known))) as url:
        base_url = f"{url}/v1"
        endpoint = {"kind": "openai", "model": "ditto", "base_url": base_url}
        config = run_config(
            Path(),
            tmp_path,
            run_name="ours",
            tasks=(),
            model_name_or_path="",
            judge=JudgeConfig(**endpoint),
            evaluation=EvalConfig(tasks=tuple(TaskConfig(name, source=source) for name in names), bootstrap=50),
        )
        ours = run_evaluation(dataclasses.replace(config, policy=PolicyConfig(**endpoint)), [])
        monkeypatch.setenv("DITTO_API_KEY", "any")
        monkeypatch.setenv("DITTO_BASE_URL", base_url)
        soul = from_file(f"{SOUL}:soul", "task", "a task of inspect", "inspect_soul.py:soul")
        task = soul(tasks=",".join(names), limit=limit, judge_model="ditto", judge_base_url=base_url)
        model = get_model("openai-api/ditto/ditto", memoize=False)
        (log,) = inspect_eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none", temperature=0.0)
    assert log.status == "success", log.error
    found = {sample.id: sample.scores["verdict"].value for sample in log.samples}
    expected = {}
    for name in names:
        lines = (ours / "eval" / name / "samples_000000.jsonl").read_text().splitlines()
        expected |= {f"{name}/{row['id']}": row["score"] for row in map(json.loads, lines)}
    assert found == pytest.approx(expected) and len(found) == 3 * limit
    for name in ("hitom", "paratomi"):  # equal scores would agree with anything
        assert {score for item, score in found.items() if item.startswith(name)} == {0.0, 1.0}
    metrics = {one.name: one.metrics for one in log.results.scores}
    for name in names:
        own = [score for item, score in expected.items() if item.startswith(name)]
        assert metrics["verdict"][name].value == pytest.approx(sum(own) / len(own))


def test_what_has_no_score_is_unscored_in_inspect(tmp_path, monkeypatch):
    monkeypatch.delenv("SOUL_DATA_DIR", raising=False)

    def cannot_judge(ask):
        return [whole("no JSON at all")] if ask.schema is not None else answers(ask)

    with listening(ScriptedBackend(cannot_judge)) as url:
        monkeypatch.setenv("DITTO_API_KEY", "any")
        monkeypatch.setenv("DITTO_BASE_URL", f"{url}/v1")
        soul = from_file(f"{SOUL}:soul", "task", "a task of inspect", "inspect_soul.py:soul")
        task = soul(tasks="userllm", limit=6, judge_model="ditto", judge_base_url=f"{url}/v1")
        model = get_model("openai-api/ditto/ditto", memoize=False)
        (log,) = inspect_eval(task, model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success"
    scores = [sample.scores["verdict"] for sample in log.samples]
    by_rules = [score for score in scores if score.reason is None]
    unscored = [score for score in scores if score.reason is not None]
    assert len(by_rules) == 4 and all(score.value in (0.0, 1.0) for score in by_rules)
    assert [(math.isnan(score.value), score.reason) for score in unscored] == [(True, "unparsable")] * 2
