"""One journal file: what its bytes mean. Reading and writing it when is `spool` (the daemon) and `seal` (the helper).

    two copies of a header, each in a sector of its own, then frames from byte 1024:
    header = magic, generation, state, boot, boot id, next sequence number of each stream, crc32
    behind each header: generation, first record of each stream that is in no segment yet, crc32; written only by a
             sealer that could not end its work
    frame  = [length u16][crc32 u32][content]; the CRC is seeded with the generation, so that a frame left over from an
             earlier use of the same bytes never passes
    content = a record (wire.encode_record), a boot mark [boot, boot id] or a commit mark [boot, next of each stream]

Sequence numbers are not written with each record: they count on from the header's. Every commit begins with a commit
mark, and so does the end of a closed journal: a whole mark behind a frame that does not pass says that the frame was
durable once and is damaged now, and how many records went with it. Without one it is what a cut left of a commit that
nobody was told of. (Damage to the very last commit before a cut looks like that, too.)
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from edgeguard.codec import cbor
from edgeguard.errors import DecodeError

MAGIC = b"EGJRNL1\n"
SIZE = 128 * 1024  # bytes of one journal: two seals' worth, so that a burst finds room while a seal runs
SIZE_MAX = 16 * 1024 * 1024  # a file that has grown beyond this is not ours
FRAMES_AT = 1024
_HEADER = struct.Struct("<8sIB3xI16s4Q")
_SEALED = struct.Struct("<I4Q")
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<HI")
_SEED = struct.Struct("<IH")
_COPIES = (0, 512)  # a sector each: a torn write spoils one of them
_SEALED_AT = (256, 768)
FRAME_OVERHEAD = _FRAME.size
LOST_MAX = SIZE // FRAME_OVERHEAD  # records of a stream that one journal can have lost

FREE, ACTIVE, CLOSED = 0, 1, 2  # sealed or never used; being written; waits for the sealer

_RECORD = 0x84  # first byte of a record: an array of four
_COMMIT = 0x85  # of a commit mark: an array of five
COMMIT_MAX = 5 * 9 + 1  # bytes of a commit mark
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
    content: bytes  # empty: the record was durable, and the disk does not give it any more


class Content(NamedTuple):
    """A journal as it was found."""

    header: Header
    frames: tuple[Frame, ...]
    end: int  # where the next frame goes
    boot: int  # after the last mark
    boot_id: bytes
    next: tuple[int, ...]
    sealed: tuple[int, ...]  # by stream: records below this number are in segments


def pack_header(header: Header) -> bytes:
    packed = _HEADER.pack(MAGIC, header.generation, header.state, header.boot, header.boot_id, *header.next)
    return packed + _CRC.pack(zlib.crc32(packed))


def without_frames(header: Header) -> bytes:
    """A whole file that holds nothing else."""
    return pack_header(header).ljust(_COPIES[1], b"\0") * len(_COPIES)


def parse_header(data: bytes) -> Header | None:
    """The header of a journal from whichever copy is whole; None if neither is."""
    for at in _COPIES:
        packed = data[at : at + _HEADER.size]
        crc = data[at + _HEADER.size : at + _HEADER.size + _CRC.size]
        if len(crc) == _CRC.size and packed.startswith(MAGIC) and _CRC.unpack(crc)[0] == zlib.crc32(packed):
            _, generation, state, boot, boot_id, *following = _HEADER.unpack(packed)
            return Header(generation, state, boot, boot_id, tuple(following))
    return None


def _sealed(data: bytes, generation: int) -> tuple[int, ...]:
    """From both copies what says most: it only grows, and where one is older the other is newer."""
    sealed = (0,) * STREAMS
    for at in _SEALED_AT:
        packed = data[at : at + _SEALED.size]
        crc = data[at + _SEALED.size : at + _SEALED.size + _CRC.size]
        if len(crc) == _CRC.size and _CRC.unpack(crc)[0] == zlib.crc32(packed):
            known, *numbers = _SEALED.unpack(packed)
            if known == generation:
                sealed = tuple(map(max, sealed, numbers))
    return sealed


def frame(generation: int, content: bytes) -> bytes:
    crc = zlib.crc32(content, zlib.crc32(_SEED.pack(generation, len(content))))
    return _FRAME.pack(len(content), crc) + content


def boot_mark(boot: int, boot_id: bytes) -> bytes:
    from cbor2 import dumps  # only the writer needs it

    encoded: bytes = dumps([boot, boot_id])
    return encoded


def commit_mark(boot: int, following: tuple[int, ...]) -> bytes:
    from cbor2 import dumps  # only the writer needs it

    encoded: bytes = dumps([boot, *following])
    return encoded


def parse(data: bytes) -> Content | None:
    """All frames, up to the first that does not pass and has no commit behind it; None without a header."""
    header = parse_header(data)
    if header is None:
        return None
    frames: list[Frame] = []
    following = list(header.next)
    boot, boot_id, at = header.boot, header.boot_id, FRAMES_AT
    while at + _FRAME.size <= len(data):
        content = _content(data, at, header.generation)
        if content is None:
            found = _next_commit(data, at + 1, header.generation, following)
            if found is None:
                break
            at, content = found
        if content[0] == _RECORD and content[1] < STREAMS:
            stream = content[1]
            frames.append(Frame(boot, stream, following[stream], content))
            following[stream] += 1
        elif content[0] == _COMMIT:
            mark = _numbers(content)
            if mark is None:
                break
            boot, committed = mark[0], mark[1:]
            for stream, (known, said) in enumerate(zip(following, committed, strict=True)):
                if said - known <= LOST_MAX:  # else they were never here: numbers went on after a segment's
                    frames += [Frame(boot, stream, number, b"") for number in range(known, said)]
            following = list(committed)
        else:
            begun = _parse_mark(content)
            if begun is None:
                break
            boot, boot_id = begun
        at += _FRAME.size + len(content)
    return Content(header, tuple(frames), at, boot, boot_id, tuple(following), _sealed(data, header.generation))


def completed(content: Content, others: Iterable[Content]) -> Content:
    """With a place for every record that the next generation says was in this one, and that is not there any more."""
    for other in others:
        missing = [after - here for here, after in zip(content.next, other.header.next, strict=True)]
        if other.header.generation == content.header.generation + 1 and 0 <= min(missing) <= max(missing) <= LOST_MAX:
            lost = (
                Frame(content.boot, stream, number, b"")
                for stream, (here, after) in enumerate(zip(content.next, other.header.next, strict=True))
                for number in range(here, after)
            )
            return content._replace(frames=(*content.frames, *lost), next=other.header.next)
    return content


def _content(data: bytes, at: int, generation: int) -> bytes | None:
    """What the frame at this place holds; None where there is none of this generation."""
    length, crc = _FRAME.unpack_from(data, at)
    content = data[at + _FRAME.size : at + _FRAME.size + length]
    seeded = zlib.crc32(content, zlib.crc32(_SEED.pack(generation, length)))
    return content if 2 <= length == len(content) and crc == seeded else None


def _next_commit(data: bytes, start: int, generation: int, following: list[int]) -> tuple[int, bytes] | None:
    """The next whole commit mark from `start` on, that goes on from these numbers: its place and content."""
    at = data.find(_COMMIT, start + _FRAME.size)
    while at >= 0:
        place = at - _FRAME.size
        if 2 <= int.from_bytes(data[place : place + 2], "little") <= COMMIT_MAX:
            content = _content(data, place, generation)
            mark = _numbers(content) if content is not None else None
            if content is not None and mark is not None:
                lost = [said - known for known, said in zip(following, mark[1:], strict=True)]
                # Each lost record had a frame in the bytes that are passed over.
                whole = min(lost) >= 0 and sum(lost) <= (place - start + 1) // _FRAME.size
                return (place, content) if whole else None
        at = data.find(_COMMIT, at + 1)
    return None


def _numbers(content: bytes) -> list[int] | None:
    try:
        mark: Any = cbor.decode(content, depth=1, size=COMMIT_MAX)
    except DecodeError:
        return None
    whole = isinstance(mark, list) and len(mark) == 1 + STREAMS and all(type(item) is int for item in mark)
    return mark if whole and min(mark) >= 0 else None


def _parse_mark(content: bytes) -> tuple[int, bytes] | None:
    try:
        mark: Any = cbor.decode(content, depth=1, size=64)
    except DecodeError:
        return None
    if isinstance(mark, list) and len(mark) == 2 and type(mark[0]) is int and isinstance(mark[1], bytes):
        return mark[0], mark[1]
    return None


def read(path: str) -> bytes:
    """The bytes of a journal file. Raises OSError; with EINVAL for what is no file, without waiting for it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a file", path)
    with open(fd, "rb") as file:
        return file.read(SIZE_MAX)


def write_all(files: Files, fd: int, data: bytes, offset: int) -> None:
    """pwrite until all is written: a short write is no error by itself, the next one tells."""
    while data:
        written = files.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def write_sealed(files: Files, fd: int, generation: int, sealed: Iterable[int]) -> None:
    """Records of this journal below these numbers, by stream, are in segments for good, whatever becomes of those."""
    packed = _SEALED.pack(generation, *sealed)
    for at in _SEALED_AT:  # a sector each, one durable before the other is touched, as of the header
        write_all(files, fd, packed + _CRC.pack(zlib.crc32(packed)), at)
        files.fdatasync(fd)


def write_header(files: Files, fd: int, header: Header, *, backwards: bool = False) -> None:
    """Both copies, one made durable before the other is touched: the first one first, which is the one that is read; or
    `backwards`, where what the header says must not be read before both copies say it."""
    packed = pack_header(header)
    for at in reversed(_COPIES) if backwards else _COPIES:
        write_all(files, fd, packed, at)
        files.fdatasync(fd)
