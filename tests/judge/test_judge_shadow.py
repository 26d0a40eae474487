"""A second judge scores some rollouts again: what is drawn, what divergence comes to, and that nothing learns of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.config import RunConfig
from ditto_jax.errors import ConfigError, JudgeUnavailableError
from ditto_jax.judge.client import ChatClient
from ditto_jax.judge.config import ShadowConfig
from ditto_jax.judge.endpoint import resolve_endpoint
from ditto_jax.judge.shadow import SecondOpinions, Shadow
from ditto_jax.runs.run_dir import RunDirectory
from ditto_jax.types import Conversation, Outcome, Verdict
from tests.graded_task import Graded, grade_of, graded_task, grades
from tests.judge.quiz import EXAMPLE, QUIZ, call_key
from tests.judge.server import Behaviour, fails, resets, says, serving
from tests.runs.test_loop_http import judged_by, judged_run
from tests.tiny_run import OPTIONS, assert_same_run, contents, learned, status, train_quietly

TASK = Graded(Graded.options_type(**OPTIONS))
FIRST = Verdict(Outcome.OK, score=0.5, judge="openai:first@graded-1")


def config_of(base_url: str, **changes: Any) -> ShadowConfig:
    values = {"kind": "openai", "model": "second", "base_url": base_url, "max_outage_s": 0.0, "max_retries": 0}
    return ShadowConfig(**{**values, "fraction": 1.0, **changes})


def shadow_of(config: ShadowConfig) -> Shadow:
    return Shadow(config, ChatClient(config, resolve_endpoint(config, {})))


def settled(shadow: Shadow, replies: list[str], first: Verdict = FIRST, task: Any = TASK) -> SecondOpinions:
    async def run() -> SecondOpinions:
        try:
            for index, reply in enumerate(replies):
                shadow.watch(task, EXAMPLE, Conversation((), reply), call_key(index), first)
            return await shadow.settle()
        finally:
            await shadow.aclose()

    return asyncio.run(run())


def points(grade: int) -> Behaviour:
    return says(json.dumps({"grade": grade}))


def test_divergence_and_bias_are_means_over_the_pairs_and_failures_are_left_out():
    with serving(points(9), points(3), fails(400), points(6)) as server:
        opinions = settled(shadow_of(config_of(server.base_url, max_concurrent=1)), list("abcd"))
    assert opinions.metrics == {
        "shadow/compared_count": 3,
        "shadow/failed_count": 1,
        "shadow/alarm": 0.0,
        "shadow/divergence": pytest.approx((0.4 + 0.2 + 0.1) / 3),
        "shadow/bias": pytest.approx((0.4 - 0.2 + 0.1) / 3),
        "shadow/recent_divergence": pytest.approx(0.7 / 3),
    }
    outcomes = [verdict.outcome for verdict in opinions.verdicts.values()]
    assert sorted(outcomes) == [Outcome.OK] * 3 + [Outcome.UNAVAILABLE]


def test_the_alarm_sounds_once_when_a_full_window_is_too_far_off_and_stops_when_it_is_not(caplog):
    caplog.set_level(logging.WARNING)
    script = [*[points(10)] * 4, *[points(5)] * 4]
    with serving(*script) as server:
        shadow = shadow_of(config_of(server.base_url, window=4, max_divergence=0.3, max_concurrent=1))
        alarms = [settled(shadow, replies).metrics["shadow/alarm"] for replies in ("abc", "d", "e", "fgh")]
    # The window is not full; .5 off; still (.5 + .5 + .5 + 0) / 4 = .375; all agree.
    assert alarms == [0.0, 1.0, 1.0, 0.0]
    assert caplog.text.count("shadow.max_divergence=0.3") == 1


def test_what_is_drawn_depends_on_the_key_alone_and_failed_verdicts_are_not():
    with serving(points(5)) as server:
        half = [
            set(settled(shadow_of(config_of(server.base_url, fraction=0.5)), replies).verdicts)
            for replies in (["x"] * 60, ["other"] * 60)
        ]
        failed = settled(shadow_of(config_of(server.base_url)), ["x"], Verdict(Outcome.TIMED_OUT))
    assert half[0] == half[1]
    assert 15 < len(half[0]) < 45
    assert failed == SecondOpinions({"shadow/compared_count": 0, "shadow/failed_count": 0, "shadow/alarm": 0.0}, {})


def test_scores_of_rules_are_compared_with_nothing_and_nobody_is_asked():
    with serving(points(5)) as server:
        by_rules = Verdict(Outcome.OK, score=0.0, judge="rules@quiz-1")
        opinions = settled(shadow_of(config_of(server.base_url)), ["red basket"], by_rules, QUIZ)
        assert server.received == []
    assert opinions.metrics["shadow/compared_count"] == 0 and not opinions.verdicts


def test_a_shadow_that_does_not_answer_at_start_is_told_by_name():
    with (
        serving(resets) as server,
        pytest.raises(JudgeUnavailableError, match=r"(?s)shadow judge second.*shadow\.kind=none"),
    ):
        asyncio.run(shadow_of(config_of(server.base_url)).check())


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"fraction": 0.0}, "shadow.fraction=0"),
        ({"window": 0}, "shadow.window=0"),
        ({"max_divergence": float("nan")}, "shadow.max_divergence=nan"),
        ({"kind": "openai"}, "shadow.model=None"),
    ],
)
def test_impossible_settings_are_refused_by_name(values: dict, part: str):
    with pytest.raises(ConfigError, match=part):
        ShadowConfig(**values)


def shadowed(policy_folder: Path, folder: Path, base_url: str) -> RunConfig:
    shadow = config_of(base_url, model="strict", fraction=0.5, window=4, max_divergence=0.01)
    judge = judged_by(base_url, max_error_rate=0.0)
    return judged_run(policy_folder, folder, judge, steps=3, tasks=(graded_task(),), shadow=shadow)


@pytest.fixture(scope="module")
def straight(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Three steps beside a shadow that is stricter."""
    with serving(grades) as server:
        return train_quietly(shadowed(policy_folder, tmp_path_factory.mktemp("straight"), server.base_url))


def test_a_run_says_how_far_its_shadow_is_off_and_learns_the_same_without(
    policy_folder: Path, tmp_path: Path, straight: RunDirectory
):
    rows = [row for step in contents(straight).values() for row in step]
    assert 0 < sum(bool(row["shadow"]) for row in rows) < len(rows)
    for row in rows:
        if row["shadow"]:
            assert row["shadow"]["judge"] == "openai:strict@graded-1"
            assert row["shadow"]["score"] == pytest.approx(max(0.0, row["score"] - 0.1))
    last = straight.read_metrics()[-1]
    assert last["shadow/alarm"] == 1.0 and -0.1 <= last["shadow/bias"] < 0
    with serving(grades) as server:
        config = shadowed(policy_folder, tmp_path, server.base_url)
        plain = train_quietly(dataclasses.replace(config, shadow=ShadowConfig()))
    assert learned(plain) == [
        {name: value for name, value in row.items() if not name.startswith("shadow/")} for row in learned(straight)
    ]
    assert [row for step in contents(plain).values() for row in step] == [{**row, "shadow": None} for row in rows]


def test_a_resumed_run_has_the_divergence_of_a_straight_one(
    policy_folder: Path, tmp_path: Path, straight: RunDirectory
):
    first = straight.read_rollouts(1)
    # Two probes, and at most a first and a second score and words for each of the first step.
    good = 2 + 2 * len(first) + sum(bool(row["feedback"]) for row in first)
    with serving(*[grades] * good, fails(400)) as server, pytest.raises(JudgeUnavailableError, match="failed"):
        train_quietly(shadowed(policy_folder, tmp_path, server.base_url))
    assert status(RunDirectory(tmp_path / "tiny"))["step"] in (1, 2)
    with serving(grades) as server:
        assert_same_run(train_quietly(shadowed(policy_folder, tmp_path, server.base_url)), straight)


def test_grades_depend_on_the_text():
    assert len({grade_of(str(number)) for number in range(200)}) == 11
