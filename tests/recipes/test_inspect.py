"""The recipe of inspect_ai, with the real package (extra `recipes`): the simulator as the model of the role `user`."""

from __future__ import annotations

import asyncio

import pytest

from tests.serving.scripted import ScriptedBackend, listening, says

pytest.importorskip("inspect_ai", reason="install the recipes extra: pip install 'ditto-jax[recipes]'")
pytest.importorskip("openai", reason="install the recipes extra: pip install 'ditto-jax[recipes]'")

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
