"""What tokens were drawn among, found out again: forms and ids of a step's views → its masks, each kept once.

rollouts with forms → **views with the number of each token's mask, and the masks** → scoring passes, sharded update

The masks that a reply met follow from its form and its tokens (`text.grammar`), so rollouts carry neither. Most tokens
share a mask with others, as all of a reasoning do: a step has dozens or hundreds of them, of 19 kB each at a vocabulary
of 151,936, and never more than constrained tokens. Runs nothing on a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ditto_jax.reply_form import HeldTo
from ditto_jax.rollouts.views import View
from ditto_jax.text.grammar import Grammars

_LEAST = 16  # masks that programs have room for


def with_masks(views: Sequence[View], grammars: Grammars) -> tuple[list[View], np.ndarray]:
    """Returns the views with their column `mask`, and the masks int32[K, words], of which the first allows everything.

    K is a power of two, so that few programs are compiled. Raises FormError for a token that its form does not allow.
    """
    book = _Book(grammars)
    filled = [dataclasses.replace(view, mask=book.numbers(view)) for view in views]
    return filled, book.words()


class _Book:
    """The masks of a step in the order in which they are met, and what is known of replies met before."""

    def __init__(self, grammars: Grammars):
        self._grammars = grammars
        self._masks: dict[bytes, int] = {np.full(grammars.words, -1, np.int32).tobytes(): 0}
        self._known: dict[tuple[HeldTo, bytes], np.ndarray] = {}

    def numbers(self, view: View) -> np.ndarray:
        """int32[t]: the number of each token's mask."""
        found = np.zeros(len(view.response), np.int32)
        for start, end, held in view.held:
            found[start:end] = self._of_reply(held, view.response[start:end])
        return found

    def words(self) -> np.ndarray:
        """int32[K, words]: all masks, and padding that nothing refers to."""
        room = max(_LEAST, 1 << (len(self._masks) - 1).bit_length())
        found = np.full((room, self._grammars.words), -1, np.int32)
        for mask, number in self._masks.items():
            found[number] = np.frombuffer(mask, np.int32)
        return found

    def _of_reply(self, held: HeldTo, ids: np.ndarray) -> np.ndarray:
        name = held, ids.tobytes()
        if name not in self._known:
            self._known[name] = np.array([self._masks.setdefault(m, len(self._masks)) for m in self._met(held, ids)])
        return self._known[name]

    def _met(self, held: HeldTo, ids: np.ndarray) -> list[bytes]:
        mask, words = self._grammars.mask(held), np.zeros(self._grammars.words, np.int32)
        met = []
        for token in ids.tolist():
            mask.fill(words)
            met.append(words.tobytes())
            mask.take(token)
        return met
