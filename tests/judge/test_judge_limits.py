"""Rates stay below their limits, an endpoint that is down is waited for, and slow requests may be sent twice."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import ConfigError
from ditto_jax.judge.breaker import Breaker
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.hedge import LEAST_SEEN, Latencies, first_reply
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.limiter import WINDOW_S, RateLimiter
from ditto_jax.judge.openai import OpenAIJudge
from ditto_jax.types import Outcome
from tests.judge.quiz import KEY, KEY_ENV, ask, openai_config
from tests.judge.server import drops_mid_body, fails, gives_feedback, resets, serving, waits


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def judge_on(clock: Clock, base_url: str, **changes: Any) -> OpenAIJudge:
    config = openai_config(base_url, **changes)
    return OpenAIJudge(config, hub=Hub(clock=clock), environ={KEY_ENV: KEY}, sleep=clock.sleep)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 120)), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(50, 200),
)
def test_no_window_of_a_minute_holds_more_than_the_limits(arrivals: list, max_rpm: int, max_tpm: int):
    clock = Clock()
    limiter = RateLimiter(max_rpm, max_tpm, clock.sleep, clock)

    async def send_all() -> list[tuple[float, int]]:
        sent = []
        for pause_s, tokens in arrivals:
            clock.now += pause_s
            sent.append(((await limiter.admit(tokens)).at, tokens))
        return sent

    sent = asyncio.run(send_all())
    for start, _ in sent:
        window = [tokens for at, tokens in sent if start <= at < start + WINDOW_S]
        assert len(window) <= max_rpm
        assert sum(window) <= max_tpm or len(window) == 1


def test_tokens_that_were_not_used_are_given_back():
    clock = Clock()
    limiter = RateLimiter(None, 100, clock.sleep, clock)

    async def run() -> None:
        admission = await limiter.admit(100)
        assert limiter.wait_s(50) == WINDOW_S
        admission.tokens = 40
        assert limiter.wait_s(60) == 0

    asyncio.run(run())


def test_judges_at_one_address_share_its_rate():
    clock = Clock()
    with serving(gives_feedback()) as server:
        hub = Hub(clock=clock)
        config = openai_config(server.base_url, max_rpm=2, timeout_s=5.0)
        configs = (config, dataclasses.replace(config, max_concurrent=1))
        judges = [OpenAIJudge(c, hub=hub, environ={KEY_ENV: KEY}, sleep=clock.sleep) for c in configs]
        outcomes = [feedback.outcome for judge in judges for feedback in ask(judge, times=3)]
    # Two minutes of waiting, far beyond timeout_s, and no call has timed out.
    assert outcomes == [Outcome.OK] * 6
    assert clock.now == 2 * WINDOW_S


def test_an_outage_is_waited_for_and_no_call_is_lost(caplog: pytest.LogCaptureFixture):
    clock = Clock()
    with serving(*[resets] * 6, *[fails(503)] * 6, gives_feedback()) as server:
        judge = judge_on(clock, server.base_url, max_retries=3, outage_after=3, max_outage_s=600.0)
        feedback = ask(judge, times=8)
    assert [item.outcome for item in feedback] == [Outcome.OK] * 8
    assert clock.now > 3
    assert "does not answer" in caplog.text and "at most 600 s" in caplog.text
    assert caplog.text.count("answers again") == 1
    assert KEY not in caplog.text


def test_an_outage_is_waited_for_no_longer_than_told():
    clock = Clock()
    with serving(resets) as server:
        judge = judge_on(clock, server.base_url, max_retries=1, outage_after=2, max_outage_s=100.0)
        feedback = ask(judge, times=12)
        requests = len(server.received)
    assert {item.outcome for item in feedback} == {Outcome.UNAVAILABLE}
    assert any("judge.max_outage_s=100" in item.detail for item in feedback)
    assert clock.now < 200
    assert requests < 24  # while it is down one call asks, not twelve


def test_a_request_that_was_not_sent_does_not_end_an_outage(caplog: pytest.LogCaptureFixture):
    clock = Clock()
    # The half answer may be billed in full, after which the budget has no room for the next request.
    prices = {"input_price": 0.0, "output_price": 1.0, "max_tokens": 1_000_000, "max_cost": 1.5}
    with serving(fails(503), drops_mid_body) as server:
        judge = judge_on(clock, server.base_url, outage_after=1, max_outage_s=600.0, **prices)
        [feedback] = ask(judge)
        assert len(server.received) == 2
    assert feedback.outcome is Outcome.OVER_BUDGET
    assert "does not answer" in caplog.text and "answers again" not in caplog.text


def test_a_busy_endpoint_is_not_down():
    clock = Clock()
    with serving(fails(429)) as server:
        judge = judge_on(clock, server.base_url, max_retries=3, outage_after=2)
        [feedback] = ask(judge)
        assert len(server.received) == 4
    assert feedback.outcome is Outcome.UNAVAILABLE


def test_one_caller_asks_and_a_cancelled_one_makes_way():
    async def run() -> None:
        breaker = Breaker("it", 1, 60.0, asyncio.sleep, lambda: 0.0)
        assert breaker.failed("first")
        breaker._next_try = 0.0
        assert await breaker.ready("second")
        third = asyncio.create_task(breaker.ready("third"))
        await asyncio.sleep(0)
        assert not third.done()
        breaker.left("second")
        assert await third
        breaker.succeeded()
        assert not breaker.is_open

    asyncio.run(run())


def test_a_slow_request_is_sent_again_and_the_first_reply_counts():
    # The second request of a round is the hedge of the slow one before it.
    with serving(*[gives_feedback()] * LEAST_SEEN, waits(30, gives_feedback()), gives_feedback()) as server:
        judge = OpenAIJudge(openai_config(server.base_url, hedge_percentile=95.0), environ={KEY_ENV: KEY})
        for _ in range(LEAST_SEEN // 4):
            ask(judge, times=4)
        [feedback] = ask(judge)
    assert feedback.usable
    counters = judge.counters()
    assert counters["hedges"] >= 1
    assert counters["calls"] == LEAST_SEEN + 1
    assert counters["tokens_in"] == 11 * (LEAST_SEEN + 1)


def test_without_the_option_or_without_room_nothing_is_sent_twice():
    seen = Latencies(None)
    few = Latencies(95.0)
    for latencies, count in ((seen, 50), (few, LEAST_SEEN - 1)):
        for seconds in range(count):
            latencies.record(float(seconds))
        assert latencies.unusual_s() is None
    few.record(19.0)
    assert few.unusual_s() == pytest.approx(18.05)


def test_of_two_failures_the_first_is_told_and_nothing_keeps_running():
    ended = []

    async def fail(seconds: float, text: str) -> None:
        try:
            await asyncio.sleep(seconds)
            raise ValueError(text)
        finally:
            ended.append(text)

    with pytest.raises(ValueError, match="first"):
        asyncio.run(first_reply(fail(0.02, "first"), lambda: fail(0, "second"), 0.001))
    assert sorted(ended) == ["first", "second"]


@pytest.mark.parametrize(
    "values",
    [{"max_rpm": 0}, {"max_tpm": -1}, {"hedge_percentile": 100.0}, {"outage_after": 0}, {"max_outage_s": float("inf")}],
)
def test_impossible_limits_are_refused_by_name(values: dict):
    with pytest.raises(ConfigError, match="judge." + next(iter(values))):
        JudgeConfig(**values)


def test_the_breaker_doubles_its_pauses_up_to_a_bound():
    clock = Clock()
    breaker = Breaker("it", 1, 1000.0, clock.sleep, clock)

    async def run() -> list[float]:
        times = []
        for number in itertools.count():
            if not breaker.failed("caller"):
                return times
            assert await breaker.ready("caller")
            times.append(clock.now)
            assert number < 100
        return times

    times = asyncio.run(run())
    assert times[:6] == [1, 3, 7, 15, 31, 61]
    assert 970 <= times[-1] <= 1000
