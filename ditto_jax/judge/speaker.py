"""What is asked of the policy where it judges itself, and of whom: a judge's side of the sampler.

Plain data and one protocol, so that neither side has to know the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ditto_jax.keys import SampleId
from ditto_jax.types import Message


@dataclasses.dataclass(frozen=True)
class Question:
    """A chat that the policy continues apart from all rollouts. name: what its randomness derives from."""

    chat: tuple[Message, ...]
    sample: SampleId
    name: str
    max_tokens: int


class Answer(NamedTuple):
    """What the policy said, and how many tokens the two have. lack: why it could not be asked, or empty."""

    text: str = ""
    is_cut_off: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    lack: str = ""


class Speaker(Protocol):
    """Whoever samples for the policy."""

    def at_rest(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Waits until no rollouts are sampled, and keeps them from being while the context is open."""
        ...

    async def answer(self, questions: Sequence[Question], temperature: float) -> list[Answer]:
        """Returns an answer to each; only while `at_rest`, and only once rollouts have been sampled."""
        ...
