"""Column values <-> what CBOR can hold, without losing a byte.

A `str` from the file system may hold bytes that are not UTF-8 (surrogateescape); CBOR text may not. Such a text
travels as a one-entry map {"f": bytes}; column values are never maps, so there is no ambiguity. Tuples travel as
arrays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from edgeguard.errors import DecodeError
from edgeguard.model import Columns, Value


def to_plain(value: Value) -> Any:
    """A column value as CBOR can hold it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return {"f": os.fsencode(value)}
        return value
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(value: Any) -> Value:
    """The column value again. Raises DecodeError for what `to_plain` never makes."""
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return value
    if isinstance(value, list):
        items = tuple(from_plain(item) for item in value)
        if all(isinstance(item, str) for item in items) or all(type(item) is int for item in items):
            return items  # type: ignore[return-value]  # the line above has just checked it
        raise DecodeError("a column holds texts or whole numbers, not a mixture")
    if isinstance(value, dict) and set(value) == {"f"} and isinstance(value["f"], bytes):
        text = os.fsdecode(value["f"])
        if to_plain(text) == text:
            raise DecodeError("a column value that is UTF-8, written as if it were not")  # one value, one spelling
        return text
    raise DecodeError(f"not a column value: {type(value).__name__}")


def columns_to_plain(columns: Columns) -> dict[str, Any]:
    return {name: to_plain(value) for name, value in columns.items()}


def columns_from_plain(plain: Any) -> dict[str, Value]:
    if not isinstance(plain, Mapping) or not all(isinstance(name, str) for name in plain):
        raise DecodeError("columns: expected a map with text keys")
    return {name: from_plain(value) for name, value in plain.items()}
