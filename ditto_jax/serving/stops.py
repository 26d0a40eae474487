"""Text that grows → the part of it that may be shown: stop strings are found across the borders of pieces.

In: the whole text so far, each time there is more. Out: what has become safe to show, and whether a stop string ended
the reply. The longest end that may still become a stop string is held back, and so is a half-decoded character.
"""

from __future__ import annotations

from collections.abc import Sequence

_UNFINISHED = "\ufffd"  # what decoders write for a character whose bytes are not complete


class StopText:
    """The text of one reply. It ends before the earliest stop string; only those trim it."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stop for stop in stops if stop)
        self._shown = 0
        self.matched = ""  # the stop string that ended the reply

    @property
    def stopped(self) -> bool:
        return bool(self.matched)

    def feed(self, text: str, final: bool = False) -> str:
        """Returns the newly safe text; `text` is all of the reply until now. After a stop there is no more."""
        if self.stopped:
            return ""
        found = self.find(text)
        if found is not None:
            end, self.matched = found
        else:
            end = len(text) if final else len(text) - self._held_back(text)
        new = text[self._shown : end]
        self._shown = max(self._shown, end)
        return new

    def find(self, text: str) -> tuple[int, str] | None:
        """Returns where the earliest stop string stands, and which it is (the longest of those there)."""
        found = [(place, -len(stop), stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if not found:
            return None
        place, _, stop = min(found)
        return place, stop

    def _held_back(self, text: str) -> int:
        unfinished = len(text) - len(text.rstrip(_UNFINISHED))
        whole = text[: len(text) - unfinished]
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(whole)), 0, -1):
            if any(stop.startswith(whole[-length:]) for stop in self._stops):
                return unfinished + length
        return unfinished
