"""What a single condition says about a row: True, False, or None when it cannot be decided. Pure.

Here live the operators of `model.Operator` and the one dialect of globs. Which rule a condition belongs to, and
what follows from the answer, is the engine's business.

A column that is missing or None is not known; a test of it gives None. "Not known" is never read as "fine".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from edgeguard.model import Columns, Condition, Operator, Value

Test = Callable[[Columns, Columns | None], bool | None]
"""(row, reference value of the subject) -> does the condition hold? None: cannot be decided."""

COMPARING = frozenset({Operator.SAME, Operator.NOT_BELOW})
"""Operators that ask the baseline; they mean nothing for a subject that it does not know."""

_TOKEN = re.compile(r"\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def glob(pattern: str) -> Callable[[str], bool]:
    """A matcher: `*` and `?` stay within one path component, `**` crosses, `[a-z]` is a class.

    A text that equals the pattern always matches, so that "tcp/[::]:22" can be written as it is shown.
    """
    if not any(mark in pattern for mark in "*?["):
        return pattern.__eq__
    parts = [_piece(part) for part in _TOKEN.findall(pattern)]
    try:
        match = re.compile("".join(parts), re.DOTALL).fullmatch
    except re.error:  # a class such as [z-a]: nothing but itself
        return pattern.__eq__
    return lambda text: text == pattern or match(text) is not None


def _piece(part: str) -> str:
    if part == "**":
        return ".*"
    if part == "*":
        return "[^/]*"
    if part == "?":
        return "[^/]"
    if len(part) > 2 and part[0] == "[":
        negated = part[1] == "!"
        body = part[2 if negated else 1 : -1].replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
        return f"(?!/)[^{body}]" if negated else f"(?!/)[{body}]"
    return re.escape(part)


def compile_condition(condition: Condition) -> Test:
    """The condition as a function of a row. Work that depends on the operand alone is done here, once."""
    if condition.operator is Operator.SAME:
        return _same(condition.column)
    if condition.operator is Operator.NOT_BELOW:
        return _not_below(condition.column)
    if condition.operator is Operator.IS:
        return _exactly(condition.column, condition.operand)
    return _of_value(condition.column, _BUILDERS[condition.operator](condition.operand))


def same_value(left: Value, right: Value) -> bool:
    """Equal in value and kind. A list and a tuple are one kind (CBOR gives lists), a bool and a number are not."""
    if type(left) is type(right):
        return left == right
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return tuple(left) == tuple(right)
    if isinstance(left, bytes) and isinstance(right, str):  # a digest in a policy is written in hex
        return left.hex() == right.lower()
    return False


def in_words(condition: Condition) -> Value:
    """What would have held, for people and for `expected`; the plain value where there is just one."""
    operand = condition.operand
    if condition.operator in {Operator.IS, *COMPARING}:
        return operand
    words = _WORDS[condition.operator]
    listed = ", ".join(str(item) for item in operand) if isinstance(operand, tuple) else str(operand)
    return f"{words} {listed}"


_WORDS = {
    Operator.NOT: "not",
    Operator.IN: "one of",
    Operator.NOT_IN: "none of",
    Operator.LIKE: "like",
    Operator.UNLIKE: "not like",
    Operator.MIN: "at least",
    Operator.MAX: "at most",
    Operator.HAS: "with",
    Operator.LACKS: "without",
}

_Judge = Callable[[Value], bool | None]


def _of_value(column: str, judge: _Judge) -> Test:
    def test(row: Columns, _reference: Columns | None) -> bool | None:
        value = row.get(column)
        return None if value is None else judge(value)

    return test


def _exactly(column: str, operand: Value) -> Test:
    """`is`, the most frequent one, without detours."""
    kind = type(operand)

    def test(row: Columns, _reference: Columns | None) -> bool | None:
        value = row.get(column)
        if value is None:
            return None
        return value == operand if type(value) is kind else same_value(value, operand)

    return test


def _same(column: str) -> Test:
    def test(row: Columns, reference: Columns | None) -> bool | None:
        if reference is None or column not in reference or column not in row:
            return None
        value, wanted = row[column], reference[column]
        if type(value) is type(wanted):
            return value == wanted
        if value is None:
            return None  # it could not be read this time
        return same_value(value, wanted)

    return test


def _not_below(column: str) -> Test:
    def test(row: Columns, reference: Columns | None) -> bool | None:
        value, least = row.get(column), None if reference is None else reference.get(column)
        return value >= least if isinstance(value, int) and isinstance(least, int) else None

    return test


def _items(operand: Value) -> tuple[Value, ...]:
    return tuple(operand) if isinstance(operand, (tuple, list)) else (operand,)


def _is_not(operand: Value) -> _Judge:
    return lambda value: not same_value(value, operand)


def _in(operand: Value) -> _Judge:
    items = _items(operand)
    return lambda value: any(same_value(value, item) for item in items)


def _not_in(operand: Value) -> _Judge:
    items = _items(operand)
    return lambda value: not any(same_value(value, item) for item in items)


def _like(operand: Value) -> _Judge:
    matchers = [glob(str(item)) for item in _items(operand)]
    return lambda value: any(match(value) for match in matchers) if isinstance(value, str) else None


def _unlike(operand: Value) -> _Judge:
    matchers = [glob(str(item)) for item in _items(operand)]
    return lambda value: not any(match(value) for match in matchers) if isinstance(value, str) else None


def _min(operand: Value) -> _Judge:
    return lambda value: value >= operand if isinstance(value, int) and isinstance(operand, int) else None


def _max(operand: Value) -> _Judge:
    return lambda value: value <= operand if isinstance(value, int) and isinstance(operand, int) else None


def _has(operand: Value) -> _Judge:
    wanted = frozenset(_items(operand))
    return lambda value: wanted.issubset(value) if isinstance(value, (tuple, list)) else None


def _lacks(operand: Value) -> _Judge:
    banned = frozenset(_items(operand))
    return lambda value: banned.isdisjoint(value) if isinstance(value, (tuple, list)) else None


_BUILDERS: dict[Operator, Callable[[Value], _Judge]] = {
    Operator.NOT: _is_not,
    Operator.IN: _in,
    Operator.NOT_IN: _not_in,
    Operator.LIKE: _like,
    Operator.UNLIKE: _unlike,
    Operator.MIN: _min,
    Operator.MAX: _max,
    Operator.HAS: _has,
    Operator.LACKS: _lacks,
}


def all_hold(tests: Iterable[Test], row: Columns, reference: Columns | None) -> bool | None:
    """The conditions joined by "and", in three values: one False decides, else one None leaves it open."""
    answer: bool | None = True
    for test in tests:
        held = test(row, reference)
        if held is False:
            return False
        if held is None:
            answer = None
    return answer
