"""Whether a message looks like one that somebody typed: the offline stand-in for a judge of human tone.

In: a text. Out: a share of plain signs between 0 and 1. It sees length, markup and stock phrases of assistants, nothing
else, and is labelled a proxy wherever it scores.
"""

from __future__ import annotations

import re
import statistics

_MAX_WORDS = 40
_MARKUP = re.compile(r"(?m)^\s*(?:[-*•#]|\d+[.)])\s|\*\*|```")
_STOCK = re.compile(
    r"\b(?:as an ai|certainly|i(?:'|’)?d be happy to|i hope this (?:helps|message finds)|let me know if you|"
    r"feel free to|great question|here (?:is|are) (?:a|some|the) )",
    re.IGNORECASE,
)


def plain_manner(text: str) -> float:
    """Returns the share of: at most forty words, no markup, no stock phrase; 0 for no text."""
    if not text:
        return 0.0
    return statistics.fmean((len(text.split()) <= _MAX_WORDS, not _MARKUP.search(text), not _STOCK.search(text)))
