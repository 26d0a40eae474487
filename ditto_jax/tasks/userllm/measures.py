"""What can be counted in a user's message: words of the goal in it, choices that it names, whether it ends the chat.

In: texts. Out: numbers between 0 and 1, and the two rewards made of them: the recommended one and the release's, whose
overlap has the opposite sign. Asks nobody, knows no example.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Sequence

from ditto_jax.tasks.answers import named_candidates, visible_text
from ditto_jax.tasks.userllm.turns import END

_WORD = re.compile(r"[^\W_]+")
# The release drops 61 common function words; this list has as many, chosen here.
STOP_WORDS = frozenset(
    _WORD.findall("""
    a an the and or but if so as of at by for with about to from in on into over is are was were be been am do does did
    have has had can could will would should i me my you your he she it its we our they them their this that these
    those what which who not
    """)
)
# Words, single CJK characters and punctuation signs.
_UNIGRAM = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|[^\w\s]"
)


def said(reply: str) -> tuple[str, bool]:
    """Returns what a reply says to the assistant, and whether it ends the chat; all after the end sign is dropped."""
    text, sign, _ = visible_text(reply).partition(END)
    return text.strip(), bool(sign)


def content_words(text: str) -> frozenset[str]:
    """Returns the different words of a text in lower case, without common function words and punctuation."""
    return frozenset(_WORD.findall(text.casefold())) - STOP_WORDS


def overlap(intent: str, text: str) -> float:
    """Returns the share of the text's content words that are also in the intent; 0 if either has none."""
    words = content_words(text)
    return len(content_words(intent) & words) / len(words) if words else 0.0


def own_words(intent: str, text: str) -> float:
    """Returns 1 - overlap: how much of the text is said in words other than the goal's; 0 for a text without content.

    Higher is better: the sign-consistent reading of the paper's intent decomposition, where less overlap is better.
    """
    return 1.0 - overlap(intent, text) if content_words(text) else 0.0


def restates(text: str, question: str) -> bool:
    """Returns True if a text shares at least half of the question's content words."""
    asked = content_words(question)
    return bool(asked) and 2 * len(asked & content_words(text)) >= len(asked)


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def choices_named(text: str, options: Sequence[str]) -> set[str]:
    """Returns the choices that a text names, in plain spelling; a choice inside a longer named one does not count."""
    return named_candidates(_plain(text), map(_plain, options))


def role_adherence(text: str, question: str, options: Sequence[str]) -> float:
    """Returns 1 if the user goes on asking, 0 if the user answers, says nothing or changes the subject.

    One or two named choices are an answer; three or more, or all, restate the question. Without any, the text must
    share half of the question's content words. Words of choices that the question itself uses are no answer.
    """
    if not text:
        return 0.0
    countable = {_plain(option) for option in options} - choices_named(question, options)
    named = len(choices_named(text, tuple(countable)))
    if named == 0:
        return float(restates(text, question))
    return float(named >= 3 or named == len(countable) > 1)


def release_role_adherence(text: str, options: Sequence[str]) -> float:
    """Returns the released score: 0 for one, two or all choices contained in the text, else 1, even for no text."""
    padded = f" {_plain(text)} "
    named = sum(f" {_plain(option)} " in padded for option in options)
    return float(named == 0 or 3 <= named < len(options))


def multi_metric(intent: str, text: str, ended: bool, is_last: bool, human: float) -> float:
    """Returns the recommended mean of own words, termination and `human` (probability in [0, 1]).

    A chat that is rightly ended is worth 1, whatever was said before the end sign: there is no text left to compare.
    Where nothing was said and the chat should go on, 0.
    """
    if ended and is_last:
        return 1.0
    if not text:
        return 0.0
    return statistics.fmean((own_words(intent, text), float(ended == is_last), human))


def release_multi_metric(intent: str, text: str, ended: bool, is_last: bool, human: float) -> float:
    """Returns the released mean of overlap (higher is rewarded), termination and a yes-or-no human verdict."""
    verdict = float(bool(text) and human >= 0.5)
    return statistics.fmean((overlap(intent, text), float(ended == is_last), verdict))


def diversity(texts: Sequence[str]) -> float:
    """Returns 1 - mean Jaccard similarity of unigram sets over all pairs of texts with words; 0 for fewer than two."""
    sets = [words for text in texts if (words := frozenset(_UNIGRAM.findall(text.casefold())))]
    if len(sets) < 2:
        return 0.0
    return 1.0 - statistics.fmean(len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2))


def termination(predicted: Sequence[bool], true: Sequence[bool]) -> dict[str, float]:
    """Returns precision, recall and F1 of ended chats; each is 0 where it is undefined."""
    hits = sum(p and t for p, t in zip(predicted, true, strict=True))
    precision = hits / sum(predicted) if any(predicted) else 0.0
    recall = hits / sum(true) if any(true) else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
