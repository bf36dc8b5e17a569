"""CBOR, the small part of it that we speak: deterministic out (RFC 8949, 4.2.1), strict in.

Values are integers of 64 bits, bytes, text, arrays, maps (keys: text or unsigned integers), true, false and null.
No tags, no floats, no indefinite lengths: whatever has two spellings is not ours, so equal values have equal bytes and
every byte that passes the decoder is the one that the encoder would have written.
Encoding is cbor2's work behind a walk that orders keys and refuses other types; decoding is our own, because bytes
come from outside and cbor2 answers hostile ones with a handful of foreign exceptions.
Signatures are in `cose`. Nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeguard.errors import DecodeError, Incomplete

DEPTH_DEFAULT = 8  # nested containers; our deepest document, the baseline, has six
DEPTH_MAX = 64  # whatever a caller asks for: far below the interpreter's recursion limit
SIZE_DEFAULT = 64 * 1024  # bytes of one value; a control message or a segment is smaller
INTEGER_MAX = 2**64 - 1  # major types 0 and 1 hold 64 bits

_FALSE, _TRUE, _NULL = 0xF4, 0xF5, 0xF6
_LEAVES = frozenset({str, bytes, bool, type(None)})


def encode(value: object) -> bytes:
    """The one encoding of `value`.

    What is not in our small part is a bug of the caller: TypeError for a type, ValueError for a number beyond 64 bits,
    text that is not Unicode (lone surrogates) or nesting beyond DEPTH_MAX.
    """
    from cbor2 import dumps  # 1.6 MB of private memory: readers do not need it

    encoded: bytes = dumps(_ordered(value, DEPTH_MAX))
    return encoded


def decode(data: bytes, *, depth: int = DEPTH_DEFAULT, size: int = SIZE_DEFAULT) -> Any:
    """The one value that is all of `data`; DecodeError for anything else."""
    if len(data) > size:
        raise DecodeError(f"{len(data)} bytes, at most {size} are read")
    value, end = item_at(data, 0, min(depth, DEPTH_MAX))
    ended(data, end)
    return value


def ended(data: bytes, at: int) -> None:
    """Nothing may come from `at` on."""
    if at != len(data):
        raise DecodeError(f"{len(data) - at} bytes after the value")


def decode_prefix(
    data: bytes, offset: int = 0, *, depth: int = DEPTH_DEFAULT, size: int = SIZE_DEFAULT
) -> tuple[Any, int]:
    """The value that begins at `offset` and where it ends, for CBOR sequences. Incomplete: the data ends first."""
    window = data[offset : offset + size]
    try:
        value, end = item_at(window, 0, min(depth, DEPTH_MAX))
    except Incomplete:
        if len(data) - offset > size:
            raise DecodeError(f"a value of more than {size} bytes") from None
        raise
    return value, offset + end


def _ordered(value: Any, depth: int) -> Any:
    """`value` with map keys in the order of their encodings and nothing in it that we do not speak."""
    kind = type(value)
    if kind in _LEAVES:
        return value
    if isinstance(value, int):  # also IntEnum: the number counts
        if not -INTEGER_MAX - 1 <= value <= INTEGER_MAX:
            raise ValueError(f"{value} does not fit in 64 bits")
        return int(value)
    if isinstance(value, (list, tuple, Mapping)):
        if depth == 0:
            raise ValueError("nested too deeply")
        if isinstance(value, Mapping):
            return {key: _ordered(value[key], depth - 1) for key in sorted(value, key=_key_order)}
        return [_ordered(item, depth - 1) for item in value]
    if isinstance(value, str):  # StrEnum
        return str(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise TypeError(f"CBOR of a {kind.__name__} is not spoken here")


def _key_order(key: object) -> tuple[int, int, bytes]:
    """Bytewise order of encoded keys: integers before text, short text before long, then by bytes."""
    if type(key) is int and 0 <= key <= INTEGER_MAX:
        return (0, key, b"")
    if isinstance(key, str):
        text = key.encode()
        return (1, len(text), text)
    raise TypeError(f"a map key is text or an unsigned integer, not {key!r}")


def count_at(data: bytes, at: int, major: int, otherwise: str) -> tuple[int, int]:
    """How many elements the array (`major` 4) or map (5) that begins at `at` has, and where the first one is;
    `otherwise`: what to say where something else stands."""
    start = at
    found, count, at = _head(data, at)
    if found != major:
        raise DecodeError(f"{otherwise} at byte {start}")
    _room(data, at, count * (major - 3), start)
    return count, at


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    """Major type, argument and the place after both; only the shortest form of the argument passes."""
    if at >= len(data):
        raise Incomplete(f"ends at byte {at}")
    initial = data[at]
    low = initial & 0x1F
    at += 1
    if low < 24:
        return initial >> 5, low, at
    if low > 27:
        raise DecodeError(f"indefinite or reserved length at byte {at - 1}")
    end = at + (1 << (low - 24))
    if end > len(data):
        raise Incomplete(f"ends at byte {len(data)}")
    if low == 24:
        argument, least = data[at], 24
    elif low == 25:
        argument, least = data[at] << 8 | data[at + 1], 0x100
    else:
        argument, least = int.from_bytes(data[at:end], "big"), 0x10000 if low == 26 else 0x100000000
    if argument < least and initial < 0xE0:
        raise DecodeError(f"a longer form than needed at byte {at - 1}")
    return initial >> 5, argument, end


def item_at(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The value that begins at `at`, of at most `depth` nested containers, and where it ends: for readers that know
    the shape of what they read, and whose bound on all of `data` is kept."""
    start = at
    major, argument, at = _head(data, at)
    if major == 0:
        return argument, at
    if major == 1:
        return -1 - argument, at
    if major in {2, 3}:
        end = at + argument
        if end > len(data):
            raise Incomplete(f"{argument} bytes announced at byte {start}, {len(data) - at} are there")
        return (data[at:end] if major == 2 else _text(data[at:end], start)), end
    if major in {4, 5}:
        if depth == 0:
            raise DecodeError(f"nested too deeply at byte {start}")
        _room(data, at, argument * (major - 3), start)
        return (_array if major == 4 else _map)(data, at, argument, depth - 1)
    if major == 7 and at == start + 1:
        initial = data[start]
        if initial in {_FALSE, _TRUE}:
            return initial == _TRUE, at
        if initial == _NULL:
            return None, at
    raise DecodeError(f"a {'tag' if major == 6 else 'float or simple value'} at byte {start}")


def _room(data: bytes, at: int, count: int, start: int) -> None:
    """Every element takes a byte at least: a count beyond that is refused before anything is allocated."""
    if count > len(data) - at:
        raise Incomplete(f"{count} elements announced at byte {start}, {len(data) - at} bytes are there")


def _text(raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise DecodeError(f"text at byte {at} is not UTF-8") from None


def _array(data: bytes, at: int, count: int, depth: int) -> tuple[list[Any], int]:
    """`count` values from `at` on. What records are mostly made of is read here and all else by `item_at`: a collector
    reads a million of these a second."""
    items: list[Any] = []
    append = items.append
    one, more = ONE, MORE
    try:
        for _ in range(count):
            initial = data[at]
            value = one[initial]
            if value is not more:
                append(value)
                at += 1
            elif 0x60 <= initial < 0x78:
                end = at + initial - 0x5F
                if end > len(data):
                    raise Incomplete(f"{initial - 0x60} bytes announced at byte {at}, {len(data) - at - 1} are there")
                append(data[at + 1 : end].decode())
                at = end
            elif initial == 0x78 and data[at + 1] >= 24 and (end := at + 2 + data[at + 1]) <= len(data):
                append(data[at + 2 : end].decode())
                at = end
            elif initial == 0x19 and data[at + 1]:
                append(data[at + 1] << 8 | data[at + 2])
                at += 3
            elif initial == 0x18 and data[at + 1] >= 24:
                append(data[at + 1])
                at += 2
            elif initial == 0x39 and data[at + 1]:
                append(-1 - (data[at + 1] << 8 | data[at + 2]))
                at += 3
            elif initial == 0x38 and data[at + 1] >= 24:
                append(-1 - data[at + 1])
                at += 2
            elif 0x80 <= initial < 0x98 and depth:
                value, at = _array(data, at + 1, initial - 0x80, depth - 1)
                append(value)
            elif 0xA0 <= initial < 0xB8 and depth:
                value, at = _map(data, at + 1, initial - 0xA0, depth - 1)
                append(value)
            else:
                value, at = item_at(data, at, depth)
                append(value)
    except IndexError:
        raise Incomplete(f"ends at byte {len(data)}") from None
    except UnicodeDecodeError:
        raise DecodeError(f"text at byte {at} is not UTF-8") from None
    return items, at


def _map(data: bytes, at: int, count: int, depth: int) -> tuple[dict[Any, Any], int]:
    start = at
    items, at = _array(data, at, 2 * count, depth)
    keys = items[::2]
    last: Place = -1
    for key in keys:
        last = key if type(key) is int and type(last) is int and key > last else next_key(key, last, start)
    return dict(zip(keys, items[1::2], strict=True)), at


def next_key(key: Any, last: Place, start: int) -> Place:
    """The next key of the map that begins at `start`, after `last`, which is -1 before the first."""
    kind = type(key)
    if kind is int and key >= 0:
        if type(last) is int and key > last:
            return int(key)
    elif kind is str:
        if type(last) is int or _key_order(key) > _key_order(last):
            return str(key)
    else:
        raise DecodeError(f"a map key that is neither text nor an unsigned integer at byte {start}")
    raise DecodeError(f"map keys out of order or twice at byte {start}")


Place = int | str
MORE: Any = object()
"""In a table by first byte: it is not the only one."""
ONE: list[Any] = [MORE] * 256
"""The values that are one byte, by that byte."""
ONE[0x00:0x18] = range(24)
ONE[0x20:0x38] = range(-1, -25, -1)
ONE[_FALSE], ONE[_TRUE], ONE[_NULL] = False, True, None
