"""Operators in three values, and the dialect of globs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.evaluate.conditions import compile_condition, glob
from edgeguard.model import Condition, Operator


def ask(operator, operand, value, reference=None):
    row = {} if value is ... else {"x": value}
    return compile_condition(Condition("x", Operator(operator), operand))(row, reference)


@pytest.mark.parametrize(
    ("operator", "operand", "value", "answer"),
    [
        ("is", True, True, True),
        ("is", True, 1, False),  # a number is not a truth value
        ("is", "a", "b", False),
        ("is", "A1" * 32, bytes.fromhex("a1" * 32), True),  # digests are written in hex
        ("is", "a", None, None),
        ("is", "a", ..., None),
        ("not", "a", "b", True),
        ("not", "a", None, None),
        ("in", ("a", "b"), "b", True),
        ("in", ("a", "b"), "c", False),
        ("not_in", ("a", "b"), "b", False),
        ("like", "/tmp/**", "/tmp/a/b", True),
        ("like", "/tmp/*", "/tmp/a/b", False),
        ("like", ("/x", "/t*"), "/tmp", True),
        ("like", "*", 4, None),
        ("unlike", "/tmp/**", "/tmp/a", False),
        ("min", 3, 3, True),
        ("min", 3, 2, False),
        ("max", 3, 4, False),
        ("max", 3, "4", None),
        ("has", ("ro", "nosuid"), ("nosuid", "nodev", "ro"), True),
        ("has", ("ro",), ("rw",), False),
        ("has", ("ro",), "ro", None),
        ("lacks", ("030101",), ("030101", "080650"), False),
        ("lacks", "030101", ("080650",), True),
    ],
)
def test_operators(operator, operand, value, answer):
    assert ask(operator, operand, value) is answer


@pytest.mark.parametrize(
    ("operator", "value", "reference", "answer"),
    [
        ("same", b"1", {"x": b"1"}, True),
        ("same", b"1", {"x": b"2"}, False),
        ("same", ("a",), {"x": ["a"]}, True),
        ("same", None, {"x": None}, True),
        ("same", None, {"x": b"1"}, None),  # not read this time
        ("same", b"1", {}, None),
        ("same", b"1", None, None),
        ("not_below", 2, {"x": 2}, True),
        ("not_below", 1, {"x": 2}, False),
        ("not_below", None, {"x": 2}, None),
    ],
)
def test_comparing_with_the_reference(operator, value, reference, answer):
    assert ask(operator, None, value, reference) is answer


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        ("tcp/[::]:22", "tcp/[::]:22", True),
        ("tcp/*:44?4", "tcp/0.0.0.0:4444", True),
        ("/home/*/.ssh", "/home/a/b/.ssh", False),
        ("/home/**/.ssh", "/home/a/b/.ssh", True),
        ("/a[0-9]", "/a7", True),
        ("/a[!0-9]", "/a7", False),
        ("/a[!0-9]", "/a/", False),
        ("/a*", "/a\n\x1b[31m", True),
        ("/a.c*", "/abc", False),
        ("[z-a]", "b", False),
    ],
)
def test_glob(pattern, text, answer):
    assert glob(pattern)(text) is answer


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_pattern_is_a_matcher_and_matches_itself(pattern, text):
    assert glob(pattern)(pattern)
    assert glob(pattern)(text) in {True, False}
