"""logs.mem: what is known of logs, between two runs. Written as a whole, read once.

A local memory, never a reference: damage means that logs begin anew. Integers are little-endian:

    "EGLOGMM1", 16 bytes: the boot in which it was written
    log*      u16 len(path), path, u64 device, u64 inode, sample (rotation.pack), u64 size, u16 length and 16 bytes of
              the tail before (length 65535: none), u8 word, u64 lost
    end       u16 65535, u32 CRC-32 of all before it
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from struct import Struct
from zlib import crc32

from edgeguard.codec.manifest import PATH_MAX
from edgeguard.errors import DecodeError
from edgeguard.sensors import rotation
from edgeguard.sensors.logs import LOGS_MAX, WORDS, Known, Loaded
from edgeguard.sensors.rotation import SAMPLE_SIZE, Tail

MAGIC = b"EGLOGMM1"
BOOT = 16  # bytes
SIZE_MAX = 1 << 20  # bytes: LOGS_MAX logs with paths of ordinary length; longer paths leave no room for as many
_INODE = Struct("<QQ")
_REST = Struct("<QH16sBQ")
_LENGTH = Struct("<H")
_CRC = Struct("<I")
_END = b"\xff\xff"
_NONE = 0xFFFF
_FIXED = _INODE.size + SAMPLE_SIZE + _REST.size


def encode(boot: bytes, logs: Iterable[tuple[str, Known]]) -> bytes:
    parts = [MAGIC, boot]
    size = len(MAGIC) + BOOT
    for path, known in logs:
        raw = os.fsencode(path)
        size += _LENGTH.size + len(raw) + _FIXED
        if size > SIZE_MAX - 64:
            break
        tail = known.before or Tail(0, _NONE, bytes(rotation.DIGEST))
        word = WORDS.index(known.broken) + 1 if known.broken else 0
        parts += (_LENGTH.pack(len(raw)), raw, _INODE.pack(*known.inode), rotation.pack(known.sample))
        parts.append(_REST.pack(*tail, word, known.lost))
    data = b"".join((*parts, _END))
    return data + _CRC.pack(crc32(data))


def load(path: str, boot: bytes) -> Iterator[tuple[str, Known]]:
    """What an earlier run kept; nothing where there is no such file. Raises OSError and DecodeError."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            return decode(file.read(SIZE_MAX + 1) or b"", boot)
    return iter(())


def save(path: str, boot: bytes, logs: Iterable[tuple[str, Known]]) -> None:
    """Put it there as a whole, durably. Raises OSError."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(encode(boot, logs))
        while left:
            left = left[os.write(fd, left) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def decode(data: bytes, boot: bytes) -> Iterator[tuple[str, Known]]:
    """What was kept, and whether it was in another boot than this one. Raises DecodeError before anything is given."""
    if len(data) > SIZE_MAX or len(data) < len(MAGIC) + BOOT + 6 or not data.startswith(MAGIC):
        raise DecodeError("logs.mem: not such a file")
    if _CRC.unpack(data[-4:])[0] != crc32(data[:-4]):
        raise DecodeError("logs.mem: damaged")
    loaded = Loaded.THIS_BOOT if data[len(MAGIC) : len(MAGIC) + BOOT] == boot else Loaded.OTHER_BOOT
    return iter(list(_logs(data, len(MAGIC) + BOOT, loaded)))


def _logs(data: bytes, at: int, loaded: Loaded) -> Iterator[tuple[str, Known]]:
    end = len(data) - 6
    for _log in range(LOGS_MAX + 1):
        length = int.from_bytes(data[at : at + 2], "little")
        if length == _NONE and at == end:
            return
        first = at + 2 + length
        at = first + _FIXED
        raw = data[first - length : first]
        if at > end or not 0 < length < PATH_MAX or raw[:1] != b"/" or b"\0" in raw:
            raise DecodeError("logs.mem: a record is damaged")
        yield os.fsdecode(raw), _known(data[first:at], loaded)
    raise DecodeError("logs.mem: too many logs")


def _known(raw: bytes, loaded: Loaded) -> Known:
    inode = _INODE.unpack_from(raw)
    sample = rotation.unpack(raw[_INODE.size : _INODE.size + SAMPLE_SIZE])
    size, length, digest, word, lost = _REST.unpack_from(raw, _INODE.size + SAMPLE_SIZE)
    before = None if length == _NONE else Tail(size, length, digest)
    for tail in (sample.tail, before):
        if tail is not None and (tail.length > rotation.SAMPLE or tail.length > tail.size or tail.size >= 1 << 63):
            raise DecodeError("logs.mem: a length is out of bounds")
    if word > len(WORDS) or sample.head_length > rotation.SAMPLE or lost >= 1 << 63:
        raise DecodeError("logs.mem: a value is out of bounds")
    return Known((inode[0], inode[1]), sample, before, WORDS[word - 1] if word else "", lost, loaded=loaded)
