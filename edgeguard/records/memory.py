"""What the uplink remembers from run to run, in inbox/.sent.json: a file of its own that nobody else reads.

Of each collector: which segments it took that its receipt only says to hold (beyond a gap), so that they are not sent
again, and when it wants to hear from us. Of all: how much was sent, for the budgets. Losing the file costs bytes and
nothing else: no segment is ever deleted on its word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from edgeguard.errors import DecodeError
from edgeguard.records import receipts
from edgeguard.records.allowance import Books
from edgeguard.records.outbox import Name
from edgeguard.records.receipts import Range

FILE = ".sent.json"
SIZE_MAX = 16 * 1024  # bytes
RANGES_MAX = 128  # of one collector
_NUMBER_MAX = 1 << 63


class Known(NamedTuple):
    """Of one collector."""

    taken: tuple[Range, ...] = ()
    rest_until: int = 0  # ms since 1970: it asked us to wait until then
    last_sent: int | None = None
    seen: int = 0  # ms since 1970: when we last heard its receipt

    def took(self, name: Name) -> bool:
        return any(part.stream == name.stream and part.first <= name.sequence <= part.last for part in self.taken)


class Memory(NamedTuple):
    first: Known = Known()
    second: Known = Known()
    books: Books = Books()


def load(path: str) -> Memory:
    """What was kept; nothing where there is no file."""
    try:
        return parse(receipts.read(path, SIZE_MAX))
    except (OSError, DecodeError):
        return Memory()


def parse(data: bytes) -> Memory:
    """What a file says; nothing where it makes no sense."""
    try:
        kept: Any = json.loads(data)
        books = Books(*map(_number, kept["books"]))
        return Memory(_known(kept["first"]), _known(kept["second"]), books)
    except (ValueError, TypeError, KeyError, RecursionError):
        return Memory()


def encode(memory: Memory) -> bytes:
    """The file's content."""
    return json.dumps(
        {
            "v": 1,
            "first": memory.first._asdict(),
            "second": memory.second._asdict(),
            "books": memory.books,
        }
    ).encode()


def ranges(names: Iterable[Name]) -> tuple[Range, ...]:
    """Names as ranges, the newest where there are too many."""
    found: list[Range] = []
    for name in sorted(names):
        if found and found[-1].stream == name.stream and found[-1].last == name.sequence - 1:
            found[-1] = found[-1]._replace(last=name.sequence)
        else:
            found.append(Range(name.stream, name.sequence, name.sequence))
    return tuple(found[-RANGES_MAX:])


def _known(kept: Any) -> Known:
    last = kept["last_sent"]
    taken = tuple(Range(*map(_number, part)) for part in kept["taken"][:RANGES_MAX])
    return Known(taken, _number(kept["rest_until"]), None if last is None else _number(last), _number(kept["seen"]))


def _number(value: Any) -> int:
    if type(value) is not int or not -_NUMBER_MAX < value < _NUMBER_MAX:
        raise ValueError("not a number that we wrote")
    return value
