"""The recipe of the openai client, with the real package (extra `recipes`)."""

from __future__ import annotations

import pytest

from ditto_jax.serving.ask import Piece
from ditto_jax.serving.jobs import House
from tests.serving.scripted import ScriptedBackend, listening, says, whole

openai = pytest.importorskip("openai", reason="install the recipes extra: pip install 'ditto-jax[recipes]'")

CHAT = [
    {"role": "system", "content": "You want a refund."},
    {"role": "assistant", "content": "hi, my shoes are too small"},
    {"role": "user", "content": "Which order?"},
]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def client_of(url, **options):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=60, **options)


def test_a_reply_its_end_and_the_models_list():
    backend = ScriptedBackend(lambda ask: [whole("number 12 <|endconversation|>")])
    with listening(backend, House("ditto")) as url, client_of(url) as client:
        reply = client.chat.completions.create(
            model="ditto:userllm",
            messages=CHAT,
            seed=1,
            max_completion_tokens=20,
            reasoning_effort="low",
            extra_body={"ditto": {"end_token": "###STOP###"}},
        )
        names = [model.id for model in client.models.list()]
    assert reply.choices[0].message.content == "number 12\n###STOP###" and reply.usage.completion_tokens == 3
    assert reply.choices[0].finish_reason == "stop" and "ditto:userllm" in names


def test_streams_and_tools():
    pieces = [Piece("twe"), Piece("lve"), Piece("", "stop", prompt_tokens=4, completion_tokens=2)]
    with listening(ScriptedBackend(lambda ask: pieces)) as url, client_of(url) as client:
        options = {"stream": True, "stream_options": {"include_usage": True}, "extra_body": {"ditto": {"guard": False}}}
        chunks = list(client.chat.completions.create(model="ditto", messages=CHAT, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "twelve"
    assert chunks[-1].usage.total_tokens == 6
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    with listening(ScriptedBackend(says(call))) as url, client_of(url) as client:
        reply = client.chat.completions.create(model="ditto", messages=CHAT, tools=[TOOL])
    assert reply.choices[0].message.tool_calls[0].function.name == "look"


def test_errors_are_those_that_the_client_knows():
    with listening(ScriptedBackend(says("")), key="secret") as url, client_of(url) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        client.api_key = "secret"
        with pytest.raises(openai.BadRequestError, match="frequency_penalty"):
            client.chat.completions.create(model="ditto", messages=CHAT, frequency_penalty=1.0)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-5", messages=CHAT)
        with pytest.raises(openai.InternalServerError, match="no usable reply"):
            client.chat.completions.create(model="ditto", messages=CHAT)


def test_text_completions():
    with listening(ScriptedBackend(says(" there"))) as url, client_of(url) as client:
        reply = client.completions.create(model="ditto", prompt="hello", max_tokens=3)
    assert reply.choices[0].text == " there"
