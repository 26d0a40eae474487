"""The task `userllm`: one message of a user to an assistant, scored in three ways by what the turn is there to test.

In: generated turns (a stand-in), public question lists and chats, or released parquet rows. Out: prompts, scores (role
adherence by rules; intent adherence and a human tone by a judge), words, and measures of whole batches. Every verdict
also holds what the released code would have given, whose overlap has the opposite sign.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pydantic

from ditto_jax.errors import ConfigError
from ditto_jax.judge.fence import fence
from ditto_jax.tasks.base import JudgeRequest, Ports, Scored, Source
from ditto_jax.tasks.leak import reference_ngram
from ditto_jax.tasks.soul_task import SoulOptions, SoulTask
from ditto_jax.tasks.splits import SPLITS
from ditto_jax.tasks.userllm import coaching, measures, prompts
from ditto_jax.tasks.userllm.files import userllm_released
from ditto_jax.tasks.userllm.generator import generate_userllm
from ditto_jax.tasks.userllm.manner import plain_manner
from ditto_jax.tasks.userllm.public import STAND_IN, read_userllm
from ditto_jax.tasks.userllm.turns import CSQA, END, NQ, PRISM, SUBTASKS
from ditto_jax.types import Conversation, Example, Message, Outcome, Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserLLMOptions(SoulOptions):
    """Options of the task `userllm`, beside those of every task.

    subtasks: which of csqa, nq and prism are generated and read from public files. gold_in_prompt: the release's
    feedback, which says whether to end, which choices not to name and what to ask.
    """

    feedback_placement: str = "system"
    max_words: int = 2000
    subtasks: tuple[str, ...] = SUBTASKS

    def __post_init__(self):
        super().__post_init__()
        if not self.subtasks or len(set(self.subtasks)) < len(self.subtasks) or set(self.subtasks) - set(SUBTASKS):
            raise ConfigError(
                f"tasks.userllm.options.subtasks={list(self.subtasks)}: must be different names out of "
                f"{', '.join(SUBTASKS)}"
            )


class UserLLM(SoulTask[UserLLMOptions]):
    """How well a message passes for a user's: role, intent, own words, an end in time, a human tone."""

    name = "userllm"
    version = "1"
    options_type = UserLLMOptions
    in_character = True
    simulates_user = True
    sources: ClassVar = {"generated": SPLITS, "files": SPLITS, "parquet": SPLITS}

    def generate(self, split: str, count: int, seed: int) -> list[Example]:
        return generate_userllm(split, count, seed, self.options.subtasks)

    def read_files(self, path: Path, source: Source) -> list[Example]:
        return read_userllm(path, source.split, self.options.subtasks, source.rows)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return userllm_released(file, where, example_id, info)

    def evaluation_only(self, source: Source) -> str:
        holds_chats = source.kind == "files" and source.split == "test" and PRISM in self.options.subtasks
        return f"the test split holds MirrorBench's test chats ({STAND_IN})" if holds_chats else ""

    def groups(self, example: Example) -> frozenset[str]:
        return frozenset({str(example.payload["group"])})

    def breakdown(self, example: Example) -> Mapping[str, str]:
        payload = example.payload
        return {"subtask": payload["subtask"], "turn": payload["turn"], "source": payload["source"]}

    def ending(self, example: Example, conversation: Conversation) -> str:
        """Compares the end sign with whether the real user's turn was the last; only "prism" turns may be."""
        ended, is_last = bool(conversation.facts.get("ended")), bool(example.payload.get("is_last"))
        return "premature" if ended and not is_last else "missing" if is_last and not ended else ""

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        text = prompts.user_prompt(example, self.options.max_words)
        if feedback is not None and self.options.gold_in_prompt:
            text += prompts.private_reference(example)
        return self.placed((Message("user", text),), feedback)

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        chat = self.opening(example, feedback)
        reply = await ports.policy().reply(chat)
        _, ended = measures.said(reply.text)
        return Conversation((*chat, Message("assistant", reply.text)), reply.text, facts={"ended": float(ended)})

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict | None:
        """Returns the score of a "csqa" turn, and of any turn without words; the rest is for the judge."""
        text, _ = measures.said(conversation.reply)
        subtask = example.payload["subtask"]
        if subtask == CSQA:
            payload = example.payload
            adherence = measures.role_adherence(text, payload["question"], payload["options"])
            released = measures.release_role_adherence(text, payload["options"])
            return self._verdict({"role_adherence": adherence}, adherence, released)
        if text:
            return None
        if subtask == NQ:
            return self._verdict({"intent_adherence": 0.0}, 0.0, 0.0)
        return self._multi_metric(example, conversation, None)

    def score_requests(self, example: Example, conversation: Conversation) -> Mapping[str, JudgeRequest]:
        text, _ = measures.said(conversation.reply)
        if example.payload["subtask"] == NQ:
            messages = prompts.persistence_question(example, text)
            return {"persistence": JudgeRequest(messages, prompts.Persistence, f"userllm-nq-{self.version}")}
        messages = prompts.humanness_question(example, text, self.options.max_words)
        return {"humanness": JudgeRequest(messages, prompts.Humanness, f"userllm-human-{self.version}")}

    def judged_score(
        self, example: Example, conversation: Conversation, replies: Mapping[str, pydantic.BaseModel]
    ) -> Verdict:
        (reply,) = replies.values()
        if isinstance(reply, prompts.Persistence):
            score = float(reply.verdict == "REFUSED")
            return self._verdict({"intent_adherence": score}, score, score, critique=reply.reasoning)
        assert isinstance(reply, prompts.Humanness)
        return self._multi_metric(example, conversation, reply.human, critique=reply.reasoning)

    def proxy_score(self, example: Example, conversation: Conversation) -> Verdict:
        """Returns the score with signs that a rule can see in the judge's place: words of the question, a plain manner.

        For "nq", 1 if the reply shares at least half of the question's content words and more than of the offer's.
        """
        text, _ = measures.said(conversation.reply)
        if example.payload["subtask"] == PRISM:
            return self._multi_metric(example, conversation, plain_manner(text))
        question, offer = str(example.payload["question"]), str(example.payload["suggestion"])
        holds = measures.restates(text, question) and measures.overlap(question, text) >= measures.overlap(offer, text)
        return self._verdict({"intent_adherence": float(holds)}, float(holds), float(holds))

    def _multi_metric(
        self, example: Example, conversation: Conversation, human: float | None, critique: str = ""
    ) -> Verdict:
        """The verdict on a "prism" turn; without words there is no `human` to speak of."""
        text, ended = measures.said(conversation.reply)
        intent, is_last = str(example.payload["intent"]), bool(example.payload["is_last"])
        terms = (intent, text, ended, is_last, human or 0.0)
        dimensions = {"termination": float(ended == is_last)}
        if text:
            dimensions |= {
                "overlap": measures.overlap(intent, text),
                "own_words": measures.own_words(intent, text),
                "human": human or 0.0,
            }
        recommended, released = measures.multi_metric(*terms), measures.release_multi_metric(*terms)
        return self._verdict(dimensions, recommended, released, critique=critique)

    def _verdict(
        self, dimensions: Mapping[str, float], recommended: float, released: float, critique: str = ""
    ) -> Verdict:
        both = {"reward_recommended": recommended, "reward_release": released}
        score = both[f"reward_{self.options.reward}"]
        return Verdict(Outcome.OK, score, {**dimensions, **both}, critique=critique)

    def batch_metrics(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """Returns the diversity of first turns and precision, recall and F1 of endings, over the "prism" turns."""
        prism = [one for one in scored if one.example.payload["subtask"] == PRISM]
        said = [measures.said(one.conversation.reply) for one in prism]
        first = [text for one, (text, _) in zip(prism, said, strict=True) if one.example.payload["turn"] == "first"]
        found: dict[str, float] = {}
        if first:
            found["first_turn_diversity"] = measures.diversity(first)
        if prism:
            endings = measures.termination([e for _, e in said], [bool(o.example.payload["is_last"]) for o in prism])
            found |= {f"termination_{name}": value for name, value in endings.items()}
            found["ended_share"] = sum(ended for _, ended in said) / len(said)
        return found

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns words about the measured faults; with `gold_in_prompt`, the release's."""
        if verdict.score is None:
            return None
        text, _ = measures.said(conversation.reply)
        if self.options.gold_in_prompt:
            return coaching.release_words(example, text, verdict.dimensions, self.options.reward == "release")
        return coaching.words_by_rule(example, text, verdict.dimensions)

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        measured = ", ".join(f"{n} {v:.2f}" for n, v in verdict.dimensions.items() if not n.startswith("reward_"))
        history = prompts.shown_history(example, self.options.max_words) or "(nothing was said yet)"
        user = (
            f"The aim: {example.payload['intent']}\nThe chat before:\n{history}\n"
            f"Their message:\n{fence(conversation.reply)}\n"
            f"Measured, 1 is best except for overlap: {measured}.\n{fence(verdict.critique)}"
        )
        return self.words_request(coaching.coach(str(example.payload["subtask"])), user)

    def leak(self, example: Example, feedback: str) -> str:
        """Names "choice_text", "end_decision", or "reference_ngram" for eight words in a row of the real user."""
        if self.options.gold_in_prompt:
            return ""
        reference = "" if example.gold == END else example.gold
        return coaching.leak(example, feedback) or reference_ngram(feedback, reference)
