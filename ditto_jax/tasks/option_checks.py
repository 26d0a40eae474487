"""Checks of option values, in one wording: the setting, its value, the rule, and a value that works.

In: the name and value of a setting. Out: nothing, or a ConfigError. It knows no task and sets no limit itself.
"""

from __future__ import annotations

from ditto_jax.errors import ConfigError


def check_at_least(name: str, value: float, least: float, example: float) -> None:
    """Raises ConfigError unless `value` is `least` or more; `example` is a value that people use."""
    if not value >= least:
        raise ConfigError(f"{name}={value}: must be at least {least}, for example {example}")


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
