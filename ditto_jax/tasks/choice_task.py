"""Lettered choices in one reply: a strict 0/1 score for the letter in the answer tag, and words about a wrong choice.

In: examples whose payload has `gold_letter` and `options` (texts in letter order). Out: conversations, verdicts and
requests for feedback. A subclass supplies the prompt and what a coach should look at. A reply without exactly one
letter of the question in its first answer tag is wrong, whatever else it says.
"""

from __future__ import annotations

import abc
import random
from typing import Generic, TypeVar

from ditto_jax.judge.fence import fence
from ditto_jax.reply_form import ReplyForm, tagged
from ditto_jax.tasks.answers import answer_letter, answer_text
from ditto_jax.tasks.base import JudgeRequest, Ports
from ditto_jax.tasks.soul_task import HasPlacement, SoulTask
from ditto_jax.types import Conversation, Example, Message, Outcome, Verdict

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

OptionsT = TypeVar("OptionsT", bound=HasPlacement)


def lettered(options: tuple[str, ...], form: str = "{letter}) {text}") -> str:
    """Returns options as lines, empty ones left out."""
    pairs = zip(LETTERS, options, strict=False)
    return "\n".join(form.format(letter=letter, text=text) for letter, text in pairs if text)


def no_answer_words(thing: str, rng: random.Random) -> str:
    """Returns words about a reply that named no single option."""
    return rng.choice(
        (
            f"Your reply did not hold exactly one {thing} inside the answer tags.",
            f"End with one {thing}, and nothing else, inside the answer tags.",
            f"No single {thing} stood in the answer tags; choose one and put it there.",
        )
    )


class ChoiceTask(SoulTask[OptionsT], Generic[OptionsT]):
    """A question with lettered options, answered once."""

    @abc.abstractmethod
    def prompt(self, example: Example) -> tuple[Message, ...]:
        """Returns x."""

    @property
    @abc.abstractmethod
    def coaching(self) -> str:
        """What the writer of feedback is told: what a good hint for this task points at, and what it must not do."""

    @abc.abstractmethod
    def question_text(self, example: Example) -> str:
        """Returns everything that the writer of feedback must know about the question, options included."""

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        return self.placed(self.prompt(example), feedback)

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        chat = self.opening(example, feedback)
        reply = await ports.policy().reply(chat)
        return Conversation((*chat, Message("assistant", reply.text)), reply.text)

    def reply_form(self, example: Example, role: str, turn: int) -> ReplyForm | None:
        """Returns reasoning, then one letter that has an option, in the answer tag."""
        options = example.payload["options"]
        return tagged(letter for letter, text in zip(LETTERS, options, strict=False) if text)

    def chosen(self, example: Example, reply: str) -> str | None:
        """Returns the letter that a reply chooses; None if it names none, several, or one without an option."""
        letter = answer_letter(reply)
        options = example.payload["options"]
        has_option = letter is not None and LETTERS.index(letter) < len(options) and options[LETTERS.index(letter)]
        return letter if has_option else None

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        """Returns 1 if the reply chooses the gold letter, else 0; malformed answers are wrong."""
        letter = self.chosen(example, conversation.reply)
        score = float(letter == example.payload["gold_letter"])
        if answer_text(conversation.reply) is None:
            detail = "no answer tag"
        elif letter is None:
            detail = "no single letter of an option in the answer tag"
        else:
            detail = "right" if score else "wrong"
        return Verdict(Outcome.OK, score, {"accuracy": score}, judge="rules", detail=detail)

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns words about a missing answer; about a wrong one only tasks with a symbolic trace can say more."""
        if verdict.score is None or verdict.score >= 1.0 or self.chosen(example, conversation.reply) is not None:
            return None
        return no_answer_words("letter", rng)

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        """Returns the question for words about the choice; the reference is marked as private."""
        user = (
            f"{self.question_text(example)}\n\nThe reply:\n{fence(conversation.reply)}\n\n"
            f"Private reference: {example.payload['gold_letter']}) {example.gold}\n"
            f"The reply was scored: {verdict.detail or verdict.score}."
        )
        system = f"{self.coaching}\nThe reference is private: use it to find the mistake, do not repeat or imply it."
        return self.words_request(system, user)
