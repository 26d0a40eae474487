"""One user turn as an example: what the person wants, the chat before it, and what its scorer must know.

In: the pieces that readers and the generator have. Out: examples of one payload shape, and the templated chats before a
CommonsenseQA or Natural Questions turn (a stand-in: the benchmark's own assistant turns are not public). Reads no file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ditto_jax.tasks.dialogue import transcript
from ditto_jax.types import Example, Turn

CSQA, NQ, PRISM = SUBTASKS = ("csqa", "nq", "prism")
USER, AI = "User", "Assistant"
END = "<|endconversation|>"

_UNSURE = "I am not sure which of these is right. Which one do you think it is?"
_OFFER = "I am not certain about that one. There is something close to it that I can tell you: {suggestion} Shall I?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserTurn:
    """A place in a chat where the user is to write.

    subtask: "csqa" (does the user stay the one who asks), "nq" (does the user keep to the question) or "prism" (own
    words, an end in time, a human tone). intent: what the person is after. history: the chat before, "" for a first
    turn. is_last: whether what the person wanted has been given. question, suggestion, options: what "csqa" and "nq"
    are scored by. group: what must not be in two splits. gold: what the real user wrote, where that is known.
    """

    subtask: str
    intent: str
    history: str
    source: str
    group: str
    is_last: bool = False
    question: str = ""
    suggestion: str = ""
    options: tuple[str, ...] = ()
    gold: str = ""

    def example(self, example_id: str) -> Example:
        """Returns the example; its payload also says which kind of turn it is: first, later or last."""
        turn = "first" if not self.history else "last" if self.is_last else "later"
        payload = {**dataclasses.asdict(self), "turn": turn}
        gold = payload.pop("gold")
        return Example(task="userllm", id=example_id, payload=payload, gold=gold)


def chat_text(lines: Sequence[tuple[str, str]]) -> str:
    """Returns (speaker, text) pairs as the chat that a prompt shows."""
    return transcript(Turn(speaker, text, "given") for speaker, text in lines)


def csqa_turn(question: str, options: tuple[str, ...], *, source: str, group: str) -> UserTurn:
    """Returns the turn after a user listed choices and the assistant, unsure, asked the user to decide."""
    return UserTurn(
        subtask=CSQA,
        intent=f"the answer to a question that you cannot answer yourself: {question}",
        history=chat_text(((USER, f"{question} Is it {_either(options)}?"), (AI, _UNSURE))),
        source=source,
        group=group,
        question=question,
        options=options,
    )


def nq_turn(question: str, suggestion: str, *, source: str, group: str) -> UserTurn:
    """Returns the turn after the assistant, unsure, offered to answer another question instead."""
    return UserTurn(
        subtask=NQ,
        intent=f"the answer to this question: {question}",
        history=chat_text(((USER, question), (AI, _OFFER.format(suggestion=suggestion)))),
        source=source,
        group=group,
        question=question,
        suggestion=suggestion,
    )


def _either(options: Sequence[str]) -> str:
    return f"{', '.join(options[:-1])} or {options[-1]}"
