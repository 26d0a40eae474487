"""What the story generators share: styles of prompts, and which stories belong to which split.

In: the text of a story. Out: its identity, or the split it may be used in. It draws nothing.
"""

from __future__ import annotations

import hashlib

PROMPT_STYLES = ("full", "compact")


def story_digest(text: str) -> str:
    """Returns the identity of a story: 12 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def belongs_to(split: str, text: str) -> bool:
    """Whether a story may be used in `split`: validation and test share words, so its digest picks one of them."""
    return split == "train" or (int(story_digest(text), 16) % 2 == 0) == (split == "validation")
