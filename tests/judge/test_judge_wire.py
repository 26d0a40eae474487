"""What leaves the machine: one request format, one host, one header with the key; waits as the server asks for them."""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import json
import logging
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError, DittoError, JudgeUnavailableError, MissingInputError
from ditto_jax.judge.endpoint import resolve_endpoint
from ditto_jax.judge.openai import OpenAIJudge
from ditto_jax.judge.retry import MAX_BACKOFF_S, retry_after_s
from ditto_jax.tasks.base import FeedbackReply
from ditto_jax.types import Outcome
from tests.judge.quiz import DRAFT, KEY, KEY_ENV, Sleeper, ask, make_openai_judge, openai_config
from tests.judge.server import fails, gives_feedback, responds, says, serving

NOW = 1_700_000_000.0


def test_the_request_states_model_limits_and_schema_in_both_places():
    with serving(gives_feedback()) as server:
        ask(make_openai_judge(server.base_url, max_tokens=77, temperature=0.5))
        [request] = server.received
    assert request.path == "/v1/chat/completions"
    body = request.json
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("tiny-judge", 77, 0.5)
    assert body["response_format"]["json_schema"]["schema"] == FeedbackReply.model_json_schema()
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert json.dumps(FeedbackReply.model_json_schema()) in body["messages"][1]["content"]
    assert DRAFT.reply in body["messages"][1]["content"]


def test_settings_for_other_endpoints_change_only_their_fields():
    with serving(gives_feedback()) as server:
        settings = {"max_tokens_parameter": "max_completion_tokens", "reasoning_effort": "low", "temperature": None}
        ask(make_openai_judge(server.base_url, response_format="json_object", **settings))
        ask(make_openai_judge(server.base_url, response_format="none"))
        special, plain = (request.json for request in server.received)
    assert special["response_format"] == {"type": "json_object"}
    assert (special["max_completion_tokens"], special["reasoning_effort"]) == (1024, "low")
    assert not {"max_tokens", "temperature"} & special.keys()
    assert not {"response_format", "reasoning_effort"} & plain.keys()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_host_but_the_configured_one_is_contacted(status: int, monkeypatch: pytest.MonkeyPatch):
    with (
        serving(gives_feedback()) as other,
        serving(responds(status, Location=f"{other.base_url}/chat/completions")) as own,
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.base_url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("OPENAI_BASE_URL", other.base_url)
        [feedback] = ask(make_openai_judge(own.base_url))
        assert len(own.received) == 1
        assert other.received == []
    assert feedback.outcome is Outcome.UNAVAILABLE


def test_the_key_travels_in_the_authorization_header_alone():
    with serving(gives_feedback()) as server:
        ask(make_openai_judge(server.base_url))
        [request] = server.received
    carriers = [name for name, value in request.headers.items() if KEY in value]
    assert carriers == ["Authorization"]
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in request.raw + request.path


def test_without_a_key_no_authorization_is_sent():
    with serving(gives_feedback()) as server:
        config = openai_config(server.base_url, api_key_env=None)
        ask(OpenAIJudge(config, environ={}))
        ask(OpenAIJudge(config, environ={"OPENAI_API_KEY": "usual"}))
        assert [request.headers.get("Authorization") for request in server.received] == [None, "Bearer usual"]


def test_the_key_is_in_no_repr_log_detail_or_exception(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    # The key straddles the place where long messages are cut.
    echo = f"{'x ' * 140}wrong key {KEY}"
    said: list[object] = []
    with serving(fails(401, echo), fails(500, KEY), says(f"{KEY} is no JSON")) as server:
        judge = make_openai_judge(server.base_url)
        with pytest.raises(JudgeUnavailableError) as raised:
            asyncio.run(judge.check())
        said += traceback.format_exception(raised.value)
        said += ask(judge, times=2)
        said += [
            judge,
            judge.identity,
            vars(judge),
            vars(judge._client),
            vars(judge._endpoint.credentials),
            judge.counters(),
        ]
    text = "\n".join(f"{item!s}\n{item!r}" for item in said) + caplog.text
    assert "sk-a-key" not in text  # not even its beginning
    assert "wrong key [key]" in text


def test_retry_after_is_honoured_in_each_of_its_forms():
    date = email.utils.formatdate(NOW + 17, usegmt=True)
    script = [
        fails(429, Retry_After="7"),
        fails(503, Retry_After=date),
        fails(429, retry_after_ms="1500", Retry_After="99"),
        gives_feedback(),
    ]
    with serving(*script) as server:
        sleeper = Sleeper()
        [feedback] = ask(make_openai_judge(server.base_url, sleeper, now=NOW))
    assert feedback.usable
    assert sleeper.asked == [7.0, 17.0, 1.5]


def test_backoff_without_retry_after_is_jittered_growing_and_capped():
    with serving(fails(500)) as server:
        sleepers = [Sleeper() for _ in range(4)]
        for sleeper in sleepers:
            ask(make_openai_judge(server.base_url, sleeper, max_retries=12))
    for attempt, waits_s in enumerate(zip(*(sleeper.asked for sleeper in sleepers), strict=True)):
        assert all(0 <= wait_s <= min(MAX_BACKOFF_S, 2.0**attempt) for wait_s in waits_s)
        assert len(set(waits_s)) == 4
    assert max(max(sleeper.asked) for sleeper in sleepers) > 8


def test_an_unparsable_reply_is_asked_again_at_once():
    with serving(says("no"), gives_feedback()) as server:
        sleeper = Sleeper()
        assert ask(make_openai_judge(server.base_url, sleeper))[0].usable
    assert sleeper.asked == [0.0]


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"]), st.text() | st.floats().map(str)))
def test_no_retry_after_header_can_break_the_client(headers: dict[str, str]):
    seconds = retry_after_s(headers, NOW)
    assert seconds is None or 0 <= seconds < float("inf")


def test_check_passes_on_one_token_and_counts_its_call():
    with serving(says("{", finish_reason="length")) as server:
        judge = make_openai_judge(server.base_url)
        asyncio.run(judge.check())
        [request] = server.received
    assert request.json["max_tokens"] == 1
    assert "response_format" in request.json
    assert judge.counters()["calls"] == 1


@pytest.mark.parametrize(
    ("behaviour", "parts"),
    [
        (fails(401, "bad key"), ["HTTP 401: bad key", f"environment variable {KEY_ENV}", "judge.api_key_env"]),
        (fails(404, "no such model"), ["HTTP 404: no such model", "/v1", "judge.model=tiny-judge"]),
        (fails(400, "unknown field"), ["HTTP 400: unknown field", "judge.response_format=json_object"]),
        (fails(429, "quota"), ["HTTP 429: quota", "judge.max_concurrent"]),
        (fails(500, "broken"), ["HTTP 500: broken", "judge.kind=rules"]),
        (responds(200, b"<html></html>"), ["not a chat completion", "judge.base_url"]),
        (responds(308, Location="http://elsewhere.invalid/"), ["HTTP 308", "judge.base_url"]),
    ],
)
def test_check_says_where_what_and_what_to_do(behaviour, parts: list[str]):
    with serving(behaviour) as server:
        judge = make_openai_judge(server.base_url)
        with pytest.raises(JudgeUnavailableError) as raised:
            asyncio.run(judge.check())
        for part in [server.base_url, "from judge.base_url", *parts]:
            assert part in str(raised.value)


def test_the_endpoint_comes_from_the_settings_or_the_environment_and_never_from_nowhere():
    config = openai_config("http://127.0.0.1:1/v1/")
    environ = {KEY_ENV: f" {KEY}\n", "OPENAI_BASE_URL": "http://127.0.0.1:2/v1"}
    assert resolve_endpoint(config, environ).url == "http://127.0.0.1:1/v1"
    unset = dataclasses.replace(config, base_url=None)
    endpoint = resolve_endpoint(unset, environ)
    assert endpoint.url == "http://127.0.0.1:2/v1"
    assert "OPENAI_BASE_URL" in endpoint.url_origin
    key = endpoint.credentials.known
    assert key is not None and key.get_secret_value() == KEY
    with pytest.raises(ConfigError, match="neither is OPENAI_BASE_URL"):
        resolve_endpoint(unset, {KEY_ENV: KEY})
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        resolve_endpoint(unset, {KEY_ENV: KEY, "OPENAI_BASE_URL": "ftp://x"})


def test_a_named_key_that_is_not_set_is_missing_input_and_a_broken_one_is_not_shown():
    config = openai_config("http://127.0.0.1:1/v1")
    with pytest.raises(MissingInputError, match=KEY_ENV):
        OpenAIJudge(config, environ={})
    for broken in (f"{KEY} x", f"{KEY}\nx", f"{KEY}é"):
        with pytest.raises(DittoError) as raised:
            OpenAIJudge(config, environ={KEY_ENV: broken})
        assert KEY not in str(raised.value)
