"""Nothing from outside moves a cursor."""

import os
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.cli.text import cut, cut_middle, escape, pad, unescape, width, wrap

BAD = {"Cc", "Cf", "Cn", "Cs", "Co", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"/etc/passwd", "/etc/passwd"),
        (b"a b\tc\n", "a b\\x09c\\x0a"),
        (b"\x1b]0;evil\x07", "\\x1b]0;evil\\x07"),
        (b"\x9b2J", "\\x9b2J"),  # C1 as a lone byte
        ("\x9b2J".encode(), "\\xc2\\x9b2J"),  # C1 as a letter of UTF-8
        (b"\xff\xfe", "\\xff\\xfe"),
        ("gpj.\u202egnp".encode(), "gpj.\\xe2\\x80\\xaegnp"),  # right-to-left override
        ("a\u200bb".encode(), "a\\xe2\\x80\\x8bb"),  # zero width
        (b"C:\\x41", "C:\\x5cx41"),
        ("Grüße 日本".encode(), "Grüße 日本"),
    ],
)
def test_known_tricks(raw, shown):
    assert escape(os.fsdecode(raw)) == shown
    assert unescape(shown) == raw


@given(st.binary(max_size=80))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_harmless_and_come_back(raw):
    shown = escape(os.fsdecode(raw))
    assert not any(unicodedata.category(character) in BAD for character in shown)
    assert unescape(shown) == raw


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_printed(text):
    shown = escape(text)
    shown.encode()
    assert not any(unicodedata.category(character) in BAD for character in shown)


def test_no_tower_of_marks():
    assert escape("a" + "\u0301" * 9).count("\u0301") == 2
    assert escape("\u0301") == "\\xcc\\x81"  # it would sit on whatever stands before it


@given(st.text(max_size=60), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_what_is_cut_fits(text, columns):
    shown = escape(text)
    for short in (cut(shown, columns), cut_middle(shown, columns)):
        assert width(short) <= columns
    assert width(pad(shown, columns)) == columns
    assert all(width(line) <= max(columns, 10) for line in wrap(shown, max(columns, 10)))


def test_a_cut_never_parts_an_escape():
    assert cut("abc\\x1bdef", 7) == "abc.."
    assert cut_middle("/usr/share/long/name/of/a/file.txt", 20) == "/usr/s..f/a/file.txt"
