"""Where feedback stands in a chat, and the control arm that says nothing."""

from __future__ import annotations

import random

import pytest

from ditto_jax.errors import ConfigError
from ditto_jax.rollouts.feedback import content_free_feedback, with_feedback
from ditto_jax.tasks.leak import leak_rule
from ditto_jax.types import Message

CHAT = (Message("system", "Be brief."), Message("user", "one"), Message("assistant", "two"), Message("user", "three"))


def test_at_the_end_of_the_last_user_message_only_text_is_appended():
    changed = with_feedback(CHAT, "Bob was away.")
    assert changed[:-1] == CHAT[:-1]
    assert changed[-1] == Message("user", "three\nHint: Bob was away.")
    assert CHAT[-1].content == "three"


def test_words_go_to_the_last_user_message_even_if_the_chat_ends_with_a_reply():
    changed = with_feedback(CHAT[:3], "h")
    assert changed == (CHAT[0], Message("user", "one\nHint: h"), CHAT[2])


@pytest.mark.parametrize(
    ("chat", "before"), [(CHAT, "Be brief.\n\n"), (CHAT[1:], ""), ((Message("system", ""), *CHAT[1:]), "")]
)
def test_a_system_note_joins_or_makes_the_system_message(chat: tuple[Message, ...], before: str):
    changed = with_feedback(chat, "h", "system")
    assert changed[0].role == "system"
    assert changed[0].content.startswith(f"{before}Private note") and changed[0].content.endswith(": h")
    assert changed[1:] == CHAT[1:]


def test_unknown_placements_and_chats_without_a_user_are_refused():
    with pytest.raises(ConfigError, match="feedback_placement='middle'"):
        with_feedback(CHAT, "h", "middle")
    with pytest.raises(ValueError, match="no user message"):
        with_feedback(CHAT[:1], "h")


def test_content_free_words_vary_and_name_nothing():
    said = {content_free_feedback(random.Random(seed)) for seed in range(200)}
    assert len(said) >= 8
    assert all(leak_rule(words, "red_box", letter) == "" for words in said for letter in "ABCDEFGHIJKLMNO")
    assert content_free_feedback(random.Random(1)) == content_free_feedback(random.Random(1))
