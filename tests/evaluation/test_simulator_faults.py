"""Faults of simulators: each is named where it is planted, and ordinary talk shows none."""

from __future__ import annotations

import pytest

from ditto_jax.evaluation.simulator_faults import FAULTS, fault_counts, simulator_faults
from ditto_jax.tasks.registry import get_task
from ditto_jax.types import Conversation, Example, Message, Turn


def chat(*texts: str, other: str = "Assistant", **facts) -> Conversation:
    """A dialogue of the policy's `texts` with somebody who answers differently each time."""
    turns = []
    for number, text in enumerate(texts):
        turns.append(Turn("User", text, "policy"))
        turns.append(Turn(other, f"This is my answer of the number {number} to that.", "llm"))
    return Conversation((Message("user", "Write."), Message("assistant", texts[-1])), texts[-1], tuple(turns), facts)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("As an AI language model, I have no favourite colour.", "role_inversion"),
        ("I'm an AI, so no.", "role_inversion"),
        ("Sure! How can I help you today?", "role_inversion"),
        ("I want shoes.\nAssistant: Which size do you wear?", "role_inversion"),
        ("<reasoning>be brief</reasoning> what time is it", "reasoning_leak"),
        ("Thought: I should sound bored. when do you open", "reasoning_leak"),
        ("The user wants a refund, so: give me my money back", "reasoning_leak"),
        ("I need to respond as a customer. Hi there", "reasoning_leak"),
        ("   ", "empty_turn"),
        ("<think>what to say", "empty_turn"),
        ("so good " * 20, "repetition"),
    ],
)
def test_a_planted_fault_is_the_one_that_is_named(said, fault):
    assert simulator_faults(chat("hello, i need new shoes", said), as_user=True) == {fault}


def test_saying_the_same_again_is_repetition_and_so_is_an_echo():
    assert simulator_faults(chat("I would like my money back.", "i would like my money back")) == {"repetition"}
    assert simulator_faults(chat("hi there", "This is my answer of the number 0 to that!")) == {"repetition"}
    assert simulator_faults(chat("yes please", "yes please")) == frozenset()


@pytest.mark.parametrize(
    "said",
    [
        "whats the best way to learn to sing? tried youtube but no luck",
        "nah the second one was wrong, it says error 404 again",
        "I thought: why not ask. So, can you reset it?",
        "My friend said an AI could do this. Is that so?",
        "ok thanks, bye",
        "我想退货，可以吗？",
    ],
)
def test_people_show_no_fault(said):
    assert simulator_faults(chat("hello there", said), as_user=True) == frozenset()


def test_a_shopkeeper_may_offer_help_and_a_user_may_not():
    talk = chat("Good morning! How can I help you?", other="Ann")
    assert simulator_faults(talk) == frozenset()
    assert simulator_faults(talk, as_user=True) == {"role_inversion"}


def test_lines_of_others_are_role_inversion_by_name_or_by_the_tasks_own_count():
    assert simulator_faults(chat('Ann: "I accept."', other="Ann")) == {"role_inversion"}
    assert simulator_faults(chat("I accept.", other="Ann", spoke_for_others=1.0)) == {"role_inversion"}


def user_turn(reply: str, is_last: bool, ended: bool) -> tuple[Example, Conversation]:
    example = Example("userllm", "1", {"is_last": is_last}, "")
    return example, Conversation((Message("user", "Write."),), reply, facts={"ended": float(ended)})


@pytest.mark.parametrize(
    ("is_last", "ended", "ending"),
    [(True, True, ""), (False, False, ""), (True, False, "missing"), (False, True, "premature")],
)
def test_the_end_of_a_users_chat_is_compared_with_the_real_one(is_last, ended, ending):
    example, conversation = user_turn("thanks <|endconversation|>" if ended else "and then?", is_last, ended)
    assert get_task("userllm").ending(example, conversation) == ending
    assert simulator_faults(conversation, ending) == ({f"{ending}_ending"} if ending else frozenset())


@pytest.mark.parametrize(
    ("ended", "texts", "ending"),
    [
        ("left", ("Deal.", "[leave] bye"), ""),
        ("turns", ("Deal.", "And now?"), "missing"),
        ("silence", ("Deal.",), "premature"),
        ("left", ("[leave] bye", "Wait.", "[leave] bye"), "premature"),
    ],
)
def test_a_talk_ends_when_somebody_leaves_late_enough(ended, texts, ending):
    turns = tuple(Turn("Ann", text, "policy") for text in texts)
    conversation = Conversation((), "", turns, {"ended": ended})
    assert get_task("sotopia").ending(Example("sotopia", "1", {}, ""), conversation) == ending


def test_counts_are_of_episodes_and_hold_zeros():
    counts = fault_counts([("repetition", "empty_turn"), ("repetition",), ()])
    assert list(counts) == list(FAULTS)
    assert (counts["repetition"], counts["empty_turn"], counts["role_inversion"]) == (2, 1, 0)
