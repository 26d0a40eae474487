"""Any text → the same text with nothing hidden: what a terminal or a page shows is what was said.

Rollouts, judges and users write whatever they like: terminal escapes, direction overrides, zero-width signs, half of a
surrogate pair. Each such character becomes a visible name of itself. Line breaks and tabs stay; HTML is not escaped.
"""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, formats (direction, zero width), surrogates, separators
_KEPT = "\n\t"


def visible(text: str) -> str:
    """Returns `text` with control, format and surrogate characters as signs: ␀ to ␟ and ␡, others as ⟨U+XXXX⟩.

    The result can be encoded as UTF-8, holds no terminal escape and cannot turn the direction of what stands around it.
    """
    return text.replace("\r\n", "\n").translate(_SIGNS)


def one_line(text: str) -> str:
    """Returns `visible(text)` on one line."""
    return " ".join(visible(text).split())


class _Signs(dict[int, int | str]):
    """What `str.translate` puts in the place of each character; filled as characters occur."""

    def __missing__(self, code: int) -> int | str:
        self[code] = found = _sign(code)
        return found


def _sign(code: int) -> int | str:
    character = chr(code)
    if character in _KEPT:
        return code
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    if is_noncharacter or unicodedata.category(character) in _HIDDEN:
        return f"\u27e8U+{code:04X}\u27e9"
    return code


_SIGNS = _Signs()
