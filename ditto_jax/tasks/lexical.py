"""Lexical statistics of texts: how varied words are, and how two groups of texts differ in that.

In: token sequences, or texts cut into words by `word_tokens`. Out: MATTR (Covington and McFall, 2010), HD-D (McCarthy
and Jarvis, 2007), Yule's K (1944), and z-scores against a reference group. Metrics name the tokens they count.
"""

from __future__ import annotations

import collections
import math
import re
import statistics
from collections.abc import Hashable, Sequence

TOKENIZER = "words"  # stands in the name of every metric computed with `word_tokens`
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[^\w\s]")


def word_tokens(text: str) -> list[str]:
    """Returns words in lower case and single punctuation signs."""
    return [token.casefold() for token in _WORD.findall(text)]


def mattr(tokens: Sequence[Hashable], window: int = 50) -> float:
    """Returns the mean share of different tokens in windows; of all tokens if there are no more than one window holds.

    0 without tokens.
    """
    if len(tokens) <= window:
        return len(set(tokens)) / len(tokens) if tokens else 0.0
    starts = range(len(tokens) - window + 1)
    return statistics.fmean(len(set(tokens[start : start + window])) / window for start in starts)


def hdd(tokens: Sequence[Hashable], sample: int = 42) -> float:
    """Returns the expected share of types in a random sample of `sample` tokens (of all, if there are fewer)."""
    total, size = len(tokens), min(sample, len(tokens))
    if not size:
        return 0.0
    counts = collections.Counter(tokens).values()
    absent = (math.comb(total - count, size) / math.comb(total, size) for count in counts)
    return sum(1.0 - chance for chance in absent) / size


def yules_k(tokens: Sequence[Hashable]) -> float:
    """Returns 10^4 (Σ f² - N) / N², f the frequency of each type; 0 without tokens."""
    total = len(tokens)
    squares = sum(count * count for count in collections.Counter(tokens).values())
    return 1e4 * (squares - total) / total**2 if total else 0.0


def z_scores(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Returns (value - mean) / sd with mean and sample standard deviation of `reference`; zeros if the latter is 0."""
    deviation = statistics.stdev(reference) if len(reference) > 1 else 0.0
    if deviation == 0.0:
        return [0.0] * len(values)
    mean = statistics.fmean(reference)
    return [(value - mean) / deviation for value in values]
