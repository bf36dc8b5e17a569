"""Packed rows (codecs 2 and 3): the same records in fewer bytes, for a collector that has said that it reads them.

    numbers   A field or column of the kind "number": what is at least 0 stands for itself; -1 - z is a difference to
              the number before it, z its zigzag (0, -1, 1, -2, ... are 0, 1, 2, 3, ...). The number before it is the
              last one of a field or column of the same name in the segment, 0 at first; for `start` it is the row's
              wall time, for `ppid` and the numbers of an actor's parents the last `pid`.
    digests   32 bytes are a number: 0 is the next of the segment's digests, k the k-th back from the last one used,
              and -1 the digest that the baseline holds for this row's own path: the first text of the row that is a
              reference into it. In a column, {1: number}.
    body      [strings, rows, drops, digests]: the digests of all rows one after the other, at the end, because
              nothing makes them shorter and they make longer what is compressed with them.

`wire` says what a row is. Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import getitem, itemgetter

from edgeguard.codec.heads import ARRAYS, NATURALS, encoded, head, integer
from edgeguard.records import dictionaries
from edgeguard.records.differences import Context
from edgeguard.records.strings import Strings, strings_of
from edgeguard.records.tables import Tables, written_out
from edgeguard.records.wire import Digest, Drop, Record, Reference

MEMORY = 8  # zlib's memLevel: with 9 the same bytes within 0.02 %, and twice the memory to copy; with 7 it is slower
LEVEL = 6  # of DEFLATE with a dictionary: 9 saves 0.06 bytes an event and takes another 1.8 us
_SAID = itemgetter(0, 2, 5, 6, 7)  # of a record; an object that is not touched need not come from memory


def packed_body(
    records: Sequence[Record],
    reference: Reference | None = None,
    digest: Digest | None = None,
) -> bytes:
    """A packed body before it is compressed: what a dictionary is made of."""
    return pack(records, strings_of(records, reference), (), digest)[0]


def pack(
    records: Sequence[Record], strings: Strings, drops: Sequence[Drop], digest: Digest | None
) -> tuple[bytes, int]:
    """(the body, where its digests begin)."""
    context = Context(strings.entries, digest, records[0].wall)
    rows = packed_rows(records, Tables(strings, context), context)
    digests = b"".join(context.digests)
    before = (head(4, 4), head(4, len(strings.numbered)), *written_out(strings.numbered), head(4, len(records)))
    plain = b"".join((*before, *rows, encoded([list(drop) for drop in drops]), encoded(digests)))
    return plain, len(plain) - len(digests)


def packed_rows(records: Iterable[Record], tables: Tables, context: Context) -> list[bytes]:
    """The rows of records, in their order, in pieces."""
    arrays, naturals, clock = ARRAYS, NATURALS, context.clock
    pieces: list[bytes] = []
    before: int | None = None
    for number, mono, severity, rule, said in map(_SAID, records):
        dt = 0
        if before is None:
            before = mono
        elif mono > before:  # a step back of some ms between two sensors is not worth a sign
            dt, before = mono - before, mono
            if clock:
                context.wall += dt
        columns = tables[number]
        size = len(said)
        while size and said[size - 1] is None:
            size -= 1
        fields = said if size == len(said) else said[:size]
        context.fields = fields
        first = number << 4 | severity | (8 if rule else 0)
        pieces += (
            arrays[2 + size] if size < 22 else head(4, 2 + size),
            naturals[dt] if dt < 0x100 else integer(dt),
            naturals[first] if first < 0x100 else integer(first),
            b"".join(map(getitem, columns, fields)),
        )
        if size > len(columns):
            pieces += map(encoded, fields[len(columns) :])
    return pieces


def squeeze(plain: bytes, at: int, number: int) -> tuple[bytes, bytes]:
    """The body, and the body in fewer bytes. What stands from `at` on is random: a block, and so codes, of its own."""
    squeezer = _squeezer(number).copy()
    squeezed = squeezer.compress(plain[:at])
    if at < len(plain):
        squeezed += squeezer.flush(zlib.Z_BLOCK) + squeezer.compress(plain[at:])
    return plain, squeezed + squeezer.flush()


@lru_cache(maxsize=1)
def _squeezer(number: int) -> zlib._Compress:
    """One that has read the dictionary, to be copied: reading it takes 30 us, which is half a microsecond for each of
    64 events. Raises DecodeError if that dictionary is not here."""
    return zlib.compressobj(LEVEL, zlib.DEFLATED, -15, MEMORY, zlib.Z_DEFAULT_STRATEGY, dictionaries.read(number))
