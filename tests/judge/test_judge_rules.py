"""The embedded judge: rule scores, words that depend on the call key alone, the leak filter and the control arm."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from ditto_jax.errors import ConfigError, JudgeUnavailableError
from ditto_jax.judge import Judge, JudgeConfig, make_judge
from ditto_jax.judge.health import require_healthy
from ditto_jax.judge.words import call_rng
from ditto_jax.types import Conversation, Feedback, Outcome, Verdict
from tests.judge.quiz import DRAFT, EXAMPLE, QUIZ, WRONG, Quiz, QuizOptions, ask, call_key, make_openai_judge
from tests.judge.server import gives_feedback, serving

VARIANTS = [{"seed": 9}, {"step": 9}, {"prompt_id": "quiz-9"}, {"role": "refined"}]
CONTROL = JudgeConfig(feedback_content="content_free")
RIGHT = Conversation(messages=(), reply="green drawer")


def words(judge: Judge, key=None, task=QUIZ, verdict=WRONG) -> Feedback:
    return asyncio.run(judge.feedback(task, EXAMPLE, DRAFT, verdict, key or call_key()))


def test_scores_are_the_rules_own_and_name_their_version():
    judge = make_judge(JudgeConfig())
    right = asyncio.run(judge.score(QUIZ, EXAMPLE, RIGHT, call_key()))
    wrong = asyncio.run(judge.score(QUIZ, EXAMPLE, DRAFT, call_key()))
    assert (right.score, wrong.score, right.judge) == (1.0, 0.0, "rules@quiz-1")
    assert judge.counters()["score/ok"] == 2


def test_a_language_model_judge_scores_by_rule_where_there_is_one_without_a_request():
    with serving(gives_feedback()) as server:
        judge = make_openai_judge(server.base_url)
        verdict = asyncio.run(judge.score(QUIZ, EXAMPLE, RIGHT, call_key()))
        assert server.received == []
    assert (verdict.score, verdict.judge) == (1.0, "rules@quiz-1")
    assert (judge.counters()["score/ok"], judge.counters()["calls"]) == (1, 0)


def test_a_task_without_rules_is_refused_by_name():
    for judge in (make_judge(JudgeConfig()), make_openai_judge("http://127.0.0.1:1/v1")):
        with pytest.raises(ConfigError, match="task quiz has no rule"):
            asyncio.run(judge.score(Quiz(QuizOptions(has_rules=False)), EXAMPLE, DRAFT, call_key()))


def test_the_same_call_key_gives_the_same_words_in_any_judge_order_and_process():
    keys = [call_key(index) for index in range(6)] + [call_key(**change) for change in VARIANTS]
    forward = [words(make_judge(JudgeConfig()), key).text for key in keys]
    judge = make_judge(JudgeConfig())
    backward = [words(judge, key).text for key in reversed(keys)]
    assert forward == backward[::-1]
    assert len(set(forward)) == len(keys)
    program = (
        "from ditto_jax.judge.words import call_rng; from tests.judge.quiz import call_key; "
        "print(call_rng(call_key(3), 'rule_feedback').random())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(elsewhere) == call_rng(call_key(3), "rule_feedback").random()


def test_rules_with_nothing_to_say_give_no_words():
    judge = make_judge(JudgeConfig())
    feedback = words(judge, verdict=Verdict(Outcome.OK, score=1.0))
    assert (feedback.outcome, feedback.text, feedback.usable) == (Outcome.REFUSED, None, False)
    assert "nothing to say" in feedback.detail
    assert judge.counters()["feedback/refused"] == 1


class Leaky(Quiz):
    def rule_feedback(self, example, conversation, verdict, rng):
        return "Have you looked into the green drawer?"


def test_words_that_give_the_answer_away_are_marked_counted_and_unusable():
    judges = [make_judge(JudgeConfig()), make_judge(CONTROL)]
    for judge in judges:
        feedback = words(judge, task=Leaky(QuizOptions()))
        assert (feedback.leak, feedback.usable) == ("gold_text", False)
        assert judge.counters()["feedback/leaked"] == 1
    with serving(gives_feedback("Look into the green drawer!"), gives_feedback()) as server:
        judge = make_openai_judge(server.base_url, max_concurrent=1)
        leaked, clean = ask(judge, times=2)
    assert (leaked.outcome, leaked.leak, leaked.usable) == (Outcome.OK, "gold_text", False)
    assert clean.usable
    assert (judge.counters()["feedback/leaked"], judge.counters()["feedback/ok"]) == (1, 2)


def test_the_control_arm_says_nothing_about_the_draft_and_asks_nobody():
    control = make_judge(CONTROL)
    feedback = [words(control, call_key(index)) for index in range(8)]
    assert all(item.usable and item.judge == "content_free" for item in feedback)
    assert not any("event" in (item.text or "") for item in feedback)
    assert [item.text for item in feedback] == [words(control, call_key(index)).text for index in range(8)]
    with serving(gives_feedback()) as server:
        asked = ask(make_openai_judge(server.base_url, feedback_content="content_free"), times=8)
        assert server.received == []
    assert [item.text for item in asked] == [item.text for item in feedback]


def test_the_control_arm_has_words_exactly_where_the_rules_have():
    assert words(make_judge(CONTROL), verdict=Verdict(Outcome.OK, score=1.0)).outcome is Outcome.REFUSED


DEAD = Verdict(Outcome.UNAVAILABLE, judge="openai:m", detail="HTTP 503")
MUTE = Feedback(Outcome.TIMED_OUT, judge="openai:m@words-1")


def test_a_step_with_too_many_failures_stops_the_run_and_says_why():
    require_healthy([], max_error_rate=0.0, step=7)
    require_healthy([DEAD, WRONG], max_error_rate=0.5, step=7)
    with pytest.raises(JudgeUnavailableError, match=r"2 of 3 verdicts of step 7 failed \(unavailable 2\).*HTTP 503"):
        require_healthy([DEAD, WRONG, DEAD], max_error_rate=0.5, step=7)
    with pytest.raises(JudgeUnavailableError, match="1 of 1 pieces of feedback"):
        require_healthy([MUTE], max_error_rate=0.5, step=7)
    require_healthy([MUTE], max_error_rate=0.5, step=7, least=2)


def test_declining_to_comment_is_no_failure_but_declining_to_score_is():
    require_healthy([Feedback(Outcome.REFUSED)] * 3, max_error_rate=0.0, step=1)
    with pytest.raises(JudgeUnavailableError, match="refused 1"):
        require_healthy([Verdict(Outcome.REFUSED)], max_error_rate=0.0, step=1)
