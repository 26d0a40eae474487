"""A draft → the chat in which the policy itself is asked for words about it: a reflection, or a critique.

draft rollout → **question** → reflection, and the context of critique rows. In: the task, its example, what was said,
the outcome. Out: messages. Where the policy played one role, its own chat goes on; several roles are shown as a text. A
verdict's `detail` is for people and never shown. Asks nobody.
"""

from __future__ import annotations

from typing import Any

from ditto_jax.tasks.base import Task
from ditto_jax.tasks.dialogue import transcript
from ditto_jax.tasks.openings import reopened
from ditto_jax.types import Conversation, Example, Feedback, Message, Verdict

_OUTCOME = "Your attempt scored {score:.2f}; higher is better."
_JUDGED = "The judge said: {words}"
_REFLECT = (
    "Write one or two sentences of advice for another attempt: what to look at, what to do otherwise. Do not give the "
    "answer."
)
_CRITIQUE = "Assess your attempt: name its most important fault in one or two sentences, without giving the answer."


def reflection_question(
    task: Task[Any],
    example: Example,
    conversation: Conversation,
    verdict: Verdict,
    words: Feedback | None = None,
    was: str | None = None,
) -> tuple[Message, ...]:
    """Returns x, the draft, its score, the judge's words if they are usable, and the request for advice.

    was: the words that the draft was sampled under, which are taken out. Raises ValueError without a score.
    """
    if verdict.score is None:
        raise ValueError(f"reflection on {example.id}: the draft has no score; ask only about judged drafts")
    parts = [_OUTCOME.format(score=verdict.score)]
    if words is not None and words.usable:
        parts.append(_JUDGED.format(words=words.text))
    return _asked(task, example, conversation, "\n".join([*parts, _REFLECT]), was)


def critique_question(
    task: Task[Any], example: Example, conversation: Conversation, was: str | None = None
) -> tuple[Message, ...]:
    """Returns x, the draft, and the request for a critique (feedback modelling, arXiv 2602.02482).

    The score is not shown: at test time there is none.
    """
    return _asked(task, example, conversation, _CRITIQUE, was)


def _asked(
    task: Task[Any], example: Example, conversation: Conversation, question: str, was: str | None
) -> tuple[Message, ...]:
    openings = task.openings(example)
    if len(openings) == 1:
        (role, opening), said = next(iter(openings.items())), conversation.messages
        chat = said if was is None else reopened(task, example, role, said, was, None)
        return (*(chat or opening), Message("user", question))
    told = [f"{role} was told:\n{_text(opening)}" for role, opening in openings.items()]
    shown = "\n\n".join([*told, f"What was said:\n{transcript(conversation.turns)}", question])
    return (Message("user", shown),)


def _text(opening: tuple[Message, ...]) -> str:
    return "\n".join(message.content for message in opening)
