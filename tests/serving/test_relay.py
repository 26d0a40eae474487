"""The guard in front of any endpoint: what is sent on, what comes back, and that none of it needs jax."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2

from ditto_jax.serving.config import RemoteConfig
from ditto_jax.serving.jobs import House
from ditto_jax.serving.relay import RelayBackend
from tests.judge.server import completion, responds, serving
from tests.serving.scripted import HELLO, client_of

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).resolve().parents[2]
PROBE = responds(200, completion("{}"))


def ask(bodies, *script, house=None):
    """The responses to requests through a relay to a scripted endpoint, and what that has received after the probe."""
    with serving(PROBE, *script) as server:

        async def run():
            config = RemoteConfig(kind="openai", model="far", base_url=server.base_url, max_retries=0)
            async with client_of(RelayBackend(config, {}), house) as client:
                return [await client.post(CHAT, json=body) for body in bodies]

        with asyncio.Runner() as runner:
            responses = runner.run(run())
        return responses, [received.json for received in server.received[1:]]


def test_faulty_replies_of_an_endpoint_are_drawn_again_with_another_seed():
    script = [responds(200, completion("")), responds(200, completion("<think>ok</think>Yes."))]
    (response,), sent = ask([{**HELLO, "seed": 4, "max_tokens": 9, "stop": ["x"]}], *script)
    message = response.json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Yes.", "reasoning_content": "ok"}
    assert response.json()["ditto"]["faults"] == [["empty"]]
    assert sent[0]["seed"] == 4 and len({body["seed"] for body in sent}) == 2
    assert {name: sent[0][name] for name in ("model", "max_tokens", "stop")} == {
        "model": "far",
        "max_tokens": 9,
        "stop": ["x"],
    }
    assert response.json()["usage"] == {"prompt_tokens": 11, "completion_tokens": 14, "total_tokens": 25}


def test_roles_are_turned_for_the_endpoint_and_the_end_is_told():
    body = {
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "How can I help?"}],
        "ditto": {"role_convention": "native", "end_token": "###STOP###"},
        "model": "ditto:userllm",
    }
    (response,), sent = ask([body], responds(200, completion("<|endconversation|>")))
    assert sent[0]["messages"][0]["role"] == "user" and "How can I help?" in sent[0]["messages"][0]["content"]
    assert response.json()["choices"][0]["message"]["content"] == "###STOP###"
    assert response.headers["x-ditto-end"] == "true"


def test_tools_and_their_results_are_sent_on_as_they_are():
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Look at your bill."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12 euros", "tool_call_id": "c1"},
    ]
    tool = {"type": "function", "function": {"name": "look"}}
    reply = json.loads(completion(None))
    reply["choices"][0]["message"]["tool_calls"] = [call]
    responses, sent = ask([{"messages": messages, "tools": [tool]}], responds(200, json.dumps(reply).encode()))
    assert sent[0]["messages"][1]["tool_calls"] == [call] and sent[0]["messages"][2]["tool_call_id"] == "c1"
    assert sent[0]["tools"] == [tool]
    assert responses[0].json()["choices"][0]["finish_reason"] == "tool_calls"


def test_failures_of_the_endpoint_are_told_apart():
    error = json.dumps({"error": {"message": "too long"}}).encode()
    script = [responds(400, error), responds(500, error)]
    (rejected, failed), _ = ask([HELLO, HELLO], *script)
    assert rejected.status_code == 400 and "too long" in rejected.json()["error"]["message"]
    assert failed.status_code == 502


def test_what_an_endpoint_cannot_do_is_refused():
    (response,), sent = ask([{**HELLO, "logprobs": True}])
    assert response.status_code == 400 and not sent


def test_a_house_preset_applies_to_requests_that_name_none():
    (response,), sent = ask([HELLO], responds(200, completion("well")), house=House("ditto", "mirrorbench"))
    assert response.status_code == 200 and sent[0]["messages"][0]["role"] == "system"


_WITHOUT_JAX = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "safetensors"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
from launch.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_server_that_is_told_to_stop_finishes_what_is_in_flight_and_needs_no_jax():
    asked, told = threading.Event(), threading.Event()

    def slow(handler):
        asked.set()
        told.wait(30)
        time.sleep(0.2)  # the signal has been taken
        responds(200, completion("I want my money back."))(handler)

    with serving(PROBE, slow) as server, concurrent.futures.ThreadPoolExecutor() as threads:
        words = ["serve", "--backend", "openai", "--base_url", server.base_url, "--model", "far", "--port", "0"]
        program = [sys.executable, "-c", _WITHOUT_JAX, *words]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            url = process.stdout.readline().split(" at ")[1].strip()
            reply = threads.submit(httpx2.post, f"{url}/chat/completions", json=HELLO, timeout=60)
            try:
                assert asked.wait(60)
                process.terminate()
                told.set()
                assert reply.result().json()["choices"][0]["message"]["content"] == "I want my money back."
                assert process.wait(300) == 0
            finally:
                process.kill()


def test_talking_to_an_endpoint_needs_no_jax():
    with serving(PROBE, responds(200, completion("I want my money back."))) as server:
        words = ["chat", "--backend", "openai", "--base_url", server.base_url, "--model", "far"]
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_JAX, *words],
            input="How can I help?\n/quit\n",
            capture_output=True,
            text=True,
            timeout=120,
            cwd=ROOT,
        )
    assert done.returncode == 0, done.stderr
    assert "ditto> I want my money back." in done.stdout
