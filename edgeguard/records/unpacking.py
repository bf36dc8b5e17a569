"""Packed rows read again: what `packing` says, strictly. Pure."""

from __future__ import annotations

from typing import Any

from edgeguard.codec import cbor
from edgeguard.errors import DecodeError
from edgeguard.records.columns import DIGEST_KEY, ESCAPED, NUMBER_COLUMNS
from edgeguard.records.differences import DIGEST_SIZE, OWN
from edgeguard.records.rows import Reader
from edgeguard.records.wire import UINT_MAX, Digest, Entry, Resolve


class Unpacker(Reader):
    """Takes packed rows apart. `first`: time since boot and wall time of the first record, as the header has them."""

    sizes = (4,)
    size_words = "four"
    numbers = frozenset(NUMBER_COLUMNS)

    def __init__(
        self, data: bytes, resolve: Resolve | None, digest: Digest | None, first: tuple[int, int | None]
    ) -> None:
        super().__init__(data, resolve)
        self._digest_of = digest
        self._used = 0  # of the digests behind the rows
        self._fill: list[tuple[Any, Any, int]] = []  # where one of them goes when they are known
        since, wall = first
        self._ahead = None if wall is None else wall - since

    def _end(self, at: int) -> int:
        digests, at = cbor.item_at(self._data, at, 1)
        if not isinstance(digests, bytes) or len(digests) % DIGEST_SIZE:
            raise DecodeError("digests: not bytes, 32 each")
        found = [digests[at : at + DIGEST_SIZE] for at in range(0, len(digests), DIGEST_SIZE)]
        if self._used > len(found):
            raise DecodeError(f"digests: digest {len(found)} of {len(found)}")
        if self._used < len(found):
            raise DecodeError(f"digests: {len(found)}, and {self._used} are used")
        for place, key, number in self._fill:
            place[key] = found[number]
        return at

    def _undone(self, name: str, number: int, where: str) -> int:
        if name == "start":
            before = 0 if self._ahead is None else self._ahead + self._mono  # the row's wall time
        else:
            before = self._before.get("pid" if name == "ppid" else name, 0)
        z = -1 - number
        value = before - ((z + 1) >> 1) if z & 1 else before + (z >> 1)
        if 0 <= value <= UINT_MAX:
            return value
        raise DecodeError(f"{where}.{name}: a difference that leads to {value}")

    def _parent(self, number: int, where: str) -> int:
        return number if number >= 0 else self._undone("ppid", number, where)

    def _digest(self, number: int, place: Any, key: Any, where: str, name: str) -> Any:
        if type(number) is not int or number < OWN or number > self._used:
            raise DecodeError(f"{where}.{name}: digest {number!r}, and {self._used} were used")
        if number == OWN:
            if self._own is None:
                raise DecodeError(f"{where}.{name}: the digest of a path that the row does not name")
            found = self._digest_of(self._own) if self._digest_of is not None else None
            return Entry(self._own) if found is None else found
        self._open = self._open or type(place) is list
        self._fill.append((place, key, self._used - number))
        if number == 0:
            self._used += 1
        return None

    def _column(self, columns: dict[str, Any], name: str, key: int | str, value: Any, where: str) -> Any:
        if type(value) is int:
            value = self._before[name] = self._undone(name, value, where) if value < 0 else value
            return value
        if isinstance(value, dict) and len(value) == 1:
            if DIGEST_KEY in value:
                return self._digest(value[DIGEST_KEY], columns, name, where, name)
            if key in NUMBER_COLUMNS and type(value.get(ESCAPED)) is int:
                return value[ESCAPED]
        return super()._column(columns, name, key, value, where)
