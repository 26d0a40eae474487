"""The routes speak OpenAI's format: whole and streamed replies, errors with reasons, the guard, rude clients."""

from __future__ import annotations

import asyncio
import json
import logging

import numpy as np
import pytest

from ditto_jax.policy import find_policy
from ditto_jax.serving.ask import BackendError, Piece
from ditto_jax.serving.jobs import House
from ditto_jax.serving.tools import forced_schema
from ditto_jax.text.grammar import Grammars
from ditto_jax.text.tokenizer import SentencePieceTokenizer, load_tokenizer
from tests.serving.scripted import HELLO, ScriptedBackend, client_of, events_of, says, whole

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def post(script, body, path=CHAT, house=None, backend=None, **options):
    """The response to one request, and the backend that was asked."""
    backend = backend or ScriptedBackend(script)

    async def run():
        async with client_of(backend, house, **options) as client:
            content = body if isinstance(body, (bytes, str)) else json.dumps(body)
            headers = options.get("headers", {})
            return await client.post(path, content=content, headers=headers)

    with asyncio.Runner() as runner:
        return runner.run(run()), backend


def test_a_whole_reply_has_text_reason_usage_and_the_seed_that_repeats_it():
    response, backend = post(says("hi there"), {**HELLO, "seed": 7, "n": 2, "model": "ditto:plain"})
    value = response.json()
    assert response.status_code == 200 and value["object"] == "chat.completion" and value["model"] == "ditto:plain"
    assert [choice["message"] for choice in value["choices"]] == [{"role": "assistant", "content": "hi there"}] * 2
    assert [choice["index"] for choice in value["choices"]] == [0, 1]
    assert value["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    assert value["ditto"]["seed"] == 7 and [ask.number for ask in backend.asks] == [0, 1]
    assert backend.started and backend.closed and not backend.open


def test_settings_of_requests_reach_the_model():
    body = {**HELLO, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop": "x", "max_completion_tokens": 9, "seed": 1}
    _, backend = post(says("ok"), {**body, "max_tokens": 3})
    ask = backend.asks[0]
    assert (ask.temperature, ask.top_p, ask.top_k, ask.stop, ask.max_tokens) == (0.5, 0.9, 4, ("x",), 9)


def test_faulty_replies_are_drawn_again_and_counted():
    backend = ScriptedBackend(says("", "<think>hm", "Hello."))
    response, _ = post(None, HELLO, backend=backend)
    value = response.json()
    assert value["choices"][0]["message"]["content"] == "Hello."
    assert value["ditto"]["faults"] == [["empty", "thinking"]]
    assert [ask.attempt for ask in backend.asks] == [0, 1, 2]
    assert value["usage"]["completion_tokens"] == 0 + 2 - 1 + 1  # of all tries


def test_a_greedy_reply_is_not_drawn_again_as_it_was():
    _, backend = post(says("", "ok"), {**HELLO, "temperature": 0})
    assert [ask.temperature for ask in backend.asks] == [0, 1.0]


def test_without_a_usable_reply_the_request_fails_with_the_reasons():
    response, backend = post(says("Assistant: hello"), {**HELLO, "ditto": {"attempts": 2}})
    assert response.status_code == 502 and "other_speaker, other_speaker" in response.json()["error"]["message"]
    assert len(backend.asks) == 2


def test_without_a_guard_replies_come_as_they_are():
    response, _ = post(says(" Assistant: <think>"), {**HELLO, "ditto": {"guard": False}})
    assert response.json()["choices"][0]["message"]["content"] == " Assistant: <think>"


def test_counters_tell_what_happened():
    backend = ScriptedBackend(says("", "ok"))

    async def run():
        async with client_of(backend) as client:
            await client.post(CHAT, json=HELLO)
            return (await client.get("/counters")).json()

    with asyncio.Runner() as runner:
        counters = runner.run(run())
    found = {name: counters[name] for name in ("replies", "redrawn", "gave_up", "fault/empty", "in_flight")}
    assert found == {"replies": 1, "redrawn": 1, "gave_up": 0, "fault/empty": 1, "in_flight": 0}


def test_the_end_of_a_conversation_is_in_the_header_and_the_body():
    house = House("ditto", "userllm")
    response, _ = post(lambda ask: [whole("bye <|endconversation|>")], HELLO, house=house)
    assert response.headers["x-ditto-end"] == "true" and response.json()["ditto"]["end"] == [True]
    assert response.json()["choices"][0]["message"]["content"] == "bye"
    response, _ = post(says("well"), HELLO, house=house)
    assert "x-ditto-end" not in response.headers


def pieces(*texts):
    return lambda ask: [*(Piece(t) for t in texts), Piece("", "length", prompt_tokens=3, completion_tokens=len(texts))]


def test_a_stream_without_guard_shows_pieces_as_they_come():
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}, "ditto": {"guard": False}}
    response, _ = post(pieces("he", "llo"), body)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events_of(response.text)
    deltas = [event["choices"][0]["delta"] for event in found[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "he"}, {"content": "llo"}, {}]
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert found[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert {event["object"] for event in found} == {"chat.completion.chunk"} and len({e["id"] for e in found}) == 1


def test_a_guarded_stream_shows_nothing_of_faulty_replies():
    response, _ = post(says("<think>secret", "Hello."), {**HELLO, "stream": True})
    assert "secret" not in response.text
    found = events_of(response.text)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in found) == "Hello."
    assert found[-1]["ditto"]["faults"] == ["thinking"]


def test_streams_of_several_replies_keep_them_apart():
    script = lambda ask: [Piece(f"{ask.number}a"), Piece(f"{ask.number}b", "stop")]  # noqa: E731
    response, _ = post(script, {**HELLO, "stream": True, "n": 3, "ditto": {"guard": False}})
    texts = {}
    for event in events_of(response.text):
        choice = event["choices"][0]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
    assert texts == {0: "0a0b", 1: "1a1b", 2: "2a2b"}


def test_a_stream_that_fails_says_so():
    response, _ = post(says(""), {**HELLO, "stream": True, "ditto": {"attempts": 1}})
    assert "no usable reply" in events_of(response.text)[-1]["error"]["message"]


def test_tools_are_told_called_and_answered():
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "bill"}}\n</tool_call>'
    response, backend = post(says(call), {**HELLO, "tools": [TOOL]})
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    function = choice["message"]["tool_calls"][0]["function"]
    assert function["name"] == "look" and json.loads(function["arguments"]) == {"at": "bill"}
    assert backend.asks[0].tools[0]["function"]["name"] == "look"


@pytest.mark.parametrize("cut", ["of no known tool", "cut off", "no JSON"])
def test_a_call_that_cannot_be_read_is_drawn_again_and_never_shown_as_speech(cut):
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    broken = {
        "of no known tool": call.replace("look", "delete"),
        "cut off": call[:-14],
        "no JSON": call.replace(":", ""),
    }
    response, _ = post(says(f"Wait. {broken[cut]}", "I see."), {**HELLO, "tools": [TOOL]})
    value = response.json()
    assert value["choices"][0]["message"]["content"] == "I see." and value["ditto"]["faults"] == [["broken_call"]]
    response, _ = post(says(f"Wait. {broken[cut]}"), HELLO)  # where there are no tools, it is text like any other
    assert response.json()["choices"][0]["message"]["content"].startswith("Wait. <tool_call>")


def test_a_required_call_that_was_cut_off_is_drawn_again():
    body = {**HELLO, "tools": [TOOL], "tool_choice": "required"}
    response, _ = post(says('{"name": "look", "arg', '{"name": "look", "arguments": {}}'), body)
    value = response.json()
    assert value["choices"][0]["finish_reason"] == "tool_calls" and value["ditto"]["faults"] == [["broken_call"]]


def test_tau2_gets_a_message_or_a_call_and_others_may_get_both():
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    script, body = says(f"One moment. {call}", call), {**HELLO, "tools": [TOOL]}
    value = post(script, {**body, "model": "ditto:tau2"})[0].json()
    assert value["choices"][0]["message"]["content"] is None and value["ditto"]["faults"] == [["speech_and_call"]]
    message = post(script, body)[0].json()["choices"][0]["message"]
    assert message["content"] == "One moment." and len(message["tool_calls"]) == 1


def test_a_required_tool_is_a_schema_of_the_reply():
    said = '{"name": "look", "arguments": {}}'
    response, backend = post(says(said), {**HELLO, "tools": [TOOL], "tool_choice": "required"})
    assert backend.asks[0].schema["anyOf"][0]["properties"]["name"] == {"const": "look"}
    assert response.json()["choices"][0]["finish_reason"] == "tool_calls"


def test_a_required_call_obeys_what_the_schema_of_its_tool_refers_to():
    pytest.importorskip("llguidance", reason="install the serve extra: pip install 'ditto-jax[serve]'")
    mode = {"enum": ["4g", "5g"], "type": "string"}
    parameters = {
        "type": "object",
        "properties": {"mode": {"$ref": "#/$defs/Mode"}, "older": {"items": {"$ref": "#/$defs/Mode"}, "type": "array"}},
        "required": ["mode"],
        "$defs": {"Mode": mode},
    }
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("set/it", "look")]
    schema = forced_schema(tools, "required")
    tokenizer = load_tokenizer(find_policy("tiny-tom"))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    pieces = tokenizer.piece_bytes()

    def is_possible(said: str) -> bool:
        mask, rest = Grammars(tokenizer, len(pieces), [7, 2]).json(schema), said.encode()
        while rest:
            words = np.zeros(-(-len(pieces) // 32), np.int32)
            mask.fill(words)
            fits = [i for i, piece in enumerate(pieces) if piece and rest.startswith(piece)]
            fits = [i for i in fits if words[i // 32] >> (i % 32) & 1]
            if not fits:
                return False
            longest = max(fits, key=lambda i: len(pieces[i]))
            mask.take(longest)
            rest = rest[len(pieces[longest]) :]
        return True

    assert is_possible('{"name":"look","arguments":{"mode":"5g","older":["4g"]}}')
    assert is_possible('{"name":"set/it","arguments":{"mode":"4g"}}')
    assert not is_possible('{"name":"look","arguments":{"mode":"3g"}}')
    assert not is_possible('{"name":"look","arguments":{"mode":"5g","older":["x"]}}')
    assert not is_possible('{"name":"look","arguments":{"mode":"5g","loud":1}}')  # it declares no such argument


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text"),
        ({"messages": [{"role": "robot", "content": ""}]}, 400, "role"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 65}, 400, "at most 64"),
        ({"stop": ""}, 400, "end every reply"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty: not supported"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias"),
        ({"response_format": {"type": "json_schema"}}, 400, "json_schema"),
        ({"tool_choice": "required"}, 400, "no tools"),
        ({"top_logprobs": 2}, 400, "logprobs=true"),
        ({"logprobs": True, "top_logprobs": 2, "stream": True}, 400, "whole replies"),
        ({"ditto": {"guards": True}}, 400, "ditto.guards"),
        ({"ditto": {"persona": {"nmae": "x"}}}, 400, "did you mean 'name'"),
        ({"model": "gpt-5"}, 404, "not served"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(change, status, reason):
    response, backend = post(says("ok"), {**HELLO, **change})
    assert response.status_code == status and reason in response.json()["error"]["message"]
    assert not backend.asks


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 5000])
def test_a_body_that_is_no_request_is_refused(body):
    response, _ = post(says("ok"), body)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_too_large_is_not_read_to_its_end():
    response, _ = post(says("ok"), b" " * 2000, max_body_bytes=1000)
    assert response.status_code == 413


def test_unknown_fields_are_ignored_and_told_once(caplog):
    with caplog.at_level(logging.WARNING, "ditto_jax.serving"):
        for _ in range(3):
            response, _ = post(says("ok"), {**HELLO, "shiny": 1, "user": "me", "reasoning_effort": "low"})
            assert response.status_code == 200
    assert [record.getMessage() for record in caplog.records if "shiny" in record.getMessage()] == [
        "field 'shiny' of a request is not known and was ignored (told once)"
    ]
    assert "reasoning_effort" not in caplog.text


def test_a_key_is_asked_of_everything_but_health():
    async def run():
        async with client_of(ScriptedBackend(says("ok")), key="secret") as client:
            health = await client.get("/health")
            bare = await client.post(CHAT, json=HELLO)
            wrong = await client.get("/v1/models", headers={"Authorization": "Bearer secrets"})
            right = await client.post(CHAT, json=HELLO, headers={"Authorization": "Bearer secret"})
            return [one.status_code for one in (health, bare, wrong, right)]

    with asyncio.Runner() as runner:
        assert runner.run(run()) == [200, 401, 401, 200]


def test_models_are_listed_with_their_presets():
    async def run():
        async with client_of(ScriptedBackend(says("ok"))) as client:
            return (await client.get("/v1/models")).json()

    with asyncio.Runner() as runner:
        names = [model["id"] for model in runner.run(run())["data"]]
    assert names[0] == "ditto" and "ditto:sotopia" in names and "ditto:tau2" in names


class _Stuck(ScriptedBackend):
    """Replies never end."""

    async def reply(self, ask):
        self.open += 1
        try:
            yield Piece("well")
            await asyncio.Event().wait()
        finally:
            self.open -= 1


def test_a_client_that_leaves_ends_the_work_for_it_and_too_many_are_told_to_come_back():
    backend = _Stuck(says(""))

    async def run():
        async with client_of(backend, max_waiting=2) as client:
            tasks = [asyncio.create_task(client.post(CHAT, json=HELLO)) for _ in range(2)]
            while backend.open < 2:
                await asyncio.sleep(0)
            busy = await client.post(CHAT, json=HELLO)
            assert busy.status_code == 429 and busy.headers["retry-after"] == "1"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return backend.open

    with asyncio.Runner() as runner:
        assert runner.run(run()) == 0


def test_a_backend_that_fails_is_a_bad_gateway():
    def fails(ask):
        raise BackendError("the engine is gone")

    response, _ = post(fails, HELLO)
    assert response.status_code == 502 and "the engine is gone" in response.json()["error"]["message"]


def test_text_completions_continue_several_prompts():
    body = {"prompt": ["one", "two"], "n": 2, "max_tokens": 3}
    response, _ = post(lambda ask: [whole(f" {ask.prompt}{ask.number}")], body, TEXT)
    assert [choice["text"] for choice in response.json()["choices"]] == [" one0", " one1", " two0", " two1"]
    assert response.json()["usage"]["prompt_tokens"] == 10
    response, _ = post(says("x"), {"prompt": "one", "max_tokens": 0}, TEXT)
    assert response.status_code == 400 and "echo=true" in response.json()["error"]["message"]
