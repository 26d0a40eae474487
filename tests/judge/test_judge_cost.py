"""What requests cost is counted from their tokens, and never exceeds what may be spent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.errors import BudgetSpentError, ConfigError
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.judge.hub import Hub
from ditto_jax.judge.meter import Journal, Meter
from ditto_jax.judge.openai import OpenAIJudge
from ditto_jax.types import Outcome
from tests.judge.quiz import KEY, KEY_ENV, Sleeper, ask, openai_config
from tests.judge.server import fails, gives_feedback, responds, says, serving, waits

# A completion of the server counts 11 tokens in and 7 out: 11 × 2 + 7 × 10 = 92 of a millionth.
PRICES: dict[str, Any] = {"input_price": 2.0, "output_price": 10.0, "max_tokens": 100, "cache": "off"}
ONE = 92e-6


def judge_of(base_url: str, hub: Hub | None = None, **changes: Any) -> OpenAIJudge:
    config = openai_config(base_url, **{**PRICES, **changes})
    return OpenAIJudge(config, hub=hub, environ={KEY_ENV: KEY}, sleep=Sleeper())


def test_the_price_is_that_of_the_tokens_and_refused_requests_are_free():
    with serving(fails(503), gives_feedback(), says("no JSON"), gives_feedback()) as server:
        judge = judge_of(server.base_url)
        ask(judge)
        assert judge.counters()["cost"] == pytest.approx(ONE)
        ask(judge)  # an answer that cannot be parsed is paid for as well
        assert judge.counters()["cost"] == pytest.approx(3 * ONE)


@pytest.mark.parametrize("behaviour", [waits(30, gives_feedback()), responds(200, b"<html></html>")])
def test_what_may_have_been_billed_counts_in_full(behaviour):
    with serving(behaviour) as server:
        judge = judge_of(server.base_url, timeout_s=0.3, unparsable_retries=0)
        ask(judge)
    assert judge.counters()["cost"] > 100 * 10e-6  # the longest reply, and the prompt


@pytest.mark.parametrize("times", [1, 8])
def test_a_budget_is_never_overrun_however_many_ask(times: int):
    with serving(gives_feedback()) as server:
        hub = Hub()
        judge = judge_of(server.base_url, hub, max_cost=0.006)
        feedback = [item for _ in range(40 // times) for item in ask(judge, times)]
        sent = len(server.received)
    counters = judge.counters()
    assert counters["cost"] == pytest.approx(sent * ONE)
    assert 0 < counters["cost"] <= 0.006
    outcomes = [item.outcome for item in feedback]
    assert outcomes.count(Outcome.OK) == sent
    assert outcomes.count(Outcome.OVER_BUDGET) == 40 - sent > 0
    assert all(item.text is None and "judge.max_cost=0.006" in item.detail for item in feedback if not item.usable)
    with pytest.raises(BudgetSpentError, match=r"judge.max_cost=0.006 is reached.*larger judge.max_cost"):
        hub.require_budget()


def test_a_call_waits_while_others_may_leave_enough_over():
    async def run() -> list[bool]:
        meter = Meter("judge", 10.0)
        assert await meter.reserve(8.0)
        second = asyncio.create_task(meter.reserve(8.0))
        third = asyncio.create_task(meter.reserve(20.0))
        await asyncio.sleep(0)
        assert (second.done(), await third) == (False, False)
        meter.settle(8.0, 1.0)
        return [await second, await meter.reserve(1.0)]

    assert asyncio.run(run()) == [True, True]


def test_what_was_set_aside_is_given_back_to_the_last_digit():
    async def run() -> bool:
        parts = (0.09, 0.33, 0.16)
        meter = Meter("judge", sum(parts))
        for part in parts:
            assert await meter.reserve(part)
        for part in parts:
            meter.settle(part, 0.0)
        # Sums of floats leave a residue here, for which this would wait without end.
        return await asyncio.wait_for(meter.reserve(sum(parts)), 5.0)

    assert asyncio.run(run())


def test_a_killed_run_knows_what_it_has_spent(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("")
    with serving(gives_feedback()) as server:
        ask(judge_of(server.base_url, Hub(tmp_path)), times=3)
        with open(tmp_path / "spending.jsonl", "a") as handle:
            handle.write('\n{"where": "judge", "co')  # killed in the middle of a line
        ask(judge_of(server.base_url, Hub(tmp_path)))
        assert Journal(tmp_path).spent("judge") == pytest.approx(4 * ONE)
        poor = judge_of(server.base_url, Hub(tmp_path), max_cost=4.5 * ONE)
        assert ask(poor)[0].outcome is Outcome.OVER_BUDGET
        fresh = judge_of(server.base_url, Hub(tmp_path, is_new=True), max_cost=0.01)
        assert ask(fresh)[0].usable


def test_nothing_is_written_before_there_is_a_run(tmp_path: Path):
    with serving(gives_feedback()) as server:
        ask(judge_of(server.base_url, Hub(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_of_several_limits_of_one_purse_the_smallest_holds():
    hub = Hub()
    with serving(gives_feedback()) as server:
        judges = [judge_of(server.base_url, hub, max_cost=limit) for limit in (1.0, 0.002, None)]
        spent = [ask(judge)[0].usable for _ in range(20) for judge in judges]
    assert sum(spent) * ONE <= 0.002
    assert not all(spent)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"max_cost": 1.0}, "judge.input_price"),
        ({"input_price": 1.0}, "set both"),
        ({"input_price": -1.0, "output_price": 1.0}, "judge.input_price=-1"),
        ({"max_cost": float("nan"), "input_price": 1.0, "output_price": 1.0}, "judge.max_cost=nan"),
    ],
)
def test_impossible_prices_are_refused_by_name(values: dict, part: str):
    with pytest.raises(ConfigError, match=part):
        JudgeConfig(**values)
