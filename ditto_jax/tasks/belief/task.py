"""What the two theory-of-mind tasks share: one reply an episode, a strict 0/1 score, and words from the belief trace.

In: examples whose story is in the story grammar, or carries its events. Out: conversations, verdicts, feedback,
demonstrations, requests for feedback. A subclass supplies prompts, the belief rules, and how an answer names a
container. Stories outside the grammar are played and scored as usual; rules then have no words about them.
"""

from __future__ import annotations

import abc
import functools
import random
from collections.abc import Mapping
from typing import ClassVar, Protocol, TypeVar

from ditto_jax.errors import DataError
from ditto_jax.judge.fence import FENCE_NOTE, fence
from ditto_jax.tasks.answers import answer_text, plain_name
from ditto_jax.tasks.base import FeedbackReply, JudgeRequest, Ports
from ditto_jax.tasks.belief.demonstration import worked_steps
from ditto_jax.tasks.belief.feedback import belief_feedback, say
from ditto_jax.tasks.belief.oracle import Rules, Trace, trace_belief
from ditto_jax.tasks.belief.story import Event, parse_question, parse_story, render_terse
from ditto_jax.tasks.soul_task import SoulTask
from ditto_jax.tasks.splits import group_name
from ditto_jax.types import Conversation, Example, Message, Outcome, Verdict


class BeliefOptions(Protocol):
    """Options that both tasks have."""

    @property
    def prompt_style(self) -> str: ...

    @property
    def feedback_placement(self) -> str: ...


OptionsT = TypeVar("OptionsT", bound=BeliefOptions)


@functools.lru_cache(maxsize=4096)
def _events(text: str) -> tuple[Event, ...] | None:
    try:
        return parse_story(text)
    except DataError:
        return None


def events_of(example: Example) -> tuple[Event, ...] | None:
    """Returns the events of a story, None if its text is outside the grammar and the example carries no `events`."""
    return _events(str(example.payload.get("events") or example.payload["story"]))


class BeliefTask(SoulTask[OptionsT]):
    """A theory-of-mind question about where an object is thought to be."""

    rules: ClassVar[Rules]
    rules_in_brief: ClassVar[str]  # for the judge that writes feedback

    @property
    @abc.abstractmethod
    def answer_thing(self) -> str:
        """What belongs into the answer tags, in a word: "letter" or "place"."""

    @property
    @abc.abstractmethod
    def instructions(self) -> str:
        """What stands before the story in the prompt style "full"."""

    def full_story(self, example: Example) -> str:
        """Returns the story as the prompt style "full" tells it."""
        return self.story_text(example)

    def prompt(self, example: Example) -> str:
        """Returns the user message x."""
        question = self.question_section(example)
        if self.options.prompt_style == "compact":
            return f"{self.story_text(example)}\n{question}"
        extra = str(example.payload.get("extra_info") or "")
        sections = [
            self.instructions,
            f"## Story\n{self.full_story(example)}",
            *([f"## Further information\n{extra}"] if extra else []),
            f"## Question\n{question}",
        ]
        return "\n\n".join(sections)

    @abc.abstractmethod
    def answered_container(self, example: Example, reply: str) -> str | None:
        """Returns the one container or place that a reply answers, None if it names none or several."""

    @abc.abstractmethod
    def answer_for(self, example: Example, container: str) -> str:
        """Returns what stands in the answer tags for a container."""

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        return self.placed((Message("user", self.prompt(example)),), feedback)

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        chat = self.opening(example, feedback)
        reply = await ports.policy().reply(chat)
        return Conversation((*chat, Message("assistant", reply.text)), reply.text)

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict:
        """Returns 1 if the reply answers exactly the gold container, else 0; malformed answers are wrong."""
        text = answer_text(conversation.reply)
        container = self.answered_container(example, conversation.reply)
        is_right = container is not None and plain_name(container) == plain_name(example.gold)
        if text is None:
            detail = "no answer tag"
        elif container is None:
            detail = f"no single {self.answer_thing} in the answer tag"
        else:
            detail = "right" if is_right else "wrong"
        score = float(is_right)
        return Verdict(Outcome.OK, score, {"accuracy": score}, judge="rules", detail=detail)

    def groups(self, example: Example) -> frozenset[str]:
        """All questions about one story stay together."""
        return frozenset({group_name("story", str(example.payload["story"]))})

    def trace(self, example: Example) -> Trace | None:
        """Returns the belief trace of the example's question, None if story or question are outside the grammar."""
        events = events_of(example)
        if events is None:
            return None
        try:
            question = parse_question(str(example.payload["question"]))
        except DataError:
            return None
        return trace_belief(events, question, self.rules)

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns words about one mistake of a wrong draft.

        None if the draft is right, if the story is outside the grammar, or if the story contradicts its own label (a
        few official rows do): then rules would mislead.
        """
        if verdict.score is None or verdict.score >= 1.0:
            return None
        draft = self.answered_container(example, conversation.reply)
        if draft is None:
            return self._styled(say("no_answer", rng, thing=self.answer_thing))
        trace, events = self.trace(example), events_of(example)
        if trace is None or events is None or trace.answer is None:
            return None
        if plain_name(trace.answer) != plain_name(example.gold):
            return None
        words = belief_feedback(trace, events, draft, rng)
        return None if words is None else self._styled(words)

    def _styled(self, words: str) -> str:
        return words if self.options.prompt_style == "compact" else words[0].upper() + words[1:]

    def demonstration(self, example: Example, careful: bool = True) -> str | None:
        """Returns the worked steps and the answer tag.

        None if the story is outside the grammar or contradicts its own label. careful=False answers belief questions
        with where the object really is, as if everyone had seen the last move.
        """
        trace = self.trace(example)
        if trace is None or trace.answer is None or plain_name(trace.answer) != plain_name(example.gold):
            return None
        steps, container = worked_steps(trace, careful)
        return f"{steps} <answer>{self.answer_for(example, container)}</answer>"

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        """Returns the question for one sentence about the draft's mistake; the gold answer is marked as private."""
        system = (
            "You coach a reader who answered a question about what people in a story think. "
            f"Rules of these stories: {self.rules_in_brief}\n"
            "Reply with one short sentence that points to the single fact the reader missed: who was away, who moved "
            "the object, who left before whom, or what the question asks. Never state the answer, its letter, or the "
            "name of any place where the object is or could be. The reference answer is private: use it to find the "
            f'mistake, do not repeat it. {FENCE_NOTE}\nReply as JSON: {{"feedback": "..."}}.'
        )
        outcome = verdict.detail or str(verdict.score)
        user = (
            f"Story:\n{example.payload['story']}\n\nQuestion:\n{self.question_section(example)}\n\n"
            f"The reader's reply:\n{fence(conversation.reply)}\n\n"
            f"Private reference answer: {example.gold}\nThe reader's reply was scored: {outcome}."
        )
        messages = (Message("system", system), Message("user", user))
        return JudgeRequest(messages, FeedbackReply, prompt_version=f"{self.name}-feedback-{self.version}")

    @abc.abstractmethod
    def question_section(self, example: Example) -> str:
        """Returns the question as the reader sees it, with its options."""

    def story_text(self, example: Example) -> str:
        """Returns the story for the prompt: terse in compact style if it can be parsed and is not paraphrased."""
        story = str(example.payload["story"])
        if self.options.prompt_style == "compact" and "events" not in example.payload:
            events = events_of(example)
            return story if events is None else render_terse(events)
        return story

    def breakdown(self, example: Example) -> Mapping[str, str]:
        return {"order": str(example.payload["question_order"])}
