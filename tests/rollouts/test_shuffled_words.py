"""The control of shuffled feedback: everybody's words are about another draft, and nothing passes the leak filter."""

from __future__ import annotations

import collections
import dataclasses
import types

import pytest

from ditto_jax.config import RunConfig, TaskConfig
from ditto_jax.errors import ConfigError
from ditto_jax.judge.config import JudgeConfig
from ditto_jax.rollouts.prompts import Prompt
from ditto_jax.rollouts.rollout import Sampling
from ditto_jax.rollouts.shuffled_words import with_shuffled_words
from ditto_jax.types import Conversation, Example, Feedback, Outcome, Rollout, RolloutRole, Verdict
from model.sampling import SamplingParams
from tests.judge.quiz import QUIZ

WRONG = Verdict(Outcome.OK, score=0.0, judge="rules")


class Room:
    """Has no room for an opening of more tokens than `most`."""

    def __init__(self, most: int = 1000):
        self._most = most

    def lack(self, length: int, shared: int, many_turns: bool) -> str:
        return "" if length <= self._most else "too long"


def sampling(step: int = 1, most: int = 1000) -> Sampling:
    chat_format = types.SimpleNamespace(open=lambda chat: list(chat[-1].content))
    return Sampling(types.SimpleNamespace(chat_format=chat_format), None, SamplingParams(), 5, step, Room(most))  # type: ignore[arg-type]


def prompt(number: int, gold: str = "green drawer") -> Prompt:
    return Prompt(f"quiz/{number}", QUIZ, Example("quiz", str(number), {"question": f"Question {number}?"}, gold))


def draft(prompts: list[Prompt], p: int, s: int, words: str | None = "") -> Rollout:
    """A draft with words of its own; None: it was not asked about."""
    feedback = None if words is None else Feedback(Outcome.OK, text=words or f"words {p}.{s}", judge="rules")
    return Rollout(prompts[p].example, RolloutRole.DRAFT, p, s, {}, Conversation((), "reply"), WRONG, feedback)


def texts(drafts) -> list[str | None]:
    return [None if d.feedback is None else d.feedback.text for d in drafts]


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1, 2), (1, 1, 1), (4, 3, 2, 1), (5, 1, 4)])
def test_words_are_permuted_among_drafts_of_other_prompts(sizes):
    prompts = [prompt(p) for p in range(len(sizes))]
    drafts = [draft(prompts, p, s) for p, size in enumerate(sizes) for s in range(size)]
    for step in range(8):
        shuffled = with_shuffled_words(sampling(step), prompts, drafts)
        assert collections.Counter(texts(shuffled)) == collections.Counter(texts(drafts))
        for before, after in zip(drafts, shuffled, strict=True):
            assert dataclasses.replace(after, feedback=before.feedback) == before
            assert after.feedback is not None and not str(after.feedback.text).startswith(
                f"words {before.prompt_index}."
            )


@pytest.mark.parametrize("sizes", [(4,), (5, 1), (2,)])
def test_nobody_keeps_their_own_words_where_one_prompt_has_most_of_them(sizes):
    prompts = [prompt(p) for p in range(len(sizes))]
    drafts = [draft(prompts, p, s) for p, size in enumerate(sizes) for s in range(size)]
    shuffled = with_shuffled_words(sampling(), prompts, drafts)
    assert sorted(map(str, texts(shuffled))) == sorted(map(str, texts(drafts)))
    assert all(a != b for a, b in zip(texts(shuffled), texts(drafts), strict=True))


def test_the_order_depends_on_the_step_alone():
    prompts = [prompt(p) for p in range(6)]
    drafts = [draft(prompts, p, s) for p in range(6) for s in range(3)]
    orders = [texts(with_shuffled_words(sampling(step), prompts, drafts)) for step in (1, 2, 1)]
    assert orders[0] == orders[2] != orders[1]


def test_a_draft_alone_with_words_gets_none_and_unasked_ones_stay_so():
    prompts = [prompt(0), prompt(1)]
    drafts = [draft(prompts, 0, 0), draft(prompts, 1, 0, None)]
    first, second = with_shuffled_words(sampling(), prompts, drafts)
    assert first.feedback is not None and first.feedback.outcome is Outcome.REFUSED
    assert second.feedback is None


def test_words_are_screened_for_the_example_that_they_come_to_stand_beside():
    prompts = [prompt(0), prompt(1, gold="red basket")]
    drafts = [draft(prompts, 0, 0, "it is in the red basket"), draft(prompts, 1, 0, "look again")]
    first, second = with_shuffled_words(sampling(), prompts, drafts)
    assert first.feedback is not None and first.feedback.usable
    assert second.feedback is not None and second.feedback.leak and not second.feedback.usable


def test_words_without_room_beside_their_new_prompt_are_over_budget():
    prompts = [prompt(0), prompt(1)]
    drafts = [draft(prompts, 0, 0), draft(prompts, 1, 0)]
    for shuffled in with_shuffled_words(sampling(most=3), prompts, drafts):
        assert shuffled.feedback is not None and shuffled.feedback.outcome is Outcome.OVER_BUDGET


def test_one_task_of_a_mixture_cannot_shuffle_alone():
    with pytest.raises(ConfigError, match="set judge.feedback_content=shuffled"):
        RunConfig(tasks=(TaskConfig("hitom", judge={"feedback_content": "shuffled"}),))
    assert RunConfig(judge=JudgeConfig(feedback_content="shuffled"), tasks=(TaskConfig("hitom"),)).tasks
