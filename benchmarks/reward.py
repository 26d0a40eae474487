"""The reward of the step benchmark: text → the share of distinct words. Imports nothing: every peer uses it."""

from __future__ import annotations


def distinct_share(text: str) -> float:
    """Returns distinct words over words; 0 without words."""
    words = text.split()
    return len(set(words)) / max(1, len(words))
