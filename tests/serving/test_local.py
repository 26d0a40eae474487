"""A policy on this machine behind a real socket: replies do not depend on what else is in flight, and nothing leaks."""

from __future__ import annotations

import asyncio
import json
import time

import httpx2
import jax
import numpy as np
import pytest
import scipy.special

from ditto_jax.policy import load_policy
from ditto_jax.serving.config import EngineConfig
from ditto_jax.serving.local import LocalBackend
from model import llama
from model.partition import make_mesh
from tests.serving.scripted import listening
from tests.tiny_policy import compiled_programs

pytestmark = pytest.mark.usefixtures("quick_compilation")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
STORIES = [
    "Anne puts the ball in the box. Where is it?",
    "Bob enter porch. Bob move melon locker. Where is the melon?",
    "Where?",
    "Cid exit. Gus enter den. Gus move lemon in drawer.",
]


def free(**more):
    """A request without guard."""
    return {"ditto": {"guard": False}, "max_tokens": 16, **more}


def chat(text: str, **more):
    return free(messages=[{"role": "user", "content": text}], **more)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(1, 1, 1, jax.devices()[:1])


@pytest.fixture(scope="module")
def policy(mesh):
    return load_policy("tiny-tom", mesh)


@pytest.fixture(scope="module")
def backend(policy, mesh):
    config = EngineConfig(max_model_len=64, max_completion_tokens=32, max_rows=4, chunk=4)
    return LocalBackend(policy, config, "tiny-tom", mesh)


@pytest.fixture(scope="module")
def client(backend):
    with listening(backend) as url, httpx2.Client(base_url=url, timeout=120) as client:
        yield client


def text_of(response) -> str:
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def together(client, requests):
    """The responses to requests that are in flight at once, in order."""

    async def run():
        async with httpx2.AsyncClient(base_url=client.base_url, timeout=120) as many:
            return await asyncio.gather(*(many.post(path, json=body) for path, body in requests))

    with asyncio.Runner() as runner:
        return runner.run(run())


def test_health_is_told_once_everything_is_compiled_and_then_no_request_compiles(client):
    assert client.get("/health").json() == {"status": "ok"}
    client.post(CHAT, json=chat(STORIES[0], seed=0))  # small programs around the large ones
    with compiled_programs() as compiled:
        for seed, story in enumerate(STORIES):
            settings = {"temperature": 0.5 + seed, "top_k": seed, "top_p": 0.9, "min_p": 0.01 * seed}
            assert text_of(client.post(CHAT, json=chat(story, seed=seed, **settings))) is not None
    assert compiled == []


def test_the_same_seed_gives_the_same_reply_to_the_last_bit_whatever_else_is_in_flight(client):
    """Of a real vocabulary, a probability that is rounded otherwise draws another token now and then."""
    requests = [
        (CHAT, chat(story, seed=seed, temperature=1.0, logprobs=True)) for seed in range(6) for story in STORIES
    ]
    alone = [client.post(path, json=body).json()["choices"] for path, body in requests]
    order = np.random.default_rng(0).permutation(len(requests))
    crowded = together(client, [requests[i] for i in order])
    assert [alone[i] for i in order] == [response.json()["choices"] for response in crowded]
    assert len({choices[0]["message"]["content"] for choices in alone}) > len(requests) // 2


def test_replies_of_one_request_differ_and_a_stream_says_what_a_whole_reply_says(client):
    body = chat(STORIES[0], seed=5, n=3)
    whole = [choice["message"]["content"] for choice in client.post(CHAT, json=body).json()["choices"]]
    assert len(set(whole)) > 1
    shown = ["", "", ""]
    with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                shown[choice["index"]] += choice["delta"].get("content", "")
    assert shown == whole


def test_a_stop_string_ends_the_text_before_it_and_the_count_after_it(client):
    body = {"prompt": STORIES[1], "seed": 1, "temperature": 0, "max_tokens": 24}
    plain = client.post(TEXT, json=body).json()
    text = plain["choices"][0]["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 5]
    cut = client.post(TEXT, json={**body, "stop": [stop]}).json()
    assert cut["choices"][0]["text"] == text[: text.index(stop)]
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < plain["usage"]["completion_tokens"]
    short = client.post(TEXT, json={**body, "max_tokens": 3}).json()
    assert (short["choices"][0]["finish_reason"], short["usage"]["completion_tokens"]) == ("length", 3)


def test_logprobs_are_those_of_the_model_and_prompts_are_scored(client, policy):
    body = {"prompt": STORIES[1], "max_tokens": 6, "temperature": 0, "logprobs": 3, "echo": True}
    choice = client.post(TEXT, json=body).json()["choices"][0]
    prompt = [policy.tokenizer.bos_id, *policy.tokenizer.encode(STORIES[1])]
    found = choice["logprobs"]["token_logprobs"]
    assert found[0] is None and len(found) == len(prompt) + 6 and choice["text"].startswith(STORIES[1])
    ids, drawn = list(prompt), []
    for _ in range(6):
        padded = np.array([ids + [0] * (64 - len(ids))], np.int32)  # later tokens change nothing before them
        scores = np.asarray(llama.apply(policy.params, policy.config, padded))[0]
        logprobs = scipy.special.log_softmax(scores, axis=-1)
        drawn.append(float(logprobs[len(ids) - 1].max()))
        ids.append(int(logprobs[len(ids) - 1].argmax()))
    expected = [float(logprobs[i, ids[i + 1]]) for i in range(len(prompt) - 1)]
    np.testing.assert_allclose(found[1:], expected + drawn, atol=1e-3)
    assert all(len(top) == 3 for top in choice["logprobs"]["top_logprobs"][1:])
    streamed = client.post(CHAT, json=chat(STORIES[1], temperature=0, logprobs=True)).json()["choices"][0]
    scored = client.post(CHAT, json=chat(STORIES[1], temperature=0, logprobs=True, top_logprobs=2)).json()["choices"][0]
    both = [[token["logprob"] for token in choice["logprobs"]["content"]] for choice in (streamed, scored)]
    np.testing.assert_allclose(both[0], both[1], atol=1e-3)


SCHEMA = {
    "type": "object",
    "properties": {"action_type": {"enum": ["speak", "leave"]}, "argument": {"type": "string", "maxLength": 6}},
    "required": ["action_type", "argument"],
    "additionalProperties": False,
}


def test_replies_under_a_schema_satisfy_it_beside_others_that_are_free(client):
    form = {"type": "json_schema", "json_schema": {"name": "action", "schema": SCHEMA}}
    bound = [(CHAT, chat(STORIES[0], seed=seed, max_tokens=32, response_format=form)) for seed in range(3)]
    others = [(CHAT, chat(story, seed=9)) for story in STORIES]
    alone = [text_of(client.post(path, json=body)) for path, body in others]
    responses = together(client, bound + others)
    for response in responses[: len(bound)]:
        choice = response.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            value = json.loads(choice["message"]["content"])
            assert set(value) == {"action_type", "argument"} and value["action_type"] in ("speak", "leave")
        else:
            assert choice["message"]["content"].startswith('{"action_type":"')
    assert [text_of(response) for response in responses[len(bound) :]] == alone


def test_a_schema_that_cannot_be_enforced_is_refused(client):
    form = {"type": "json_schema", "json_schema": {"schema": {"not": {"type": "string"}}}}
    response = client.post(CHAT, json=chat("x", response_format=form))
    assert response.status_code == 400 and "not" in response.json()["error"]["message"]


def test_a_prompt_without_room_is_refused_and_a_long_limit_is_cut_to_the_room(client):
    response = client.post(CHAT, json=chat("ball " * 200))
    assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"
    usage = client.post(TEXT, json={"prompt": STORIES[0], "max_tokens": 5000, "temperature": 2}).json()["usage"]
    assert usage["completion_tokens"] <= 32


def test_clients_that_leave_free_their_slots(client, backend):
    def leave():
        with client.stream("POST", CHAT, json={**chat(STORIES[0], n=16, max_tokens=32), "stream": True}) as response:
            next(response.iter_lines())

    for _ in range(3):
        leave()
    deadline = time.monotonic() + 60
    while client.get("/counters").json()["in_flight"] or sum(backend._engine.busy):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert text_of(client.post(CHAT, json=chat(STORIES[0], seed=0))) is not None
