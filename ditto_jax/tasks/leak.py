"""The leak filter between feedback and refined rollout: words h that give the answer away are never used.

In: feedback words, the gold text, the gold option letter or a reference text; or a refined reply. Out: the name of the
broken rule, or nothing. It judges wording only: it does not know the story, never rewrites feedback, and counts nothing
(the loop counts rejections per task).
"""

from __future__ import annotations

import functools
import re
import unicodedata

_APOSTROPHES = re.compile(r"(?<=\w)['’](?=\w)")
# Signed and decimal numbers stay whole, CJK characters count one by one, everything else splits at non-letters.
_TOKEN = re.compile(r"(?<!\w)-?\d+(?:[.,/:]\d+)*|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\ud7af]+")

_LEADING = frozenset({"a", "an", "the", "in", "on", "at", "to", "into", "inside", "under", "from", "of"})
_FUNCTION_WORDS = _LEADING | frozenset(
    re.findall(
        r"\w+",
        """
        about after all also am and any are as be because been before being both but by can could did do does doing
        done for had has have he her hers him his how i if is it its just me my no nor not off or our out over she
        should so some than that their them then there these they this those through too up us very was we were what
        when where which while who whom whose why will with would yes you your
        """,
    )
)
_SHARE_OF_CONTENT = 0.8


def leak_rule(feedback: str, gold_text: str, gold_letter: str | None) -> str:
    """Returns "gold_text", "gold_letter" or "": the first rule of the leak filter that `feedback` breaks.

    gold_text: broken if the gold text, or at least 80 % of its content words (two or more), occur in the feedback.
    Case, underscores, hyphens, punctuation, plural s and a leading article or preposition make no difference.
    gold_letter: one letter A-Z or None. Broken if the letter is named as option, answer or choice, stands in
    brackets or quotes, or labels an option ("B. ..."). The article "a" and the pronoun "I" do not name letters.
    Raises ValueError for a gold letter that is no letter.
    """
    if _names_text(feedback, gold_text):
        return "gold_text"
    if gold_letter:
        letter = gold_letter.strip().upper()
        if not re.fullmatch("[A-Z]", letter):
            raise ValueError(f"gold_letter={gold_letter!r}: must be one letter A-Z, for example 'B', or None")
        if _names_letter(feedback, letter):
            return "gold_letter"
    return ""


def reference_ngram(feedback: str, reference: str, n: int = 8) -> str:
    """Returns "reference_ngram" if any `n` consecutive words of `reference` occur in `feedback`, else "".

    A reference shorter than `n` words counts as a whole, unless it is shorter than half of `n`: such words are too
    common to be evidence.
    """
    if n < 2:
        raise ValueError(f"n={n}: an n-gram of a reference needs at least 2 words; use 8")
    words, given = _tokens(reference), _tokens(feedback)
    size = min(n, len(words))
    if size < n / 2:
        return ""
    grams = {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
    found = any(tuple(given[i : i + size]) in grams for i in range(len(given) - size + 1))
    return "reference_ngram" if found else ""


def mentions_guidance(reply: str, in_character: bool = False) -> bool:
    """Returns True if a refined reply speaks of the guidance it was given (a hint, coaching, a reminder, a reference).

    Such a reply makes no sense under the plain prompt. Ordinary uses ("a hint of mint", "I want your feedback") pass.
    in_character: the reply is somebody's speech, and people speak of hints, reminders and advice that others gave
    them; only what can mean nothing but words from outside the scene counts.
    """
    return any(pattern.search(reply) for pattern in (_GUIDANCE_IN_CHARACTER if in_character else _GUIDANCE))


def _tokens(text: str) -> list[str]:
    """Words of `text`, lower case, without punctuation, plural s folded."""
    text = _APOSTROPHES.sub("", unicodedata.normalize("NFKC", text).casefold().replace("−", "-").replace("_", " "))
    return [_singular(word) for word in _TOKEN.findall(text)]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _names_text(feedback: str, gold_text: str) -> bool:
    gold = _tokens(gold_text)
    while len(gold) > 1 and gold[0] in _LEADING:
        gold = gold[1:]
    if not gold:
        return False
    given = _tokens(feedback)
    if any(given[i : i + len(gold)] == gold for i in range(len(given) - len(gold) + 1)):
        return True
    if len(gold) > 1 and "".join(gold) in given:  # greendrawer for green_drawer
        return True
    content = {word for word in gold if word not in _FUNCTION_WORDS and not _is_single_cjk(word)}
    # One content word inside a longer gold ("I think so") is no evidence; the phrase above already failed.
    return len(content) > 1 and len(content & set(given)) >= _SHARE_OF_CONTENT * len(content)


def _is_single_cjk(word: str) -> bool:
    return len(word) == 1 and word > "\u3000"


_NOUN = r"(?i:\b(?:option|answer|choice|letter|alternative|candidate|selection)s?)"
_VERB = (
    r"(?i:\b(?:choose|choosing|chose|pick|picking|select|selecting|go(?:ing)?\s+(?:with|for)|(?:respond|reply)\s+with))"
)
_BE = r"(?i:is|was|be|being|equals)"
_OPEN = r"""[(\[{<"'“‘*`]*\s*"""
_STEP = rf"""(?:\s+|\s*(?=[(\[{{<"“*`])){_OPEN}"""
# A letter stands alone: no word, hyphenated word (t-shirt), contraction (I'd) or abbreviation (B.C.) goes on after it.
_ALONE = r"(?!\w|['’-]\w|\.\w)"
_GOES_ON = r"(?i:because|since|is|due|rather|instead|or|and)\b"


@functools.lru_cache(maxsize=26)
def _letter_patterns(letter: str) -> tuple[re.Pattern[str], ...]:
    """Patterns that name `letter`. "A" and "I" are words too, so they must be closed by punctuation or a connective."""
    small = letter.lower()
    ends = rf"""(?=\s*(?:$|[.;:!?)\]}}"”'’*`<]|{_GOES_ON}))"""
    if letter == "I":
        after_word = after_colon = rf"[Ii]{_ALONE}{ends}"
    elif letter == "A":
        closed = rf"{_ALONE}(?:{ends}|(?=\s*,))"
        after_word, after_colon = rf"(?:A{_ALONE}|a{closed})", rf"[Aa]{closed}"
    else:
        after_word = after_colon = rf"[{letter}{small}]{_ALONE}"
    patterns = [
        rf"(?:{_NOUN}|{_VERB}){_STEP}{after_word}",  # option B, choose (B)
        rf"{_NOUN}[^.!?\n]{{0,60}}?\s{_BE}\s+(?i:\w+ly\s+)?{_OPEN}{after_word}",  # the answer to this is clearly B
        rf"{_NOUN}(?:\s+{_BE})?\s*[:=–—-]+\s*{_OPEN}{after_colon}",  # answer: B
        rf"{_NOUN}\s+(?:[A-Z]\s*(?:[,/&]|\band\b|\bor\b)\s*)+{letter}{_ALONE}",  # options A or B
        rf"(?<!\w)[(\[{{]\s*{letter}\s*[)\]}}]",  # (B)
        rf"<(?i:answer)>\W*[{letter}{small}]\W*(?:<|$)",  # <answer>b
        rf"(?m:^\W*{letter}\W*$)",  # B on a line of its own
        rf"(?m:^\W*{letter}:\s)",  # B: green_crate
    ]
    correct = r"(?i:(?:the\s+)?(?:\w+ly\s+)?(?:right|correct|true|best|proper|gold|expected|answer|choice|option))\b"
    was = r"(?i:is)" if letter == "I" else r"(?i:is|was|would\s+be|must\s+be|should\s+be|has\s+to\s+be)"
    patterns.append(rf"(?<![\w.'’])[{letter}{small}][)\]\"'”*`.:]*\s+{was}\s+{correct}")  # B is the right one
    if letter == "I":
        patterns.append(r"(?m:(?:^|,\s)I[.)])(?=\s)")  # "..., I. blue_crate", but not "so did I."
    else:
        patterns.append(rf"""(?m:(?:^|[\s,;("'*])){letter}[.)](?=[\s"'*]|$)""")  # B. green_crate
        patterns.append(rf"""["“'‘*`]{letter}["”'’*`]""")  # "B", **B**
        patterns.append(
            rf"(?i:\b(?:it|that|this)(?:['’]s|\s+is|\s+(?:must|should)\s+be))\s+{letter}(?=\s*(?:[.!;,]|$))"
        )
    return tuple(re.compile(pattern) for pattern in patterns)


def _names_letter(feedback: str, letter: str) -> bool:
    if any(pattern.search(feedback) for pattern in _letter_patterns(letter)):
        return True
    # "(b)" alone names an option; "(a) ... (b) ..." merely counts arguments.
    return set(re.findall(r"(?<!\w)\(([a-z])\)", feedback)) == {letter.lower()}


# "your advice" is what a simulated user may say to its assistant; "your hint" is not.
_THE = r"(?:the|this|that|these|those|any|given|provided)"
_WHOSE = rf"(?:{_THE}|your)"
_KIND = r"(?:\s+(?:given|provided|above|private|helpful|earlier|previous|following|extra|additional|hidden|coaching))*"
_STRONG = (
    r"(?:hints?|coaching(?:\s+(?:notes?|advice|message))?|reminders?|reference\s+(?:response|answer|reply|solution)s?)"
)
_WEAK = r"(?:feedback|guidance|critique|advice|notes?|tips?|instructions?\s+above)"
_SAYS = r"(?:says?|said|state[sd]?|mention(?:s|ed)?|point(?:s|ed)?|indicate[sd]?|suggest(?:s|ed)?|tells?|told|reminds?)"
_GUIDANCE = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"\b{_WHOSE}{_KIND}\s+{_STRONG}\b",  # following the hint
        rf"\b(?:according\s+to|based\s+on|following|per|given|considering)\s+{_THE}?{_KIND}\s*(?:{_STRONG}|{_WEAK})\b",
        rf"\b{_THE}{_KIND}\s+{_WEAK}\s+{_SAYS}\b",  # the feedback says
        rf"\ba{_KIND}\s+{_STRONG}\s+(?:was|is|says|said)\b",  # a reminder was given
        rf"^\W*(?:private\s+)?{_STRONG}\W*:",  # Hint: ...
        r"\bas\s+(?:(?:was|you)\s+)?(?:hinted|coached|reminded|advised\s+above)\b",
        r"\b(?:i|we)\s+(?:was|were|am|are|have\s+been)\s+(?:hinted|coached|reminded|given\s+a\s+hint)\b",
        r"\breference\s+(?:response|answer)s?\b",
    )
)

# In character "the hint" may be anybody's; words from outside are called by their label, or cited as instructions are.
_OUTSIDE = r"(?:guidance|coaching(?:\s+(?:notes?|advice|message))?|feedback|hints?|private\s+notes?|instructions?)"
_PRIVATE = r"(?:private|coaching|given|provided|above)"
_GUIDANCE_IN_CHARACTER = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"\b(?:according\s+to|based\s+on|following|per)\s+(?:the|this)\s+(?:{_PRIVATE}\s+)*{_OUTSIDE}\b(?!\s+of\b)",
        rf"\b(?:the|this|my|that)\s+{_PRIVATE}\s+(?:hints?|guidance|notes?|feedback|reminders?|instructions?|advice)\b",
        r"\b(?:the|this)\s+(?:guidance|coaching|feedback)\s+(?:says?|said|tells?|told|suggests?|asks?|reminds?)\b",
        r"\b(?:the|this)\s+hint\s+(?:says|tells|suggests|asks)\b",
        r"^\W*(?:private\s+(?:note|hint|guidance)|hint|guidance|coaching(?:\s+notes?)?)\s*:",
        r"\bas\s+(?:(?:was|i\s+was|you)\s+)?(?:hinted|coached)\b",
        r"\bi(?:\s+was|['’]ve\s+been|\s+have\s+been)\s+(?:coached|given\s+(?:a\s+|the\s+|this\s+)?(?:hint|feedback|guidance))\b",
        r"\breference\s+(?:response|answer|reply|dialogue)s?\b",
    )
)
