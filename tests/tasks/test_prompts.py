"""Prompts and episodes: every ingredient of the full prompt, a short compact one, and feedback at its place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ditto_jax.tasks.base import ReplyPort, Source
from ditto_jax.tasks.paratomi.task import ParaToMi
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import FinishReason, Message, Reply
from tests.tasks.belief_cases import task_of


class _Recorder:
    """A policy that answers one text and remembers the chat that it saw."""

    def __init__(self, text: str):
        self.text = text
        self.chats: list[tuple[Message, ...]] = []

    async def reply(self, chat: Sequence[Message]) -> Reply:
        self.chats.append(tuple(chat))
        return Reply(self.text, FinishReason.STOP)

    def policy(self, role: str = "policy") -> ReplyPort:
        return self

    def llm(self, role: str) -> ReplyPort:
        raise AssertionError("single-turn tasks need no auxiliary model")


@pytest.mark.parametrize("name", ["hitom", "paratomi"])
def test_the_full_prompt_states_task_assumptions_story_question_and_format(name: str):
    task = get_task(name)
    for example in task.load(Source(limit=30)):
        recorder = _Recorder("<answer>A</answer>")
        conversation = asyncio.run(task.episode(example, recorder))
        (message,) = recorder.chats[0]
        prompt = message.content
        assert message.role == "user" and conversation.reply == "<answer>A</answer>"
        assert conversation.messages == (message, Message("assistant", "<answer>A</answer>"))
        assert example.payload["question"] in prompt and "<answer>" in prompt
        if name == "hitom":
            assert prompt.endswith(f"{example.payload['question']}\n{example.payload['choices']}")
            assert example.payload["story"] in prompt
            assert all(word in prompt for word in ("step by step", "lie", "private", "public", "one place together"))
        else:
            assert all(candidate in prompt for candidate in example.payload["cands"])
            for line in example.payload["story"].split("\n"):
                assert line.split(" ", 1)[1] in prompt
            assert "\n2 " not in prompt and "if the object is in A" in prompt


@pytest.mark.parametrize(("setting", "longest", "mean"), [("hitom-tiny", 60, 50), ("paratomi-tiny", 50, 35)])
def test_the_compact_prompt_is_short_and_holds_story_and_question(setting: str, longest: int, mean: int):
    task = task_of(setting)
    examples = task.load(Source(limit=500))
    prompts = [task.prompt(example) for example in examples]
    lengths = [len(prompt.split()) for prompt in prompts]
    assert max(lengths) <= longest and sum(lengths) / len(lengths) <= mean
    for example, prompt in zip(examples, prompts, strict=True):
        assert example.payload["question"] in prompt and example.gold in prompt
        if setting == "hitom-tiny":
            assert prompt.endswith(example.payload["choices"])


def test_candidates_are_listed_only_on_request():
    example = get_task("paratomi").load(Source(limit=1))[0]
    first = example.payload["cands"][0]
    listed, unlisted = (get_task("paratomi", {"list_candidates": flag}) for flag in (True, False))
    assert isinstance(listed, ParaToMi) and isinstance(unlisted, ParaToMi)
    assert first in listed.question_section(example)
    assert unlisted.question_section(example) == example.payload["question"]


def test_the_refined_prompt_begins_with_the_plain_prompt():
    task = get_task("hitom")
    example = task.load(Source(limit=1))[0]
    plain, refined = _Recorder("x"), _Recorder("x")
    asyncio.run(task.episode(example, plain))
    asyncio.run(task.episode(example, refined, feedback="Bob was away."))
    x, xh = plain.chats[0][-1].content, refined.chats[0][-1].content
    assert xh == f"{x}\nHint: Bob was away."


def test_feedback_may_stand_in_the_system_message_instead():
    task = get_task("hitom", {"feedback_placement": "system"})
    example = task.load(Source(limit=1))[0]
    recorder = _Recorder("x")
    asyncio.run(task.episode(example, recorder, feedback="Bob was away."))
    system, user = recorder.chats[0]
    assert system.role == "system" and "Bob was away." in system.content and "Bob was away." not in user.content


def test_evaluation_can_group_by_the_benchmarks_own_labels():
    hitom = get_task("hitom")
    assert set(hitom.breakdown(hitom.load(Source(limit=1))[0])) == {"order", "deception", "length"}
    tomi = get_task("paratomi")
    kinds = {tomi.breakdown(example)["type"] for example in tomi.load(Source(limit=600))}
    assert kinds == {"memory", "reality"} | {f"{o}_order_{t}" for o in ("first", "second") for t in ("tom", "no_tom")}
