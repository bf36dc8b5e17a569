"""From the values of fields to their encodings in packed rows (`packing` says what those are). Pure.

Straight into bytes, because Debian 13's cbor2 is Python and took three times as long for lists that it only walks once
more. Every field has a table from values to encodings, which the interpreter walks along with the fields: most are
dictionaries of what the segment said before. What depends on the rows before (`differences`) or is made of more
(`columns`, actors) is computed behind the same face, a `__getitem__`.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

from edgeguard.codec.heads import ARRAYS, NATURALS, encoded, head, integer
from edgeguard.records.columns import NUMBER_COLUMNS, Columns
from edgeguard.records.differences import BOOLS, NULL, Context, Counted, Digests, Number, Parent, Start, Table, moved
from edgeguard.records.registry import ACTOR_FIELDS, TYPES, Field, Kind
from edgeguard.records.strings import Strings
from edgeguard.records.wire import inline

_PARENTS = len(ACTOR_FIELDS) - 1
_WITH_PARENTS = ARRAYS[len(ACTOR_FIELDS)]
_PAIR = head(4, 2)
_TEXT_HEADS = [head(3, size) for size in range(256)]


class Tables(dict[int, tuple[Table, ...]]):
    """The tables of one segment: of the fields of each type, by its number."""

    def __init__(self, strings: Strings, context: Context) -> None:
        super().__init__()
        self.context = context
        self.texts = _references(strings)
        self.lists = _Lists(self.texts)
        self._numbers: dict[str, Number] = {}
        self.column_numbers = {name: self.moving(name) for name in NUMBER_COLUMNS.values()}

    def __missing__(self, number: int) -> tuple[Table, ...]:
        made = tuple([make(self, name, number, place) for make, name, place in _PLANS.get(number, ())])
        self[number] = made
        return made

    def moving(self, name: str) -> Table:
        """The differences of a field or column of this name: `start` and `ppid` are told from something else."""
        if name == "start":
            return Start(self.context)
        return Parent(self.number("pid")) if name == "ppid" else self.number(name)

    def number(self, name: str) -> Number:
        """All numbers of this name in the segment."""
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = Number()
        return found

    def digests(self, number: int, place: int) -> Digests:
        """Those at this place of a type."""
        return Digests(self.context, number, place)


class _Actor:
    """An actor: its fields, and parents in pairs of a number, which is a difference to the last `pid`, and a text."""

    __slots__ = ("_fields", "_pid", "_texts")

    def __init__(self, tables: Tables) -> None:
        self._fields = [make(tables, name, 0, 0) for make, name, _ in _ACTOR_PLAN]
        self._texts = tables.texts
        self._pid = tables.number("pid")

    def __getitem__(self, value: tuple[Any, ...] | None) -> bytes:
        if value is None:
            return NULL
        parts = [b"", *map(getitem, self._fields, value)]
        parents = value[_PARENTS] if len(value) > _PARENTS else None
        if parents:
            pid, texts, naturals = self._pid.last, self._texts, NATURALS
            parts[0] = _WITH_PARENTS
            append = parts.append
            append(head(4, len(parents)))
            for number, exe in parents:
                append(_PAIR)
                append(naturals[number] if number < 24 else moved(number, pid))
                append(texts[exe])
        else:
            while parts[-1] is NULL:
                parts.pop()
            parts[0] = ARRAYS[len(parts) - 1]
        return b"".join(parts)


_References = dict[str | None, bytes]  # what stands for a text in a row


def _references(strings: Strings) -> _References:
    numbered = strings.numbered
    texts: _References = {text: integer(-1 - entry) for text, entry in strings.entries.items()}
    texts |= zip(strings.alone, written_out(strings.alone), strict=True)
    texts |= zip(numbered, map(integer, range(len(numbered))), strict=True)
    texts[None] = NULL
    return texts


def written_out(texts: list[str]) -> list[bytes]:
    """Texts themselves; names that are not UTF-8 as bytes."""
    try:
        raws = list(map(str.encode, texts))
    except UnicodeEncodeError:
        return [encoded(inline(text)) for text in texts]
    heads = _TEXT_HEADS
    return [(heads[len(raw)] if len(raw) < 0x100 else head(3, len(raw))) + raw for raw in raws]


class _Lists(dict[tuple[str, ...] | None, bytes]):
    """Lists of texts: command lines come again."""

    def __init__(self, texts: _References) -> None:
        super().__init__({None: NULL})
        self._texts = texts

    def __missing__(self, items: tuple[str, ...]) -> bytes:
        size = len(items)
        found = (ARRAYS[size] if size < 24 else head(4, size)) + b"".join(map(self._texts.__getitem__, items))
        self[items] = found
        return found


class _Plain(dict[Any, bytes]):
    """What has no other way of being said. Numbers are most of it."""

    def __missing__(self, value: Any) -> bytes:
        return integer(value) if type(value) is int else encoded(value)


_PLAIN = _Plain({None: NULL} | dict(enumerate(NATURALS)))
_Make = Callable[[Tables, str, int, int], Table]  # the table of the field of this name, of a type, at a place
_MAKE: dict[Kind, _Make] = {
    Kind.REF: lambda tables, _name, _number, _place: tables.texts,
    Kind.REFS: lambda tables, _name, _number, _place: tables.lists,
    Kind.UINT: lambda tables, name, _number, _place: tables.moving(name),
    Kind.COUNTER: lambda tables, name, _number, _place: Counted(tables.number(name)),
    Kind.BOOL: lambda _tables, _name, _number, _place: BOOLS,
    Kind.DIGEST: lambda tables, _name, number, place: tables.digests(number, place),
    Kind.COLUMNS: lambda tables, _name, number, place: Columns(tables.digests(number, place), tables.column_numbers),
    Kind.ACTOR: lambda tables, _name, _number, _place: _Actor(tables),
}


def _plain(_tables: Tables, _name: str, _number: int, _place: int) -> Table:
    return _PLAIN


def _plan(fields: tuple[Field, ...]) -> tuple[tuple[_Make, str, int], ...]:
    return tuple((_MAKE.get(field.kind, _plain), field.name, place) for place, field in enumerate(fields))


_PLANS = {kind.number: _plan(kind.fields) for kind in TYPES.values()}
_ACTOR_PLAN = _plan(ACTOR_FIELDS[:-1])
