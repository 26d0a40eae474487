"""An evaluation is repeated to the byte from the replies that were kept, with nobody there to answer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ditto_jax.config import EvalConfig, RunConfig, SourceConfig, TaskConfig
from ditto_jax.errors import JudgeUnavailableError
from ditto_jax.evaluation.run import run_evaluation
from ditto_jax.judge.cache import FILE_NAME
from ditto_jax.judge.config import JudgeConfig, PolicyConfig
from tests.judge.server import says, serving
from tests.tiny_run import run_config


def moody(handler) -> None:
    """Policy and judge whose every reply is another one: what is the same twice was kept."""
    number = len(handler.received_so_far)
    schema = handler.received.json.get("response_format")
    said = json.dumps({"reasoning": f"the {number}th", "score": (number % 10) / 10})
    says(said if schema else f"and what about the {number}th printer?")(handler)


def evaluation(url: str, data: Path, output_dir: Path, name: str, **replay) -> RunConfig:
    endpoint = {"kind": "openai", "base_url": url, "max_retries": 0, **replay}
    source = SourceConfig(kind="files", path=str(data), split="test")
    config = run_config(
        Path(),
        output_dir,
        run_name=name,
        tasks=(),
        model_name_or_path="",
        judge=JudgeConfig(model="judge", **endpoint),
        evaluation=EvalConfig(tasks=(TaskConfig("mirrorbench", source=source),), temperature=0.7, bootstrap=50),
    )
    return dataclasses.replace(config, policy=PolicyConfig(model="policy", **endpoint))


def test_kept_replies_repeat_an_evaluation_to_the_byte_without_a_server(tmp_path):
    data = tmp_path / "oasst1_mirror.jsonl"
    rows = [
        {
            "conversation_id": f"c{number}",
            "task_description": "The person wants a printer to work.",
            "turns": [{"role": "user", "content": f"it prints {number} pages and then nothing"}],
        }
        for number in range(5)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    with serving(says("")) as server:

        def behave(handler) -> None:
            handler.received_so_far = server.received
            moody(handler)

        server.script = [behave]
        url = server.base_url
        first = run_evaluation(evaluation(url, data, tmp_path, "first"), [])
        other = run_evaluation(evaluation(url, data, tmp_path, "other"), [])
    kept = {"cache": "replay", "cache_path": str(first / FILE_NAME)}
    again = run_evaluation(evaluation(url, data, tmp_path, "again", **kept), [])
    samples = Path("eval") / "mirrorbench" / "samples_000000.jsonl"
    for file in (samples, Path("evaluation.json"), Path("evaluation.md")):
        assert (again / file).read_bytes() == (first / file).read_bytes()
        assert (other / file).read_bytes() != (first / file).read_bytes()
    changed = dataclasses.replace(evaluation(url, data, tmp_path, "changed", **kept), seed=8)
    with pytest.raises(JudgeUnavailableError, match=r"cache=replay: a reply of policy is not in"):
        run_evaluation(changed, [])
