"""One journal file: what its bytes mean. Reading and writing it when is `spool` (the daemon) and `seal` (the helper).

    two copies of a header, each in a sector of its own, then frames from byte 1024:
    header = magic, generation, state, boot, boot id, next sequence number of each stream, crc32
    frame  = [length u16][crc32 u32][content]; the CRC is seeded with the generation, so that a frame left over from an
             earlier use of the same bytes never passes
    content = a record (wire.encode_record) or a boot mark [boot, boot id]

Sequence numbers are not written with each record: they count on from the header's.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any, NamedTuple, Protocol

from edgeguard.codec import cbor
from edgeguard.errors import DecodeError

MAGIC = b"EGJRNL1\n"
SIZE = 128 * 1024  # bytes of one journal: two seals' worth, so that a burst finds room while a seal runs
SIZE_MAX = 16 * 1024 * 1024  # a file that has grown beyond this is not ours
FRAMES_AT = 1024
_HEADER = struct.Struct("<8sIB3xI16s4Q")
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<HI")
_SEED = struct.Struct("<IH")
_COPIES = (0, 512)  # a sector each: a torn write spoils one of them
FRAME_OVERHEAD = _FRAME.size

FREE, ACTIVE, CLOSED = 0, 1, 2  # sealed or never used; being written; waits for the sealer

_RECORD = 0x84  # first byte of a record: an array of four
STREAMS = 4


class Files(Protocol):
    """The calls that reach the disk. The `os` module is one; tests put one in that fails."""

    def open(self, path: str, flags: int, mode: int = 0o777) -> int: ...
    def pwrite(self, fd: int, data: bytes, offset: int, /) -> int: ...
    def fdatasync(self, fd: int) -> None: ...
    def fsync(self, fd: int) -> None: ...
    def close(self, fd: int) -> None: ...


class Header(NamedTuple):
    generation: int
    state: int
    boot: int
    boot_id: bytes
    next: tuple[int, ...]  # of the first record in this generation, by stream


class Frame(NamedTuple):
    boot: int
    stream: int
    sequence: int
    content: bytes


class Content(NamedTuple):
    """A journal as it was found."""

    header: Header
    frames: tuple[Frame, ...]
    end: int  # where the next frame goes
    boot: int  # after the last mark
    boot_id: bytes
    next: tuple[int, ...]


def pack_header(header: Header) -> bytes:
    packed = _HEADER.pack(MAGIC, header.generation, header.state, header.boot, header.boot_id, *header.next)
    return packed + _CRC.pack(zlib.crc32(packed))


def parse_header(data: bytes) -> Header | None:
    """The header of a journal from whichever copy is whole; None if neither is."""
    for at in _COPIES:
        packed = data[at : at + _HEADER.size]
        crc = data[at + _HEADER.size : at + _HEADER.size + _CRC.size]
        if len(crc) == _CRC.size and packed.startswith(MAGIC) and _CRC.unpack(crc)[0] == zlib.crc32(packed):
            _, generation, state, boot, boot_id, *following = _HEADER.unpack(packed)
            return Header(generation, state, boot, boot_id, tuple(following))
    return None


def frame(generation: int, content: bytes) -> bytes:
    crc = zlib.crc32(content, zlib.crc32(_SEED.pack(generation, len(content))))
    return _FRAME.pack(len(content), crc) + content


def boot_mark(boot: int, boot_id: bytes) -> bytes:
    from cbor2 import dumps  # only the writer needs it

    encoded: bytes = dumps([boot, boot_id])
    return encoded


def parse(data: bytes) -> Content | None:
    """All frames up to the first that does not pass; None without a header."""
    header = parse_header(data)
    if header is None:
        return None
    frames: list[Frame] = []
    following = list(header.next)
    boot, boot_id, at = header.boot, header.boot_id, FRAMES_AT
    while at + _FRAME.size <= len(data):
        length, crc = _FRAME.unpack_from(data, at)
        content = data[at + _FRAME.size : at + _FRAME.size + length]
        seeded = zlib.crc32(content, zlib.crc32(_SEED.pack(header.generation, length)))
        if len(content) < 2 or len(content) < length or crc != seeded:
            break
        if content[0] == _RECORD and content[1] < STREAMS:
            stream = content[1]
            frames.append(Frame(boot, stream, following[stream], content))
            following[stream] += 1
        else:
            mark = _parse_mark(content)
            if mark is None:
                break
            boot, boot_id = mark
        at += _FRAME.size + length
    return Content(header, tuple(frames), at, boot, boot_id, tuple(following))


def _parse_mark(content: bytes) -> tuple[int, bytes] | None:
    try:
        mark: Any = cbor.decode(content, depth=1, size=64)
    except DecodeError:
        return None
    if isinstance(mark, list) and len(mark) == 2 and type(mark[0]) is int and isinstance(mark[1], bytes):
        return mark[0], mark[1]
    return None


def read(path: str) -> bytes:
    """The bytes of a journal file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        return file.read(SIZE_MAX)


def write_all(files: Files, fd: int, data: bytes, offset: int) -> None:
    """pwrite until all is written: a short write is no error by itself, the next one tells."""
    while data:
        written = files.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def write_header(files: Files, fd: int, header: Header) -> None:
    """Both copies, the first made durable before the second is touched."""
    packed = pack_header(header)
    for at in _COPIES:
        write_all(files, fd, packed, at)
        files.fdatasync(fd)
