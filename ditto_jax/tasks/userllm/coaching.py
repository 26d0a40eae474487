"""Words about a user's message: what a rule can say, what a writer of feedback is told, and what neither may give away.

In: an example, what was said, and the measured dimensions. Out: one or two sentences or None; the name of a broken
leak rule. Words speak of what a person in this place would do; they never say whether the chat should end, and name no
choice.
The release's recipes, which give both away, are kept for runs with `gold_in_prompt`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ditto_jax.tasks.userllm.measures import choices_named, content_words
from ditto_jax.tasks.userllm.turns import CSQA, END, NQ
from ditto_jax.types import Example

_LOW = 0.8  # own words below this share are worth a remark; the release draws its line for overlap there
_MAX_WORDS = 8
_WHETHER = (
    r"(?:end|ending|stop|stopping|finish|close|closing|leave|quit|wrap\s+up|continue|continuing|carry(?:ing)?\s+on|"
    r"keep(?:ing)?\s+(?:going|talking|asking)|go(?:ing)?\s+on)"
)
_END_DECISION = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"end\W*conversation",
        rf"\b{_WHETHER}\b[^.!?\n]{{0,20}}\b(?:chat|conversation|dialogue|exchange|here|now)\b",
        r"\b(?:chat|conversation|dialogue)\b[^.!?\n]{0,20}\b(?:over|finished|complete|done|not\s+(?:yet\s+)?over)\b",
        r"\b(?:last|final)\s+(?:turn|message|reply)\b",
        r"\bend\s+(?:sign|token|marker)\b",
        r"\b(?:goal|aim|wish|request|question)\b[^.!?\n]{0,20}\b(?:met|reached|fulfilled|satisfied|answered|resolved)\b",
        r"\b(?:already|finally)\b[^.!?\n]{0,20}\b(?:got|gotten|answered|given|received|have)\b",
        r"\b(?:has|have|is|are)(?:\s+not|n['’]t)\s+(?:yet\s+)?(?:got|gotten|been|answered|given|received|done)\b",
    )
)
_COACHES: Mapping[str, str] = {
    CSQA: (
        "They play someone who asked a question with several choices and does not know the answer. In one or two "
        "sentences, say where their message slips out of that part (by answering, by advising, or by changing the "
        "subject), and how the one who asked would go on. Name none of the choices."
    ),
    NQ: (
        "They play someone whose question was not answered and who was offered something else. In one or two "
        "sentences, say where their message lets go of the question, and how someone who cares for it would go on."
    ),
}
_COACH = (
    "They play someone with an aim. In one or two sentences, name the most important fault of their message: words "
    "copied from the description of the aim instead of a person's own, a tone that no person has, or a move that does "
    "not fit what was said before. Say what to do instead. Never say whether the chat should go on or end; ask them to "
    "compare what was wanted with what was given."
)


def coach(subtask: str) -> str:
    """Returns what the writer of feedback is told."""
    return f"You coach someone who imitates how people write to an AI assistant. {_COACHES.get(subtask, _COACH)}"


def words_by_rule(example: Example, text: str, dimensions: Mapping[str, float]) -> str | None:
    """Returns words about the faults that were measured, None if there are none."""
    subtask = example.payload["subtask"]
    if subtask == CSQA:
        return _about_role(example, text) if dimensions["role_adherence"] < 1.0 else None
    if subtask == NQ:
        if dimensions["intent_adherence"] >= 1.0:
            return None
        return "Do not take up what was offered and do not thank for it; ask once more for what you came for."
    faults = []
    if dimensions["termination"] < 1.0:
        faults.append("Compare what you wanted with what the assistant gave you, and let that alone decide your move.")
    if text and dimensions["own_words"] < _LOW:
        copied = sorted(content_words(str(example.payload["intent"])) & content_words(text))[:_MAX_WORDS]
        faults.append(f"Say it in your own words instead of the description's ({', '.join(copied)}).")
    if text and dimensions.get("human", 1.0) < 0.5:
        faults.append("Write shorter and less neatly, as someone typing in passing would.")
    return " ".join(faults) or None


def _about_role(example: Example, text: str) -> str:
    if not text:
        return "Nothing was said: you are the one with a question, so write to the assistant."
    if choices_named(text, tuple(example.payload["options"])):
        return "You asked because you do not know: settle nothing yourself, go on asking."
    return "Stay with what you asked: put your question once more, in words of your own."


def release_words(example: Example, text: str, dimensions: Mapping[str, float], keywords: bool) -> str | None:
    """Returns the release's words, which give away the end, the choices or the question.

    keywords: whether words of the goal are to be used, as the released reward wants.
    """
    payload = example.payload
    if payload["subtask"] == CSQA:
        named = sorted(choices_named(text, tuple(payload["options"])))
        return f"Do not use these words: {', '.join(named)}." if named else None
    if payload["subtask"] == NQ:
        if dimensions["intent_adherence"] >= 1.0:
            return None
        return f"Ask again at once, without a word about the offer: {payload['question']}"
    words = []
    if dimensions["termination"] < 1.0:
        words.append(f"Output only {END}." if payload["is_last"] else f"Do not output {END}.")
    if keywords and dimensions.get("overlap", 0.0) < _LOW:
        missing = sorted(w for w in content_words(str(payload["intent"])) - content_words(text) if len(w) > 2)
        words.append(f"Keep it short and use: {', '.join(missing[:_MAX_WORDS])}.")
    return " ".join(words) or None


def leak(example: Example, feedback: str) -> str:
    """Returns "choice_text" for words that name a choice, "end_decision" for words that say whether to end, else ""."""
    payload = example.payload
    if payload["subtask"] == CSQA:
        named = choices_named(feedback, tuple(payload["options"])) - choices_named(
            str(payload["question"]), tuple(payload["options"])
        )
        return "choice_text" if named else ""
    if payload["subtask"] == NQ:
        return ""
    return "end_decision" if any(pattern.search(feedback) for pattern in _END_DECISION) else ""
