"""The task `fantom`: who knows and believes what in a chat that people join and leave, asked in five forms.

In: generated chats (a stand-in), the public files (evaluation only), or released parquet rows. Out: prompts, a score by
rules for the form of the question, figures over whole sets of questions, and words that point at the place in the chat
without saying who was there.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ditto_jax.judge.fence import fence
from ditto_jax.reply_form import ReplyForm, tagged, tagged_words
from ditto_jax.tasks.answers import answer_text
from ditto_jax.tasks.base import JudgeRequest, Ports, Scored, Source
from ditto_jax.tasks.choice_task import LETTERS, lettered, no_answer_words
from ditto_jax.tasks.dialogue import cut_middle
from ditto_jax.tasks.fantom import scoring
from ditto_jax.tasks.fantom.files import FantomFiles
from ditto_jax.tasks.fantom.generator import generate_fantom
from ditto_jax.tasks.fantom.metrics import set_metrics
from ditto_jax.tasks.fantom.rows import LENGTHS, fantom_row
from ditto_jax.tasks.option_checks import check_choice
from ditto_jax.tasks.soul_task import SoulOptions, SoulTask
from ditto_jax.tasks.splits import SPLITS, group_name
from ditto_jax.types import Conversation, Example, Message, Outcome, Verdict

_TASK = (
    "You read a chat between several people. Some of them may come later, leave, or come back. Everybody knows only "
    "what was said in the chat while they were there; nobody hears what is said while they are away, unless it is said "
    "again."
)
_ASKED = {
    "choice": "Answer with the letter of one option, as <answer>letter</answer>.",
    "open": "Answer with one sentence, as <answer>sentence</answer>.",
    "list": "Answer with names alone, with commas between them, as <answer>names</answer>; write none for nobody.",
    "binary": "Answer with yes or no, as <answer>yes</answer> or <answer>no</answer>.",
    "fact": "Answer with a few words from the chat, as <answer>words</answer>.",
}
_THINGS = {
    "choice": "letter",
    "open": "sentence",
    "list": "list of names",
    "binary": "yes or no",
    "fact": "short phrase",
}
_LOOK_AT = {
    "belief": "what the person asked about was there for, and, for a belief about a belief, what both were there for",
    "answerability": "who was in the chat at the line that answers the question",
    "info_accessibility": "who was in the chat at the line that gives the information",
    "fact": "the line of the chat that states it, and nothing beyond it",
}
_COACH = (
    "You coach someone who answers questions about who knows what in a chat. Their answer was wrong. In one sentence, "
    "point to the moment of this chat that they misjudged. What matters for this question is {look_at}. Do not say who "
    "knows and who does not, who was there and who was away, and do not name the answer, an option or its letter."
)
_STATES_KNOWLEDGE = re.compile(
    r"\b(?:do|does|did|can|could|would)(?:n['’]t|\s+not)(?:\s+have)?\s+(?:know\w*|be\s+aware)"
    r"|\bcannot\s+(?:know|be\s+aware)|\bunaware\b|\b(?:is|are|was|were)\s+(?:not\s+)?aware\b"
    r"|\b(?:has|have|had)\s+no\s+(?:idea|knowledge|way)|\b(?:already|therefore|clearly|still|so)\s+knows?\b"
    r"|\bknows\s+(?:about|that|it|this)\b",
    re.IGNORECASE,
)
_STATES_POLARITY = re.compile(
    r"\A\W*(?:yes|no)\s*[,.;:!]|[\"'“‘>]\s*(?:yes|no)\s*[\"'”’<]"
    r"|\b(?:answer|reply|response)\b[^.!?\n]{0,40}?\b(?:is|be|was|with|:)\s*\W?(?:yes|no)\b",
    re.IGNORECASE,
)
_LOOK = (
    "Find the line where {what} is told, and note who is in the chat there and wherever it is told again.",
    "Go through the chat from the top and keep account of who comes and goes, up to where {what} is told.",
    "Look again for everyone who comes or goes around the place where {what} is told.",
)
_LIST_ERRORS = {
    (True, False): "Your list leaves somebody out.",
    (False, True): "Your list holds somebody who does not belong there.",
    (True, True): "Your list leaves somebody out and holds somebody who does not belong there.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FantomOptions(SoulOptions):
    """Options of the task `fantom`, beside those of every task.

    context: "short" shows the part of the chat that matters, "full" the whole of it, where rows have both.
    open_belief: ask beliefs also in a sentence of one's own; scored by token F1, a stand-in for embeddings. facts: ask
    for the facts as well (released rows that do are read either way). whole_sets: generated chats come with all their
    questions; false gives one question a chat, which is more varied for training.
    """

    context: str = "short"
    open_belief: bool = False
    facts: bool = False
    whole_sets: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_choice("tasks.fantom.options.context", self.context, LENGTHS)


class Fantom(SoulTask[FantomOptions]):
    """Questions on minds; accuracy by question type and by whether somebody missed the information."""

    name = "fantom"
    version = "1"
    options_type = FantomOptions
    sources: ClassVar = {"generated": SPLITS, "files": ("test",), "parquet": SPLITS}

    def generate(self, split: str, count: int, seed: int) -> list[Example]:
        options = self.options
        return generate_fantom(split, count, seed, options.whole_sets, options.open_belief, options.facts)

    def read_files(self, path: Path, source: Source) -> list[Example]:
        options = self.options
        files = FantomFiles(source.rows, options.context, options.open_belief, options.facts)
        return files.read(path, source.split)

    def released_row(self, file: Path, where: str, example_id: str, info: Mapping[str, Any]) -> Example:
        return fantom_row(file, where, example_id, info, self.options.context)

    def evaluation_only(self, source: Source) -> str:
        return "the authors of FANToM ask to use it for evaluation alone" if source.kind == "files" else ""

    def groups(self, example: Example) -> frozenset[str]:
        return frozenset({group_name("fantom conversation", str(example.payload["conversation"]))})

    def breakdown(self, example: Example) -> Mapping[str, str]:
        labels = {name: str(example.payload[name]) for name in ("question_type", "accessibility", "order", "source")}
        return {name: label for name, label in labels.items() if label}

    def opening(self, example: Example, feedback: str | None = None) -> tuple[Message, ...]:
        form = str(example.payload["form"])
        extra = str(example.payload.get("extra_info") or "")
        sections = (
            f"{_TASK}\n{_ASKED[form]}",
            f"## Chat\n{self._context(example)}",
            *((f"## Further information\n{extra}",) if extra else ()),
            f"## Question\n{question_text(example)}",
        )
        return self.placed((Message("user", "\n\n".join(sections)),), feedback)

    def reply_form(self, example: Example, role: str, turn: int) -> ReplyForm | None:
        """Returns reasoning, then what the form of the question asks for in the tag."""
        match example.payload["form"]:
            case "choice":
                return tagged(letter for letter, _ in zip(LETTERS, example.payload["options"], strict=False))
            case "binary":
                return tagged(("yes", "no"))
            case _:
                return tagged_words()

    def _context(self, example: Example) -> str:
        return cut_middle(str(example.payload["context"]), self.options.max_words)

    async def episode(self, example: Example, ports: Ports, feedback: str | None = None) -> Conversation:
        chat = self.opening(example, feedback)
        reply = await ports.policy().reply(chat)
        return Conversation((*chat, Message("assistant", reply.text)), reply.text)

    def rule_score(self, example: Example, conversation: Conversation) -> Verdict:
        """Returns 1 or 0 for questions on minds, token F1 for facts; 0 without an answer in the tag."""
        form = str(example.payload["form"])
        answer = answer_text(conversation.reply)
        score = self._score(example, answer) if answer else 0.0
        detail = "no answer tag" if answer is None else "right" if score == 1.0 else "wrong"
        if answer is not None and form != "fact" and not self._is_answer(example, answer):
            detail = f"no single {_THINGS[form]} in the answer tag"
        name = "fact_token_f1" if form == "fact" else "accuracy"
        return Verdict(Outcome.OK, score, {name: score}, judge="rules", detail=detail)

    def _score(self, example: Example, answer: str) -> float:
        payload, form = example.payload, example.payload["form"]
        if form == "fact":
            return scoring.token_f1(answer, example.gold)
        if form == "open":
            return float(scoring.nearer_to_gold(answer, example.gold, str(payload["wrong_answer"])))
        if form == "choice":
            return float(scoring.chosen_letter(answer) == payload["gold_letter"])
        if form == "binary":
            return float(self._polarity(answer) is (example.gold == "yes"))
        right = tuple(payload["right_names"])
        if self.options.reward == "release":
            return float(scoring.release_names_right(answer, right, payload["wrong_names"]))
        return float(scoring.listed_names(answer) == _folded(right))

    def _is_answer(self, example: Example, answer: str) -> bool:
        """Whether an answer has the form that the question asks for."""
        match example.payload["form"]:
            case "choice":
                return scoring.chosen_letter(answer) is not None
            case "binary":
                return self._polarity(answer) is not None
            case _:
                return bool(answer)

    def _polarity(self, answer: str) -> bool | None:
        return scoring.release_commitment(answer) if self.options.reward == "release" else scoring.committed(answer)

    def batch_metrics(self, scored: Sequence[Scored]) -> Mapping[str, float]:
        """Scores over whole sets of questions, and weighted F1 of the yes-or-no questions."""
        return set_metrics(scored, lambda conversation: self._polarity(answer_text(conversation.reply) or ""))

    def rule_feedback(
        self, example: Example, conversation: Conversation, verdict: Verdict, rng: random.Random
    ) -> str | None:
        """Returns words about a missing or malformed answer, else where in the chat to look; never who was there."""
        if verdict.score is None or verdict.score >= 1.0:
            return None
        payload = example.payload
        form, answer = str(payload["form"]), answer_text(conversation.reply)
        if not answer or not self._is_answer(example, answer):
            return no_answer_words(_THINGS[form], rng)
        asked = str(payload["fact_question"]).rstrip("?. ")
        what = f'the answer to "{asked}?"' if asked else "what the question is about"
        words = rng.choice(_LOOK).format(what=what)
        if form == "list":
            given, right = scoring.listed_names(answer) or frozenset(), _folded(payload["right_names"])
            error = _LIST_ERRORS.get((bool(right - given), bool(given - right)), "")
            words = f"{error} {words}".strip()
        return words

    def feedback_request(self, example: Example, conversation: Conversation, verdict: Verdict) -> JudgeRequest:
        """Returns the question for one sentence about the draft; the reference is marked as private."""
        user = (
            f"The chat:\n{self._context(example)}\n\nThe question:\n{question_text(example)}\n\n"
            f"The reply:\n{fence(conversation.reply)}\n\nPrivate reference: {example.gold}\n"
            f"The reply was scored: {verdict.detail or verdict.score}."
        )
        system = _COACH.format(look_at=_LOOK_AT[str(example.payload["topic"])])
        return self.words_request(f"{system}\nThe reference is private: do not repeat or imply it.", user)

    def leak(self, example: Example, feedback: str) -> str:
        """Names the rule that words break: the gold of a choice or sentence, who knows, or all of one side's names."""
        if self.options.gold_in_prompt:
            return ""
        payload = example.payload
        if payload["topic"] != "fact" and _STATES_KNOWLEDGE.search(feedback):
            return "states_knowledge"
        if payload["form"] == "binary":
            return "states_polarity" if _STATES_POLARITY.search(feedback) else ""
        if payload["form"] == "list":
            return "names_list" if _names_one_side(payload, feedback) else ""
        return super().leak(example, feedback)


def question_text(example: Example) -> str:
    """Returns the question with its lettered options, if it has any."""
    options = tuple(example.payload["options"])
    question = str(example.payload["question"])
    return f"{question}\n{lettered(options)}" if options else question


def _names_one_side(payload: Mapping[str, Any], feedback: str) -> bool:
    """Whether words name everybody of the gold list and nobody of the others, or the other way round.

    Names that the question itself holds tell nothing.
    """
    asked = f"{payload['question']} {payload['fact_question']}"
    right, wrong = (
        [scoring.occurs(name, feedback) for name in payload[side] if not scoring.occurs(name, asked)]
        for side in ("right_names", "wrong_names")
    )
    return (bool(right) and all(right) and not any(wrong)) or (bool(wrong) and all(wrong) and not any(right))


def _folded(names: Sequence[str]) -> frozenset[str]:
    return frozenset(name.casefold() for name in names)
