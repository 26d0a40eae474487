"""Worked replies: careful ones are right and follow the oracle's trace, careless ones answer with reality."""

from __future__ import annotations

import re

import pytest

from ditto_jax.tasks.base import Source
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import Conversation, Example
from tests.tasks.belief_cases import LINES, SETTINGS, example_about, reply_with, task_of


@pytest.mark.parametrize("setting", SETTINGS)
def test_careful_demonstrations_score_one_in_every_split(setting: str):
    task = task_of(setting)
    for split in ("train", "test"):
        for example in task.load(Source(limit=300, split=split)):
            reply = task.demonstration(example)
            assert reply and task.rule_score(example, Conversation((), reply)).score == 1


@pytest.mark.parametrize("setting", ["hitom-tiny", "paratomi-tiny"])
def test_careless_demonstrations_are_wrong_exactly_where_belief_differs_from_reality(setting: str):
    task = task_of(setting)
    wrong = 0
    for example in task.load(Source(limit=600)):
        trace = task.trace(example)
        careless = task.demonstration(example, careful=False)
        assert trace is not None and careless is not None
        real = [step for step in trace.steps if step.kind in ("first", "noted", "move")][-1].container
        right = task.rule_score(example, Conversation((), careless)).score == 1
        if trace.question.chain:
            assert right == (real == example.gold)
            assert careless.endswith(reply_with(task, example, real)) and "all saw" in careless
        else:
            assert right
        wrong += not right
    assert wrong > 200


@pytest.mark.parametrize(
    ("question", "gold", "reply"),
    [
        ("Where is the apple really?", "jar", "jar Cid: all saw. <answer>D</answer>"),
        ("Where does Bob really think the apple is?", "bin", "jar Cid: Bob away; bin Bob: all saw. <answer>C</answer>"),
        (
            "Where does Cid think Ann thinks Bob thinks the apple is?",
            "tub",
            "jar Cid: Ann away; bin Bob: Ann away; tub Ann: all saw. <answer>B</answer>",
        ),
    ],
)
def test_steps_are_told_latest_first_up_to_the_first_that_all_saw(question: str, gold: str, reply: str):
    task, example = example_about(LINES, question, gold, "crate tub bin jar")
    assert task.demonstration(example) == reply


def _tomi(question: str, gold: str) -> Example:
    payload = {
        "story": "Ann entered the den.\nBob entered the den.\nThe apple is in the crate.\nBob exited the den.\n"
        "Ann moved the apple to the tub.",
        "question": question,
        "cands": ("crate", "tub", "den"),
        "question_type": "memory",
        "question_order": 0,
        "story_type": "",
    }
    return Example("paratomi", "x", payload, gold)


def test_memory_is_answered_with_the_first_place_even_carelessly():
    task, example = get_task("paratomi"), _tomi("Where was the apple at the beginning?", "crate")
    assert task.demonstration(example) == task.demonstration(example, careful=False)
    assert task.demonstration(example) == "crate first. <answer>crate</answer>"


def test_the_first_place_is_named_so():
    task, example = get_task("paratomi"), _tomi("Where will Bob look for the apple?", "crate")
    assert task.demonstration(example) == "tub Ann: Bob away; crate first: all saw. <answer>crate</answer>"
    assert task.demonstration(example, careful=False) == "tub Ann: all saw. <answer>tub</answer>"


def test_messages_are_steps_of_their_own():
    lines = f"{LINES} Ann, Bob and Cid entered the waiting_room. Bob publicly claimed that apple is in the pot."
    told = {
        "Ann": ("pot", "pot Bob: says, Ann trusts. <answer>E</answer>"),
        "Cid": ("jar", "pot Bob: says, Cid doubts; jar Cid: all saw. <answer>D</answer>"),
    }
    for name, (gold, reply) in told.items():
        task, example = example_about(
            lines, f"Where does {name} really think the apple is?", gold, "crate tub bin jar pot"
        )
        assert task.demonstration(example) == reply
    task, example = example_about(
        lines, "Where does Bob think Cid thinks the apple is?", "pot", "crate tub bin jar pot"
    )
    assert task.demonstration(example) == "pot Bob: says, Cid trusts. <answer>E</answer>"


def test_tiny_demonstrations_are_short():
    for setting in ("hitom-tiny", "paratomi-tiny"):
        task = task_of(setting)
        replies = [task.demonstration(example) or "" for example in task.load(Source(limit=400))]
        assert max(len(re.findall(r"\w+", reply)) for reply in replies) <= 28
