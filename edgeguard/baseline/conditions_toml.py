"""`where` and `expect` tables of a rule, from TOML to conditions.

    column = value            is          column = { not = value }       column = { like = "glob" }  (or a list)
    column = [a, b]           in          column = { not_in = [a, b] }   column = { min = 1, max = 9 }
    column = { same = true }  equals the reference value                 column = { has = "x", lacks = ["y"] }
    column = { not_below = true }  at least the reference value

What an operator means is decided in `edgeguard.evaluate.conditions`; here only that it fits the column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from edgeguard.baseline.source import BAD, Source, did_you_mean, shown, size, text, texts
from edgeguard.baseline.toml_positions import Path
from edgeguard.model import Condition, Operator


class ColumnFact(Protocol):
    """What must be known of a column. `edgeguard.sensors.Column` is one."""

    @property
    def type(self) -> str: ...
    @property
    def reference(self) -> bool: ...


Kinds = Mapping[str, Mapping[str, ColumnFact]]
"""Every kind of observation with its columns, as the sensors declare them."""

ENGINE_COLUMNS: Mapping[str, str] = {"known": "bool", "status": "status", "subject": "str"}
"""Offered to every rule by the engine."""

_NOUNS = {
    "str": "a text in quotes",
    "int": "a whole number",
    "bool": "true or false",
    "bytes": "a text of hex digits",
    "list": "a list of texts",
    "status": "present, absent or unreadable",
}
_STATUSES = ("present", "absent", "unreadable")
_FITS = {
    Operator.LIKE: ("str",),
    Operator.UNLIKE: ("str",),
    Operator.MIN: ("int",),
    Operator.MAX: ("int",),
    Operator.NOT_BELOW: ("int",),
    Operator.HAS: ("list",),
    Operator.LACKS: ("list",),
}
_LISTS = (Operator.IN, Operator.NOT_IN)
_REFERENCE = (Operator.SAME, Operator.NOT_BELOW)


def conditions(
    source: Source, path: Path, value: Any, columns: Mapping[str, ColumnFact] | None
) -> dict[str, tuple[Condition, ...]]:
    """The conditions by column. `columns` None: the kind is not known here, types are taken as they come."""
    if not isinstance(value, dict):
        source.complain(path, f"{shown(value)} is not a table", "a table of column = value")
        return {}
    found: dict[str, tuple[Condition, ...]] = {}
    for column, wanted in value.items():
        at = (*path, column)
        kind = _column_type(source, at, column, columns)
        if kind is None:
            continue
        reference = columns is None or (column in columns and columns[column].reference)
        made = _column(source, at, column, kind, wanted, reference)
        kept = tuple(condition for condition in made if isinstance(condition, Condition))
        if len(kept) == len(made):
            found[column] = kept
    return found


def _column_type(source: Source, path: Path, column: str, columns: Mapping[str, ColumnFact] | None) -> str | None:
    """The type of a column, "" if it cannot be known, None after a complaint."""
    if columns is None:
        return ""
    if column in ENGINE_COLUMNS and column not in columns:  # a package has a status of its own
        return ENGINE_COLUMNS[column]
    if column not in columns:
        names = (*columns, *ENGINE_COLUMNS)
        message = f'unknown column "{column}"{did_you_mean(column, names)}'
        source.complain(path, message, "one of " + ", ".join(names), key=True)
        return None
    return columns[column].type


def _column(
    source: Source, path: Path, column: str, kind: str, wanted: Any, reference: bool
) -> list[Condition | object]:
    if isinstance(wanted, dict):
        if not wanted:
            return [source.complain(path, "an empty table asks nothing", "an operator, such as { not = ... }")]
        return [
            _operator(source, (*path, name), column, kind, name, operand, reference) for name, operand in wanted.items()
        ]
    if isinstance(wanted, list):
        if kind == "list":
            expected = '{ has = "x" }, { lacks = "x" } or { is = ["x", "y"] }'
            return [source.complain(path, f'"{column}" holds a list', expected)]
        return [_operator(source, path, column, kind, "in", wanted, reference)]
    return [_operator(source, path, column, kind, "is", wanted, reference)]


def _operator(
    source: Source, path: Path, column: str, kind: str, name: str, operand: Any, reference: bool
) -> Condition | object:
    try:
        operator = Operator(name)
    except ValueError:
        names = [item.value for item in Operator]
        message = f'unknown operator "{name}"{did_you_mean(name, names)}'
        return source.complain(path, message, "one of " + ", ".join(names), key=True)
    if kind and kind not in _FITS.get(operator, (kind,)):
        fits = _NOUNS[_FITS[operator][0]]
        return source.complain(path, f'"{name}" asks {fits}, but "{column}" is {_NOUNS[kind]}', key=True)
    if operator in _REFERENCE:
        if operand is not True:
            return source.complain(path, f"{shown(operand)} says nothing here", f"{{ {name} = true }}")
        if not reference:
            return source.complain(
                path, f'"{column}" has no reference value in the baseline', "a column that learn keeps", key=True
            )
        return Condition(column, operator, True)
    value = _operand(source, path, column, kind, operator, operand)
    return value if value is BAD else Condition(column, operator, value)


def _operand(source: Source, path: Path, column: str, kind: str, operator: Operator, operand: Any) -> Any:
    if operator in {Operator.LIKE, Operator.UNLIKE, Operator.HAS, Operator.LACKS}:
        return texts(source, path, operand)
    if operator in _LISTS:
        if not isinstance(operand, list) or not operand:
            message = "an empty list holds nothing" if operand == [] else f"{shown(operand)} is not a list"
            return source.complain(path, message, "a list with elements")
        if kind == "bool":
            return source.complain(path, f'"{column}" is true or false, a list says nothing', _NOUNS["bool"])
        items = [_value(source, (*path, index), column, kind, item) for index, item in enumerate(operand)]
        if len({type(item) for item in items if item is not BAD}) > 1:
            return source.complain(path, "a list of different things", "texts or whole numbers")
        return BAD if BAD in items else tuple(item.hex() if isinstance(item, bytes) else item for item in items)
    if kind == "list" or (kind == "" and isinstance(operand, list)):
        return (
            texts(source, path, operand)
            if isinstance(operand, list)
            else source.complain(path, f"{shown(operand)} is not a list", _NOUNS["list"])
        )
    return _value(source, path, column, kind, operand)


def _value(source: Source, path: Path, column: str, kind: str, value: Any) -> Any:
    """A single value of a column's type."""
    if kind == "int":
        if isinstance(value, str) and value[:1].isdigit():
            return size(source, path, value)
        if type(value) is int and -(2**63) <= value < 2**63:
            return value
    elif kind == "bool":
        if isinstance(value, bool):
            return value
    elif kind == "bytes":
        if isinstance(value, str):
            return _digest(source, path, value)
    elif kind == "status":
        if value in _STATUSES:
            return value
    elif kind == "":
        if isinstance(value, (bool, int, str)):
            return value
    elif isinstance(value, str):
        return text(source, path, value)
    expected = _NOUNS.get(kind, "a text, a whole number, true or false")
    return source.complain(path, f'"{column}" is {expected}, {shown(value)} is not', expected)


def _digest(source: Source, path: Path, value: str) -> bytes | object:
    try:
        return bytes.fromhex(value)
    except ValueError:
        return source.complain(path, f"{shown(value)} is not hexadecimal", _NOUNS["bytes"])
