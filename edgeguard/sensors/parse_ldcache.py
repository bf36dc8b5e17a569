"""/etc/ld.so.cache as the dynamic loader reads it, and the lines of /etc/ld.so.conf as ldconfig does. Pure.

glibc's dl-cache.h and dl-cache.c. Two layouts: the present one, and the one before glibc 2.2 ("ld.so-1.7.0"), which
every loader still takes and behind which the present one may stand. What the loader would take for broken and pass
over is a DecodeError here; what it would read and we do not is `TooMuch`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from edgeguard.errors import DecodeError

SIZE_MAX = 8 * 1024 * 1024  # bytes; a desktop's has 300 KiB
ENTRIES_MAX = 65_536  # libraries; a desktop's has 5,000
DIRECTORIES_MAX = 256  # a device's has 2 to 20
PATH_MAX = 4096  # bytes with the end; nobody can open a longer one

_MAGIC, _OLD_MAGIC = b"glibc-ld.so.cache1.1", b"ld.so-1.7.0"
_HEADER, _OLD_HEADER = 48, 16  # bytes
_SIGN = {"little": "<", "big": ">"}
_ORDERS = {2: "<", 3: ">"}  # the lower two bits of the flags; 0 in all of them: made before glibc 2.33

_OWN = re.compile(r"(?:/usr)?/lib(?:64|32|x32)?(?:/[a-z0-9_]+-linux-gnu[a-z0-9_]*)?")
# Loaders before glibc 2.37 look into the second kind of names, too.
_BELOW = re.compile(
    r"(?:/glibc-hwcaps/[A-Za-z0-9_-]+"
    r"|(?:/(?:tls|sse2|x86_64|avx512_1|haswell|xeon_phi|i[3-6]86|atomics|vfp|neon|v[4-8]l)){1,3})\Z"
)


class TooMuch(DecodeError):
    """The loader reads on where we stop."""


def directories(data: bytes, machine: str) -> dict[str, str]:
    """Every directory that the cache names, as it is written there, and the first of its libraries by name.

    `machine`: byte order where the cache does not tell it, "little" or "big". A path without a directory: ".".
    Raises DecodeError: the loader ignores this cache; TooMuch: more than the bounds above.
    """
    found: dict[str, str] = {}
    for path in _paths(data, _SIGN[machine]):
        directory, slash, library = path.rpartition("/")
        if not library:
            continue  # a directory is no library
        directory = (directory or "/") if slash else "."
        before = found.get(directory)
        if before is None or library < before:
            found[directory] = library
        if len(found) > DIRECTORIES_MAX:
            raise TooMuch(f"more than {DIRECTORIES_MAX} directories")
    return found


def _paths(data: bytes, machine: str) -> Iterator[str]:
    if data.startswith(_MAGIC) and len(data) > _HEADER:
        yield from _present(data, 0, machine, whole=True)
        return
    if not data.startswith(_OLD_MAGIC) or len(data) <= _OLD_HEADER:
        raise DecodeError("not a cache of the loader")
    (count,) = struct.unpack_from(machine + "I", data, 12)
    if count > (len(data) - _OLD_HEADER) // 12:
        raise DecodeError("more libraries than bytes for them")
    end = _OLD_HEADER + 12 * count
    yield from _entries(data, _OLD_HEADER, count, machine + "4xII", end)
    for at in {end, (end + 7) // 8 * 8}:  # the alignment is the architecture's
        if data.startswith(_MAGIC, at) and len(data) >= at + _HEADER:
            yield from _present(data, at, machine, whole=False)


def _present(data: bytes, at: int, machine: str, *, whole: bool) -> Iterator[str]:
    """A cache of the present layout that begins at `at`, which its offsets count from."""
    flags = data[at + 28]
    order = _ORDERS.get(flags & 3) if flags else machine
    if order is None:
        if not whole:
            return  # what stands before it may count; only one of the alignments is the loader's
        raise DecodeError(f"flags {flags:#x} name no byte order")
    (count,) = struct.unpack_from(order + "I", data, at + 20)
    room = (len(data) - at - _HEADER) // 24
    if count > room and whole:  # behind an old one the loader does not ask
        raise DecodeError("more libraries than bytes for them")
    yield from _entries(data, at + _HEADER, min(count, room), order + "4xII12x", at)


def _entries(data: bytes, at: int, count: int, form: str, strings: int) -> Iterator[str]:
    if count > ENTRIES_MAX:
        raise TooMuch(f"more than {ENTRIES_MAX} libraries")
    size = struct.calcsize(form)
    for _name, offset in struct.iter_unpack(form, memoryview(data)[at : at + size * count]):
        begin = strings + offset
        end = data.find(b"\0", begin, begin + PATH_MAX)
        if end < 0:  # outside, without an end, or too long to be opened; at the end of the file a page gives the NUL
            if not len(data) - PATH_MAX < begin < len(data):
                continue
            end = len(data)
        if end > begin:
            yield data[begin:end].decode("utf-8", "surrogateescape")


def origin(directory: str, configured: frozenset[str]) -> str:
    """Why the loader may be sent there: "loader" (one of its own), "configuration" (ld.so.conf), or "neither"."""
    for place in (directory, _BELOW.sub("", directory)):
        if _OWN.fullmatch(place):
            return "loader"
        if place in configured:
            return "configuration"
    return "neither"


def lines(data: bytes) -> Iterator[tuple[bool, str]]:
    """What a file of the configuration says: (True, pattern of files to include) or (False, directory)."""
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        said = line.partition("#")[0].strip(" \t\r\f\v")
        if re.match(r"include[ \t]", said):
            yield from ((True, pattern) for pattern in said[8:].split())
        elif said and not re.match(r"hwcap[ \t]", said, re.IGNORECASE):
            yield False, said.rstrip("/") or "/"
            if "=" in said:  # once a kind of library stood behind it
                yield False, said.partition("=")[0].rstrip("/ \t") or "/"
