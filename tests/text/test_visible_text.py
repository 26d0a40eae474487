"""`visible`: nothing hidden survives, nothing plain is touched."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.text.visible_text import one_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, with <tags> & signs\n\tand lines", "plain text, with <tags> & signs\n\tand lines"),
        ("\x1b[31mred\x07\x7f", "␛[31mred␇␡"),
        ("a\u202eb\u202c", "a⟨U+202E⟩b⟨U+202C⟩"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("half \ud800", "half ⟨U+D800⟩"),
        ("שלום 日本 é", "שלום 日本 é"),
        ("one\r\ntwo\rthree", "one\ntwo␍three"),
    ],
)
def test_hidden_characters_become_signs(text, shown):
    assert visible(text) == shown


@given(st.text(st.characters(categories=None)))
def test_result_can_be_encoded_and_holds_no_hidden_character(text):
    shown = visible(text)
    shown.encode("utf-8")
    hidden = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert hidden <= {"\n", "\t"}
    assert visible(shown) == shown


def test_one_line_has_no_line_break():
    assert one_line("a\n\tb\u2028c") == "a b⟨U+2028⟩c"
