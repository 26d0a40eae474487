"""Every way in which an endpoint can behave ends in its outcome, counted, and no failure text becomes feedback."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from ditto_jax.judge.completion import MAX_BODY_BYTES
from ditto_jax.types import Outcome
from tests.judge.quiz import DRAFT, EXAMPLE, QUIZ, WRONG, Sleeper, ask, call_key, make_openai_judge
from tests.judge.server import (
    WORDS,
    completion,
    drops_mid_body,
    fails,
    gives_feedback,
    resets,
    responds,
    says,
    serving,
    waits,
)

GOOD = json.dumps({"feedback": WORDS})
MARK = "MARKER-OF-A-FAILURE"

# name: (script, outcome, HTTP requests, part of the detail). Budgets: 3 retries, 1 further after an unparsable reply.
CASES = {
    "answers": ([gives_feedback()], Outcome.OK, 1, ""),
    "answers in a code fence": ([says(f"Here you are:\n```json\n{GOOD}\n```\nBye.")], Outcome.OK, 1, ""),
    "answers after thinking": ([says(f"<think>maybe {{}}</think>{GOOD}")], Outcome.OK, 1, ""),
    "500 then recovers": ([fails(500, MARK), fails(503, MARK), gives_feedback()], Outcome.OK, 3, ""),
    "resets then recovers": ([resets, gives_feedback()], Outcome.OK, 2, ""),
    "drops mid-body then recovers": ([drops_mid_body, gives_feedback()], Outcome.OK, 2, ""),
    "always drops mid-body": ([drops_mid_body], Outcome.UNAVAILABLE, 4, "connection failed"),
    "always resets": ([resets], Outcome.UNAVAILABLE, 4, "connection failed"),
    "always 500": ([fails(500, MARK)], Outcome.UNAVAILABLE, 4, "HTTP 500"),
    "always 429": ([fails(429, MARK)], Outcome.UNAVAILABLE, 4, "HTTP 429"),
    "408 then recovers": ([fails(408), gives_feedback()], Outcome.OK, 2, ""),
    "409 then recovers": ([fails(409), gives_feedback()], Outcome.OK, 2, ""),
    "425 then recovers": ([fails(425), gives_feedback()], Outcome.OK, 2, ""),
    "400": ([fails(400, MARK), gives_feedback()], Outcome.UNAVAILABLE, 1, "HTTP 400"),
    "401": ([fails(401, MARK), gives_feedback()], Outcome.UNAVAILABLE, 1, "HTTP 401"),
    "403": ([fails(403, MARK), gives_feedback()], Outcome.UNAVAILABLE, 1, "HTTP 403"),
    "404 wrong model": ([fails(404, MARK), gives_feedback()], Outcome.UNAVAILABLE, 1, "HTTP 404"),
    "422": ([fails(422, MARK), gives_feedback()], Outcome.UNAVAILABLE, 1, "HTTP 422"),
    "filter as error": ([fails(400, MARK, code="content_filter")], Outcome.REFUSED, 1, "HTTP 400"),
    "filter as finish reason": ([says(MARK, finish_reason="content_filter")], Outcome.REFUSED, 1, "content filter"),
    "refusal field": ([says(None, refusal=MARK)], Outcome.REFUSED, 1, "refused"),
    "refusal beside words": ([says(GOOD, refusal=MARK)], Outcome.REFUSED, 1, "refused"),
    "nonsense": ([says(f"{MARK} I think it is fine.")], Outcome.UNPARSABLE, 2, "no JSON object"),
    "nonsense then recovers": ([says(MARK), gives_feedback()], Outcome.OK, 2, ""),
    "two objects": ([says(GOOD + GOOD)], Outcome.UNPARSABLE, 2, "more than one"),
    "wrong schema": ([says(json.dumps({"words": MARK}))], Outcome.UNPARSABLE, 2, "Field required"),
    "wrong type": ([says(json.dumps({"feedback": [MARK]}))], Outcome.UNPARSABLE, 2, "string"),
    "too long words": ([says(json.dumps({"feedback": "x" * 8001}))], Outcome.UNPARSABLE, 2, "8000"),
    "invisible words": ([says(json.dumps({"feedback": " \u200b\n"}))], Outcome.UNPARSABLE, 1, "visible"),
    "empty, cut off": ([says("", finish_reason="length")], Outcome.UNPARSABLE, 2, "judge.max_tokens"),
    "half an object, cut off": ([says(GOOD[:20], finish_reason="length")], Outcome.UNPARSABLE, 2, "judge.max_tokens"),
    "no content": ([says(None)], Outcome.UNPARSABLE, 2, "no JSON object"),
    "body is HTML": ([responds(200, f"<html>{MARK}</html>".encode())], Outcome.UNPARSABLE, 2, "not a chat completion"),
    "body is not UTF-8": ([responds(200, b"\xff\xfe\x00")], Outcome.UNPARSABLE, 2, "not a chat completion"),
    "no choices": ([responds(200, b'{"choices": []}')], Outcome.UNPARSABLE, 2, "not a chat completion"),
    "empty body": ([responds(200)], Outcome.UNPARSABLE, 2, "not a chat completion"),
    "huge body": ([responds(200, b" " * (MAX_BODY_BYTES + 1))], Outcome.UNPARSABLE, 2, "longer than"),
    "false gzip": ([responds(200, completion(GOOD), Content_Encoding="gzip")], Outcome.UNPARSABLE, 2, "encoding"),
    "bad usage": ([responds(200, completion(GOOD).replace(b"11", b'"x"'))], Outcome.OK, 1, ""),
    "redirect loop": ([responds(307, Location="/v1/chat/completions")], Outcome.UNAVAILABLE, 1, "redirects"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_behaviour_ends_in_its_outcome(name: str):
    script, outcome, requests, detail = CASES[name]
    with serving(*script) as server:
        judge = make_openai_judge(server.base_url)
        [feedback] = ask(judge)
        assert len(server.received) == requests
    assert feedback.outcome is outcome
    assert feedback.text == (WORDS if outcome is Outcome.OK else None)
    assert feedback.usable == (outcome is Outcome.OK)
    assert feedback.judge == "openai:tiny-judge@quiz-words-3"
    assert detail in feedback.detail
    counters = judge.counters()
    assert counters["calls"] == 1
    assert counters["retries"] == requests - 1
    assert {key: counters[key] for key in counters if key.startswith("feedback/") and counters[key]} == {
        f"feedback/{outcome}": 1
    }


def test_a_mixture_of_failures_is_counted_exactly():
    script = [gives_feedback(), fails(401), says("no"), gives_feedback(), says(None, refusal="no"), gives_feedback()]
    with serving(*script) as server:
        judge = make_openai_judge(server.base_url, max_concurrent=1)
        outcomes = [feedback.outcome for feedback in ask(judge, times=5)]
    assert outcomes == [Outcome.OK, Outcome.UNAVAILABLE, Outcome.OK, Outcome.REFUSED, Outcome.OK]
    counters = judge.counters()
    assert counters["calls"] == 5
    assert counters["retries"] == 1
    assert (counters["tokens_in"], counters["tokens_out"]) == (5 * 11, 5 * 7)  # six requests, one of them without usage
    assert counters["latency_s"] > 0
    expected = dict.fromkeys(Outcome, 0) | {Outcome.OK: 3, Outcome.UNAVAILABLE: 1, Outcome.REFUSED: 1}
    assert {outcome: counters[f"feedback/{outcome}"] for outcome in Outcome} == expected


def test_the_two_retry_budgets_are_separate():
    script = [fails(500), says("no"), fails(500), fails(500), gives_feedback()]
    with serving(*script) as server:
        [feedback] = ask(make_openai_judge(server.base_url, max_retries=3, unparsable_retries=1))
        assert (feedback.outcome, len(server.received)) == (Outcome.OK, 5)
    with serving(*script) as server:
        [feedback] = ask(make_openai_judge(server.base_url, max_retries=9, unparsable_retries=0))
        assert (feedback.outcome, len(server.received)) == (Outcome.UNPARSABLE, 2)


def test_nothing_listening_is_unavailable():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        sleeper = Sleeper()
        [feedback] = ask(make_openai_judge(f"http://127.0.0.1:{unused.getsockname()[1]}/v1", sleeper))
    assert feedback.outcome is Outcome.UNAVAILABLE
    assert len(sleeper.asked) == 3


def test_an_answer_after_the_deadline_is_timed_out():
    with serving(waits(30, then=gives_feedback())) as server:
        judge = make_openai_judge(server.base_url, timeout_s=0.2)
        [feedback] = ask(judge)
    assert feedback.outcome is Outcome.TIMED_OUT
    assert "judge.timeout_s=0.2" in feedback.detail
    assert 0.19 <= judge.counters()["latency_s"] < 5


def test_the_deadline_includes_retries_and_their_waits():
    with serving(fails(503, Retry_After="3600")) as server:
        judge = make_openai_judge(server.base_url, asyncio.sleep, timeout_s=0.3)
        [feedback] = ask(judge)
        assert len(server.received) == 1
    assert feedback.outcome is Outcome.TIMED_OUT
    assert "HTTP 503" in feedback.detail
    assert judge.counters()["latency_s"] < 5


def test_time_in_the_queue_does_not_count_against_the_deadline():
    with serving(waits(0.25, then=gives_feedback())) as server:
        feedback = ask(make_openai_judge(server.base_url, max_concurrent=1, timeout_s=0.6), times=4)
    assert [item.outcome for item in feedback] == [Outcome.OK] * 4


@pytest.mark.parametrize("limit", [1, 3])
def test_requests_in_flight_reach_but_never_pass_max_concurrent(limit: int):
    with serving(waits(0.05, then=gives_feedback())) as server:
        feedback = ask(make_openai_judge(server.base_url, max_concurrent=limit), times=4 * limit)
        assert server.most_in_flight == limit
    assert [item.outcome for item in feedback] == [Outcome.OK] * 4 * limit


def test_one_slow_call_does_not_spoil_its_neighbours():
    with serving(waits(30, then=gives_feedback()), gives_feedback()) as server:
        outcomes = [item.outcome for item in ask(make_openai_judge(server.base_url, timeout_s=0.5), times=4)]
    assert sorted(outcomes) == [Outcome.OK] * 3 + [Outcome.TIMED_OUT]


def test_one_judge_serves_several_event_loops_in_turn():
    with serving(gives_feedback()) as server:
        judge = make_openai_judge(server.base_url)
        for _ in range(3):
            [feedback] = ask(judge)
            assert feedback.usable
    assert judge.counters()["calls"] == 3


def test_cancelling_a_call_frees_its_place():
    with serving(waits(30, then=gives_feedback()), gives_feedback()) as server:
        judge = make_openai_judge(server.base_url, max_concurrent=1)

        async def run():
            first = asyncio.create_task(judge.feedback(QUIZ, EXAMPLE, DRAFT, WRONG, call_key()))
            assert await asyncio.to_thread(server.first_arrived.wait, 10)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            second = await judge.feedback(QUIZ, EXAMPLE, DRAFT, WRONG, call_key())
            await judge.aclose()
            return second

        assert asyncio.run(run()).usable
    assert judge.counters()["feedback/ok"] == 1
