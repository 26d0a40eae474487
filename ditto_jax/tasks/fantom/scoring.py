"""Answer text → right or wrong, for each form of question about a chat: letter, sentence, names, yes or no, fact.

In: the text of the answer tag and the gold of one question. Out: what the text commits itself to, and a score between
0 and 1. A text that commits itself to two answers commits to none. The released code's laxer rules are here too, under
names that say so. Knows no prompt.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Iterable

_LETTER = re.compile(r"\(?\s*([a-z])\s*\)?\.?", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,;\n]|(?<!\w)(?:and|&)(?!\w)", re.IGNORECASE)
_NOBODY = frozenset({"none", "nobody", "no one", "no-one"})
_AROUND_NAMES = string.whitespace + "[](){}\"'‘’“”`*•-."
_COMMITMENT = re.compile(r"\W*(yes|true|no|false)(?![\w/-])\s*(?:[,.;:!)\]\"'”’*–—]+(.*))?", re.IGNORECASE | re.DOTALL)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|may|or|but|though|although|unless|depends?|unsure|unclear|unknown|both"
    r"|either|neither|not sure|not certain)\b|[?/]"
)
_AGAINST_YES = re.compile(r"\b(?:no|not|false|never|cannot|unaware)\b|n['’]t\b")
_AGAINST_NO = re.compile(r"\b(?:yes|true|knows)\b")
_RELEASE_YES = re.compile(r"\A(?:yes|true)| yes[,\s.]| knows ")
_RELEASE_NO = re.compile(r"\A(?:no|false)| no[,\s.]| does not know | doesn['’]t know ")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”…")


def chosen_letter(answer: str) -> str | None:
    """Returns the letter that alone stands in an answer, upper case; it may be in brackets and end with a period."""
    match = _LETTER.fullmatch(answer.strip())
    return None if match is None else match[1].upper()


def listed_names(answer: str) -> frozenset[str] | None:
    """Returns the names of an answer that is a list of them and nothing else, lower case; "none" lists nobody.

    Whatever stands between separators counts as a name, so a sentence is a list of strange names, equal to no gold.
    None for an answer without any text.
    """
    if not answer.strip():
        return None
    names = {item.strip(_AROUND_NAMES).casefold() for item in _SEPARATOR.split(answer)} - {""}
    return frozenset() if names <= _NOBODY else frozenset(names)


def committed(answer: str) -> bool | None:
    """Returns whether an answer says yes; None unless it starts with yes or no and nothing after takes that back."""
    match = _COMMITMENT.fullmatch(answer.strip())
    if match is None:
        return None
    says_yes, rest = match[1].lower() in ("yes", "true"), (match[2] or "").casefold()
    against = _AGAINST_YES if says_yes else _AGAINST_NO
    return None if _HEDGE.search(rest) or against.search(rest) else says_yes


def plain_tokens(text: str) -> list[str]:
    """Returns words in lower case, without punctuation and articles, as the SQuAD evaluation takes them."""
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(answer: str, gold: str) -> float:
    """Returns the F1 of the words of an answer against those of the gold text, between 0 and 1."""
    given, wanted = plain_tokens(answer), plain_tokens(gold)
    shared = sum((collections.Counter(given) & collections.Counter(wanted)).values())
    return 2.0 * shared / (len(given) + len(wanted)) if shared else 0.0


def nearer_to_gold(answer: str, gold: str, wrong: str) -> bool:
    """Returns whether a sentence is nearer to the gold belief than to the wrong one, by token F1.

    A stand-in for the distance of sentence embeddings. A sentence with at least half of the words that only the wrong
    belief has says both, and is near to neither.
    """
    given, only_wrong = set(plain_tokens(answer)), set(plain_tokens(wrong)) - set(plain_tokens(gold))
    if only_wrong and 2 * len(given & only_wrong) >= len(only_wrong):
        return False
    return token_f1(answer, gold) > token_f1(answer, wrong)


def release_names_right(answer: str, right: Iterable[str], wrong: Iterable[str]) -> bool:
    """Returns the released code's verdict: every right name occurs, no wrong one, and there is a right one."""
    right = tuple(right)
    return bool(right) and all(occurs(n, answer) for n in right) and not any(occurs(n, answer) for n in wrong)


def release_commitment(answer: str) -> bool | None:
    """Returns the released code's reading of yes or no: from the first letters, or the words knows and not know."""
    text = answer.strip().strip("'\"").lower()
    says_yes, says_no = bool(_RELEASE_YES.search(text)), bool(_RELEASE_NO.search(text))
    return None if says_yes == says_no else says_yes


def occurs(name: str, text: str) -> bool:
    """Returns whether a name stands in a text as a whole word, in any case."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None
