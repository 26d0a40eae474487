"""A task of one's own: who spoke last? Chats of four lines; the score is 1 if the reply names that person alone."""

from __future__ import annotations

import dataclasses
import random

from ditto_jax.judge.fence import FENCE_NOTE, fence
from ditto_jax.rollouts.feedback import with_feedback
from ditto_jax.tasks.answers import visible_text
from ditto_jax.tasks.base import FeedbackReply, JudgeRequest, Task
from ditto_jax.types import Conversation, Example, Message, Outcome, Verdict

NAMES = {"train": ("Ava", "Ben", "Cleo", "Dan"), "validation": ("Eli", "Fay", "Gus"), "test": ("Hugo", "Iris", "Jon")}
LINES = ("I am late.", "So am I.", "Who has the key?", "The door is open.", "See you there.")


@dataclasses.dataclass(frozen=True)
class Options:
    lines: int = 4


class LastSpeaker(Task[Options]):
    name = "last_speaker"
    version = "1"
    options_type = Options

    def load(self, source):
        rng, names = random.Random(f"{source.seed} {source.split}"), NAMES[source.split]
        examples = []
        for index in range(source.limit or 100):
            speakers = [rng.choice(names) for _ in range(self.options.lines)]
            chat = "\n".join(f"{speaker}: {rng.choice(LINES)}" for speaker in speakers)
            payload = {"chat": chat, "names": names}
            examples.append(Example(self.name, f"{source.split}-{index}", payload, gold=speakers[-1]))
        return examples

    def opening(self, example, feedback=None):
        chat = (Message("user", f"{example.payload['chat']}\nWho spoke last?"),)
        return chat if feedback is None else with_feedback(chat, feedback, "end_of_user")

    async def episode(self, example, ports, feedback=None):
        chat = self.opening(example, feedback)
        reply = await ports.policy().reply(chat)
        return Conversation((*chat, Message("assistant", reply.text)), reply.text)

    def rule_score(self, example, conversation):
        said = [name for name in example.payload["names"] if name in visible_text(conversation.reply)]
        return Verdict(Outcome.OK, float(said == [example.gold]))

    def rule_feedback(self, example, conversation, verdict, rng):
        return "Read the chat from its end: whose line is the lowest?"

    def feedback_request(self, example, conversation, verdict):
        ask = f'Say what the reply overlooks, without the answer. {FENCE_NOTE}\nReply as JSON: {{"feedback": "..."}}.'
        shown = f"{example.payload['chat']}\nWho spoke last?\nReply:\n{fence(conversation.reply)}"
        return JudgeRequest((Message("system", ask), Message("user", shown)), FeedbackReply, "last_speaker-feedback-1")
