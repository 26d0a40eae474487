"""Settings, replies and a handmade story that the tests of the theory-of-mind tasks share."""

from __future__ import annotations

import random
import string

from ditto_jax.tasks.belief.task import BeliefTask
from ditto_jax.tasks.hitom.files import read_choices
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import Conversation, Example

TINY = {"vocabulary": "small", "prompt_style": "compact", "false_belief_bias": 0.7}
TINY_HITOM = TINY | {
    "agents_min": 3,
    "agents_max": 4,
    "containers_min": 4,
    "containers_max": 5,
    "rooms": 1,
    "chapters": [1],
    "communication": 0,
    "noise": 0,
    "orders": [0, 1, 2, 3],
}
SETTINGS = {
    "hitom-tiny": ("hitom", TINY_HITOM),
    "hitom": ("hitom", {}),
    "hitom-lies": ("hitom", {"communication": 1.0, "chapters": [1], "orders": [0, 1, 2]}),
    "paratomi-tiny": ("paratomi", TINY | {"noise": 0.1}),
    "paratomi": ("paratomi", {"paraphrase": True}),
}


def task_of(setting: str) -> BeliefTask:
    """Returns the task of one of the SETTINGS."""
    name, options = SETTINGS[setting]
    task = get_task(name, options)
    assert isinstance(task, BeliefTask)
    return task


def containers_of(example: Example) -> list[str]:
    """Returns everything that may be answered."""
    if example.task == "hitom":
        return list((read_choices(example.payload["choices"]) or {}).values())
    return list(example.payload["cands"])


def words_about(task: BeliefTask, example: Example, reply: str, seed: object = 0) -> str | None:
    """Returns the rule feedback about a reply."""
    conversation = Conversation((), reply)
    return task.rule_feedback(example, conversation, task.rule_score(example, conversation), random.Random(str(seed)))


def reply_with(task: BeliefTask, example: Example, container: str) -> str:
    """Returns a reply that answers `container`."""
    return f"<answer>{task.answer_for(example, container)}</answer>"


def example_about(lines: str, asked: str, gold: str, containers: str) -> tuple[BeliefTask, Example]:
    """Returns the tiny hitom task and a handmade example of it."""
    options = containers.split()
    letters = dict(zip(options, string.ascii_uppercase, strict=False))
    payload = {
        "story": lines,
        "question": asked,
        "choices": ", ".join(f"{letter}. {option}" for option, letter in letters.items()),
        "gold_letter": letters[gold],
        "deception": False,
        "story_length": 1,
        "question_order": 1,
        "set_id": "s",
    }
    return task_of("hitom-tiny"), Example("hitom", "x", payload, gold)


LINES = (
    "Ann, Bob and Cid entered the den. The apple is in the crate. Ann moved the apple to the tub. Ann exited the den. "
    "Bob moved the apple to the bin. Bob exited the den. Cid moved the apple to the jar. Cid exited the den."
)
