"""What the story generators share: checks of their options, and which stories belong to which split.

In: option values, or the text of a story. Out: an error that says what works, or the split a story may be used in. It
draws nothing.
"""

from __future__ import annotations

import hashlib

from ditto_jax.errors import ConfigError

PROMPT_STYLES = ("full", "compact")


def check_probability(name: str, value: float) -> None:
    """Raises ConfigError unless 0 <= value <= 1."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}={value}: must be a probability between 0 and 1, for example 0.1")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: must be one of {', '.join(allowed)}; for example {allowed[0]!r}")


def check_range(name: str, low: int, high: int, least: int, most: int) -> None:
    """Raises ConfigError unless least <= low <= high <= most, for options `<name>_min` and `<name>_max`."""
    if not least <= low <= high <= most:
        raise ConfigError(
            f"{name}_min={low}, {name}_max={high}: must satisfy {least} <= min <= max <= {most}; "
            f"for example {name}_min={least} and {name}_max={most}"
        )


def check_members(name: str, values: tuple[int, ...], allowed: tuple[int, ...]) -> None:
    """Raises ConfigError unless `values` is a non-empty selection from `allowed`."""
    if not values or not set(values) <= set(allowed):
        raise ConfigError(f"{name}={values}: must be one or more of {allowed}; for example {allowed}")


def story_digest(text: str) -> str:
    """Returns the identity of a story: 12 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def belongs_to(split: str, text: str) -> bool:
    """Whether a story may be used in `split`: validation and test share words, so its digest picks one of them."""
    return split == "train" or (int(story_digest(text), 16) % 2 == 0) == (split == "validation")
