"""Files are found plain or gzipped, and literals are parsed without being evaluated."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditto_jax.errors import DataError, MissingInputError
from ditto_jax.tasks.data_files import bad_row, find_file, plain_or_gz, read_text, take, text_list
from ditto_jax.types import Example

WORDS = st.text("abc '\"\\é", min_size=1, max_size=9).map(str.strip).filter(bool)


@given(st.lists(WORDS, max_size=5))
def test_text_lists_are_read_from_lists_tuples_and_literals(words):
    assert text_list(words) == text_list(tuple(words)) == text_list(repr(words)) == text_list(f" {words!r}\n") == words


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "['a'",
        "[1]",
        "['a', '']",
        "{'a'}",
        "'a'",
        "open('x')",
        "[str(1)]",
        "(" * 5000,
        3,
        None,
        [1],
        ["a", " "],
    ],
)
def test_anything_else_is_no_text_list(value):
    assert text_list(value) is None


def test_plain_and_gzipped_files_stand_for_each_other(tmp_path):
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("päcked\r\n".encode()))
    assert plain_or_gz(tmp_path / "a.txt.gz") == tmp_path / "a.txt"
    assert plain_or_gz(tmp_path / "b.txt") == tmp_path / "b.txt.gz"
    assert plain_or_gz(tmp_path / "c.txt") is None
    assert find_file(tmp_path, ("c.txt", "b.txt"), "words") == tmp_path / "b.txt.gz"
    assert (read_text(tmp_path / "a.txt"), read_text(tmp_path / "b.txt.gz")) == ("plain", "päcked\n")
    with pytest.raises(MissingInputError, match=r"holds no words \(looked for c\.txt\[\.gz\]\)"):
        find_file(tmp_path, ("c.txt",), "words")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"\xff\xfe\xff"), ("a.txt.gz", b"not gzip"), ("b.gz", gzip.compress(b"x", mtime=0)[:-4])],
)
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: not readable as UTF-8 text .*fetch the file again"):
        read_text(tmp_path / name)


def test_errors_show_file_row_field_a_short_value_and_the_rule(tmp_path):
    text = str(bad_row(tmp_path / "f", "line 3", "story", "x" * 500, "must be short"))
    assert text.startswith(f"{tmp_path / 'f'}: line 3: story='xxx") and text.endswith("...: must be short")
    assert len(text) < len(str(tmp_path)) + 130


@given(st.sets(st.integers(), min_size=1, max_size=30), st.integers(0, 40), st.integers(0, 40))
def test_samples_are_nested_ordered_and_of_the_wanted_size(numbers, one, other):
    examples = [Example(task="t", id=f"t-{n}", payload={}, gold="g") for n in sorted(numbers)]
    few, more = take(examples, min(one, other)), take(examples, max(one, other))
    assert len(few) == min(one, other, len(examples))
    assert [e for e in examples if e in few] == few
    assert all(e in more for e in few)
    assert take(examples, None) == examples


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="limit=-1"):
        take([Example(task="t", id="t-0", payload={}, gold="g")], -1)
