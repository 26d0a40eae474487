"""Requests as programs send them that are not installed beside this project: each is answered as they need it."""

from __future__ import annotations

import asyncio
import json

from ditto_jax.serving.ask import TokenScore
from ditto_jax.serving.jobs import House
from tests.serving.scripted import ScriptedBackend, client_of, says, whole

SYSTEM = {"role": "system", "content": "You are a customer. You want a refund."}
ACTION = {
    "type": "object",
    "properties": {"action_type": {"enum": ["none", "speak", "leave"]}, "argument": {"type": "string"}},
    "required": ["action_type", "argument"],
    "additionalProperties": False,
}


def post(script, body, path="/v1/chat/completions", house=None):
    backend = ScriptedBackend(script)

    async def run():
        async with client_of(backend, house) as client:
            return await client.post(path, json=body)

    with asyncio.Runner() as runner:
        response = runner.run(run())
    assert response.status_code == 200, response.text
    return response.json(), backend


def test_tau2_gets_its_stop_sign_in_the_text():
    body = {
        "model": "ditto",
        "messages": [SYSTEM, {"role": "user", "content": "Hi! How can I help you today?"}],
        "temperature": 0.0,
        "seed": 300,
        "stream": False,
        "tools": None,
        "tool_choice": None,
    }
    value, backend = post(says("thanks ###STOP###"), body, house=House("ditto", "tau2"))
    assert value["choices"][0]["message"]["content"] == "thanks ###STOP###" and value["ditto"]["end"] == [True]
    assert [said.role for said in backend.asks[0].chat] == ["system", "user"]


def test_tau2_gives_tools_to_the_user_and_never_gets_an_empty_turn():
    tool = {"type": "function", "function": {"name": "toggle_roaming", "description": "…", "parameters": {}}}
    call = {"id": "c1", "type": "function", "function": {"name": "toggle_roaming", "arguments": "{}"}}
    body = {
        "model": "ditto",
        "messages": [
            SYSTEM,
            {"role": "user", "content": "Please turn on roaming."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "Roaming is ON."},
        ],
        "tools": [tool],
        "tool_choice": "auto",
        "seed": 1,
    }
    value, backend = post(says("", "It is on now."), body, house=House("ditto", "tau2"))
    assert value["choices"][0]["message"]["content"] == "It is on now."
    assert backend.asks[0].chat[-1].tool_call_id == "c1"


def test_sotopia_gets_an_action_under_its_schema():
    said = json.dumps({"action_type": "speak", "argument": "hello"})
    form = {"type": "json_schema", "json_schema": {"name": "AgentAction", "schema": ACTION, "strict": True}}
    body = {
        "model": "ditto",
        "messages": [{"role": "user", "content": "Imagine you are Ida …"}],
        "temperature": 0.7,
        "drop_params": True,
        "response_format": form,
    }
    value, backend = post(says(said), body)
    assert value["choices"][0]["message"]["content"] == said and backend.asks[0].schema == ACTION


def test_mirrorbench_sends_real_roles():
    body = {
        "model": "ditto:mirrorbench",
        "messages": [SYSTEM, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}],
        "ditto": {"role_convention": "native"},
    }
    _, backend = post(says("well"), body)
    chat = backend.asks[0].chat
    assert [said.role for said in chat] == ["system", "user", "assistant", "user"] and "Hello!" in chat[-1].content


def test_collabllm_and_others_put_everything_into_one_message():
    said = json.dumps({"current_answer": "", "thought": "", "response": "ok"})
    body = {"model": "openai/ditto", "messages": [{"role": "user", "content": "You are role-playing …"}]}
    body["model"] = "ditto"
    value, _ = post(says(said), {**body, "num_retries": 10, "response_format": {"type": "json_object"}})
    assert json.loads(value["choices"][0]["message"]["content"])["response"] == "ok"


def test_lm_eval_scores_prompts_of_ids():
    tokens = tuple(TokenScore(f"t{i}", None if not i else -0.5 * i, ((f"t{i}", -0.5 * i),)) for i in range(3))
    body = {"model": "ditto", "prompt": [[5, 6, 7]], "max_tokens": 0, "temperature": 0, "logprobs": 1, "echo": True}
    value, backend = post(
        lambda ask: [whole("t0t1t2", "length", tokens=tokens)], {**body, "seed": 1234}, "/v1/completions"
    )
    found = value["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [None, -0.5, -1.0] and found["top_logprobs"] == [None, {"t1": -0.5}, {"t2": -1.0}]
    assert backend.asks[0].prompt == (5, 6, 7) and backend.asks[0].top_logprobs == 1
