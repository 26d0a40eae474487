"""A Python function judges whole groups, and several judges make one: means, disagreement, and what failures become."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ditto_jax.errors import ConfigError, MissingInputError
from ditto_jax.judge import make_judge
from ditto_jax.judge.base import Judge
from ditto_jax.judge.config import JudgeConfig, MemberConfig
from ditto_jax.judge.ensemble import EnsembleJudge
from ditto_jax.judge.function import FunctionJudge
from ditto_jax.types import Conversation, Feedback, Outcome, Verdict
from tests.graded_task import graded_task, grades
from tests.judge.quiz import DRAFT, EXAMPLE, QUIZ, call_key
from tests.judge.server import serving
from tests.runs.test_loop_http import judged_by, judged_run
from tests.tiny_run import contents, train_quietly

FUNCTIONS = '''
import time
from ditto_jax.types import Outcome, Verdict

def by_rank(group):
    """The longest of a group is the best."""
    ranks = sorted(len(one.conversation.reply) for one in group)
    return [ranks.index(len(one.conversation.reply)) / max(1, len(group) - 1) for one in group]

async def with_words(group):
    return [Verdict(Outcome.OK, score=0.0, critique=f"Of {len(group)}, why so short?") for _ in group]

def leaks(group):
    return [Verdict(Outcome.OK, score=0.0, critique="It is the green drawer.") for _ in group]

def breaks(group):
    raise RuntimeError("no such model")

def sleeps(group):
    time.sleep(0.3)

def too_few(group):
    return [0.5] * (len(group) - 1)

def nothing(group):
    return None

def texts(group):
    return ["good"] * len(group)

def infinite(group):
    return [float("inf"), 1][: len(group)]

NUMBER = 3
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("functions") / "mine.py"
    path.write_text(FUNCTIONS)
    return path


def judge_of(file: Path, name: str, **changes: Any) -> FunctionJudge:
    return FunctionJudge(JudgeConfig(kind="python", function=f"{file}:{name}", **changes))


def scored(judge: Any, replies: Sequence[str | None], order: Sequence[int] | None = None) -> list[Verdict]:
    """The verdicts on a group that was announced whole; None: a member that is withdrawn."""

    async def run() -> list[Verdict]:
        keys = [call_key(index) for index in range(len(replies))]
        for key in keys:
            judge.expect(QUIZ, key)
        answers = {}
        for index in order or range(len(replies)):
            reply = replies[index]
            if reply is None:
                judge.withdraw(QUIZ, keys[index])
                continue
            conversation = Conversation((), reply)
            answers[index] = asyncio.ensure_future(judge.score(QUIZ, EXAMPLE, conversation, keys[index]))
            await asyncio.sleep(0)
        try:
            return [await answers[index] for index in sorted(answers)]
        finally:
            await judge.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_function_sees_the_whole_group_in_the_order_of_its_samples(file: Path, order: tuple[int, ...]):
    verdicts = scored(judge_of(file, "by_rank"), ["aa", "a", "aaa"], order)
    assert [verdict.score for verdict in verdicts] == [0.5, 0.0, 1.0]
    assert {verdict.judge for verdict in verdicts} == {"python:mine.py:by_rank"}


@pytest.mark.parametrize("replies", [["aa", None, "a"], [None, "aa", "a"], ["aa", "a", None]])
def test_a_group_does_not_wait_for_members_that_will_not_come(file: Path, replies: list[str | None]):
    assert [verdict.score for verdict in scored(judge_of(file, "by_rank"), replies)] == [1.0, 0.0]


def test_a_group_of_which_nothing_is_left_asks_nobody(file: Path):
    assert scored(judge_of(file, "breaks"), [None, None]) == []


def test_a_conversation_that_nobody_announced_is_a_group_of_its_own(file: Path):
    judge = judge_of(file, "by_rank")
    verdict = asyncio.run(judge.score(QUIZ, EXAMPLE, DRAFT, call_key()))
    assert verdict.score == 0.0


def words(judge: Judge, verdict: Verdict) -> Feedback:
    return asyncio.run(judge.feedback(QUIZ, EXAMPLE, DRAFT, verdict, call_key()))


def test_the_critique_of_a_verdict_is_the_feedback_and_passes_the_leak_filter(file: Path):
    judge = judge_of(file, "with_words")
    [verdict, _] = scored(judge, ["a", "b"])
    assert words(judge, verdict).text == "Of 2, why so short?"
    leaking = judge_of(file, "leaks")
    [verdict] = scored(leaking, ["a"])
    assert not words(leaking, verdict).usable
    silent = judge_of(file, "by_rank")
    [verdict] = scored(silent, ["a"])
    assert words(silent, verdict).outcome is Outcome.REFUSED
    control = judge_of(file, "with_words", feedback_content="content_free")
    [verdict] = scored(control, ["a"])
    assert words(control, verdict).judge == "content_free"


@pytest.mark.parametrize(
    ("name", "outcomes", "detail"),
    [
        ("breaks", [Outcome.UNAVAILABLE] * 2, "RuntimeError: no such model"),
        ("sleeps", [Outcome.TIMED_OUT] * 2, "judge.timeout_s=0.05"),
        ("infinite", [Outcome.UNPARSABLE, Outcome.OK], "not finite"),
    ],
)
def test_a_function_that_fails_gives_outcomes_and_no_scores(file: Path, name: str, outcomes: list, detail: str):
    judge = judge_of(file, name, timeout_s=0.05 if name == "sleeps" else 10.0)
    verdicts = scored(judge, ["a", "b"])
    assert [verdict.outcome for verdict in verdicts] == outcomes
    assert detail in verdicts[0].detail and verdicts[0].score is None
    assert judge.counters()[f"score/{outcomes[0]}"] == outcomes.count(outcomes[0])


@pytest.mark.parametrize("name", ["too_few", "nothing", "texts"])
def test_a_function_of_the_wrong_kind_ends_the_run_with_its_name(file: Path, name: str):
    with pytest.raises(ConfigError, match=rf"judge.function='.*mine.py:{name}': (must return|each answer)"):
        scored(judge_of(file, name), ["a", "b"])


def test_places_without_a_function_are_refused(file: Path):
    for function, error in ((f"{file}:NUMBER", ConfigError), (f"{file}:absent", ConfigError)):
        with pytest.raises(error, match=r"judge\.function"):
            FunctionJudge(JudgeConfig(kind="python", function=function))
    with pytest.raises(MissingInputError, match="no such file"):
        FunctionJudge(JudgeConfig(kind="python", function="absent.py:judge"))
    with pytest.raises(ConfigError, match=r"judge\.function=None"):
        JudgeConfig(kind="python")


class Fixed(FunctionJudge):
    """Says the same of everything."""

    def __init__(self, verdict: Verdict):
        self._verdict = verdict

    async def score(self, *_: Any) -> Verdict:
        return self._verdict

    def counters(self) -> dict[str, float]:
        return {"calls": 2.0, "score/ok": 7.0}

    async def aclose(self) -> None:
        return None


def combined(*verdicts: Verdict) -> Verdict:
    return asyncio.run(EnsembleJudge([Fixed(v) for v in verdicts]).score(QUIZ, EXAMPLE, DRAFT, call_key()))


def test_an_ensemble_gives_the_mean_and_the_disagreement():
    a = Verdict(Outcome.OK, 0.2, {"wit": 0.4, "tact": 1.0}, "Be brief.", "a@1")
    b = Verdict(Outcome.OK, 0.8, {"wit": 0.8}, "", "b@1")
    verdict = combined(a, b)
    assert verdict.score == pytest.approx(0.5)
    assert verdict.dimensions == pytest.approx({"wit": 0.6, "member_0": 0.2, "member_1": 0.8, "disagreement": 0.3})
    assert (verdict.judge, verdict.critique) == ("ensemble(a@1, b@1)", "Be brief.")


def test_an_ensemble_of_which_one_fails_has_no_score():
    verdict = combined(Verdict(Outcome.OK, 0.2, judge="a"), Verdict(Outcome.TIMED_OUT, judge="b", detail="slow"))
    assert (verdict.outcome, verdict.score, verdict.detail) == (Outcome.TIMED_OUT, None, "member 1: slow")


def test_a_score_by_rules_is_the_same_alone_and_in_an_ensemble():
    rule = Verdict(Outcome.OK, 1.0, judge="rules@quiz-1")
    assert combined(rule, rule) is rule


def test_costs_of_members_are_summed_and_outcomes_are_those_of_the_whole():
    judge = EnsembleJudge([Fixed(Verdict(Outcome.OK, 1.0, judge=name)) for name in "ab"])
    asyncio.run(judge.score(QUIZ, EXAMPLE, DRAFT, call_key()))
    assert judge.counters()["calls"] == 4.0 and judge.counters()["score/ok"] == 1


def test_impossible_ensembles_are_refused():
    with pytest.raises(ConfigError, match="at least two"):
        JudgeConfig(kind="ensemble", members=(MemberConfig(model="a"),))
    with pytest.raises(ConfigError, match=r"judge\.members\.model"):
        MemberConfig()


def test_a_run_with_an_ensemble_of_a_function_and_an_endpoint(policy_folder: Path, tmp_path: Path, file: Path):
    with serving(grades) as server:
        endpoint = dataclasses.asdict(judged_by(server.base_url))
        shared = {field.name: endpoint[field.name] for field in dataclasses.fields(MemberConfig)}
        members = (
            MemberConfig(**{**shared, "kind": "python", "function": f"{file}:by_rank"}),
            MemberConfig(**shared),
        )
        config = judged_run(
            policy_folder, tmp_path, JudgeConfig(kind="ensemble", members=members), steps=2, tasks=(graded_task(),)
        )
        run = train_quietly(config)
    rows = [row for step in contents(run).values() for row in step]
    drafts = [row for row in rows if row["role"] == "draft"]
    assert {row["judge"] for row in rows} == {"ensemble(python:mine.py:by_rank, openai:tiny-judge@graded-1)"}
    for row in rows:
        members_said = row["dimensions"]["member_0"], row["dimensions"]["member_1"]
        assert row["score"] == pytest.approx(sum(members_said) / 2)
        assert row["dimensions"]["disagreement"] == pytest.approx(abs(members_said[0] - members_said[1]) / 2)
    # The function ranks all four drafts of a prompt: some draft is the longest of each.
    for prompt in {(row["step"], row["prompt_index"]) for row in drafts}:
        ranks = [row["dimensions"]["member_0"] for row in drafts if (row["step"], row["prompt_index"]) == prompt]
        lengths = [len(row["reply"]) for row in drafts if (row["step"], row["prompt_index"]) == prompt]
        assert max(ranks) == ranks[lengths.index(max(lengths))] and min(ranks) == 0.0
    assert "rewards/graded/disagreement" in json.dumps(run.read_metrics()[0])


def test_an_ensemble_is_made_of_what_its_settings_name(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    members = (MemberConfig(kind="python", function=f"{file}:by_rank"), MemberConfig(model="m"))
    judge = make_judge(JudgeConfig(kind="ensemble", members=members))
    assert judge.identity == "ensemble(python:mine.py:by_rank, openai:m)"
