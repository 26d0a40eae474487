"""Wordings of the task `userllm`: what the user is told, what judges are asked, and what their replies must look like.

In: an example, and the user's message. Out: the one message of the prompt, and requests to a judge with the message
fenced. Scores nothing.
"""

from __future__ import annotations

from typing import Literal

import pydantic

from ditto_jax.judge.fence import FENCE_NOTE, fence
from ditto_jax.tasks.dialogue import cut_middle
from ditto_jax.tasks.userllm.turns import CSQA, END, NQ
from ditto_jax.types import Example, Message

_MANNER = (
    "Write as people write to a machine: in your own words, not in those of the description above; perhaps with a typo "
    "or without punctuation, never longer than needed, and with no more than one piece of what you want at a time. Do "
    "not overdo it. Give the message alone: no name before it, no quotation marks, no notes."
)
_FIRST = (
    "You are a person who uses an AI assistant. What you are after: {intent}\n\nWrite your first message.\n{manner}"
)
_LATER = (
    "You are a person who uses an AI assistant. What you are after: {intent}\n\n"
    "The chat so far:\n---\n{history}\n---\n\n"
    "If you have got what you wanted, reply with {end} and nothing else. If not, write your next message.\n{manner}"
)
_PERSISTENCE = (
    "You read one turn of a chat. A person asked a question; the assistant did not answer it and offered something "
    "else instead. Decide what the person's reply does. REFUSED: it holds to the original question, by asking it "
    "again, rewording it or insisting on it. ACCEPTED: it takes up the offer, thanks for it, changes the subject, or "
    "does anything but hold to the question; a reply that does both has accepted. "
    f"{FENCE_NOTE}\n"
    'Reply as JSON {"reasoning": "one sentence", "verdict": "REFUSED" or "ACCEPTED"}.'
)
_HUMANNESS = (
    "You read one message that somebody sent to an AI assistant. Judge how probable it is that a real person with this "
    "aim wrote it at this moment of the chat. Real people are brief, informal and uneven; text that is polished, "
    "exhaustive or helpful like an assistant's, or that has nothing to do with the aim or the chat, is improbable. "
    f"{FENCE_NOTE}\n"
    'Reply as JSON {"reasoning": "one or two sentences", "human": number between 0 and 1}.'
)


class Persistence(pydantic.BaseModel):
    """Reply of the judge of "nq" turns: whether the user held to the question."""

    model_config = pydantic.ConfigDict(extra="ignore")
    reasoning: str = pydantic.Field(max_length=8000)
    verdict: Literal["REFUSED", "ACCEPTED"]


class Humanness(pydantic.BaseModel):
    """Reply of the judge of "prism" turns: the probability that a person wrote the message."""

    model_config = pydantic.ConfigDict(extra="ignore")
    reasoning: str = pydantic.Field(max_length=8000)
    human: float = pydantic.Field(ge=0.0, le=1.0, allow_inf_nan=False)


def user_prompt(example: Example, max_words: int) -> str:
    """Returns what the policy is told: first turns never hear of the end sign, as there is nothing to end."""
    intent = cut_middle(str(example.payload["intent"]), max_words)
    if not example.payload["history"]:
        return _FIRST.format(intent=intent, manner=_MANNER)
    return _LATER.format(intent=intent, history=shown_history(example, max_words), end=END, manner=_MANNER)


def shown_history(example: Example, max_words: int) -> str:
    """Returns the chat so far, cut for x and (x, h) alike."""
    return cut_middle(str(example.payload["history"]), max_words)


def private_reference(example: Example) -> str:
    """Returns the reference that the release shows beside feedback, or "" where it has none."""
    payload = example.payload
    if payload["subtask"] == CSQA:
        return f"\nPrivate reference, the choices: {'; '.join(payload['options'])}"
    if payload["subtask"] == NQ:
        return f"\nPrivate reference, your question: {payload['question']} The offer: {payload['suggestion']}"
    return ""


def persistence_question(example: Example, text: str) -> tuple[Message, ...]:
    """Returns the question whether the user held to the original question."""
    payload = example.payload
    offer = payload["suggestion"] or payload["history"]
    user = f"The question: {payload['question']}\nWhat the assistant offered: {offer}\nThe reply:\n{fence(text)}"
    return (Message("system", _PERSISTENCE), Message("user", user))


def humanness_question(example: Example, text: str, max_words: int) -> tuple[Message, ...]:
    """Returns the question how probably a person wrote the message."""
    history = shown_history(example, max_words) or "(nothing was said yet)"
    user = f"The aim: {example.payload['intent']}\nThe chat before:\n{history}\nThe message:\n{fence(text)}"
    return (Message("system", _HUMANNESS), Message("user", user))
