"""The task of the step benchmark: prompts of words, and a reward that costs nothing to compute.

In: prompts as text. Out: one reply an episode, scored by the reward that peers are given too. Its texts are
those of the word tokenizer (benchmarks/workloads.py).
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence

from benchmarks.reward import distinct_share
from ditto_jax.tasks.base import FeedbackReply, JudgeRequest, Ports, Source, Task
from ditto_jax.types import Conversation, Example, Message, Outcome, Verdict


def words_of(ids: Sequence[int]) -> str:
    """Returns the text that the word tokenizer makes these ids of."""
    return " ".join(f"t{token}" for token in ids)


@dataclasses.dataclass(frozen=True)
class WordOptions:
    """Every prompt has `prompt_tokens` words out of `vocab_size`."""

    vocab_size: int
    prompt_tokens: int


class WordTask(Task[WordOptions]):
    """Continue a row of words; more distinct words are better."""

    name = "words"
    version = "1"
    options_type = WordOptions

    def load(self, source: Source) -> Sequence[Example]:
        """Returns `source.limit` prompts of random words."""
        rng = random.Random(source.seed)
        vocab = range(1, self.options.vocab_size)
        rows = [rng.choices(vocab, k=self.options.prompt_tokens) for _ in range(source.limit or 1)]
        return [Example(self.name, str(i), {"words": words_of(ids)}, gold="") for i, ids in enumerate(rows)]

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        words = str(example.payload["words"])
        return (Message("user", words if feedback is None else f"{words} {feedback}"),)

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        chat = self.opening(example, feedback)
        reply = await ports.policy().reply(chat)
        return Conversation((*chat, Message("assistant", reply.text)), reply.text)

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict:
        return Verdict(Outcome.OK, distinct_share(conversation.reply))

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns up to eight words that the reply holds more than once, or None if it holds none twice."""
        counts = Counter(conversation.reply.split())
        return " ".join([word for word, count in counts.items() if count > 1][:8]) or None

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        question = Message("user", "Say which words occur twice.")
        return JudgeRequest((question,), FeedbackReply, self.version)
