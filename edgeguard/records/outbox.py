"""Sealed segments on disk: `<stream>-<seq:016d>.egs`, and the statements of the epochs in which they were sealed:
`epoch-<number:016d>.ege`. The directory is the index; there is no other.

A segment is handed out by its mode: until its records are out of the journal only the sealer reads it. Who sends it
earlier could have delivered what is sealed once more, should the file be damaged before the journal is free.

Light, because the resident daemon and the uplink use it too. Writing segments is `seal`, sending them is `uplink`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from typing import NamedTuple

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, SegmentRefused
from edgeguard.records import wire

SUFFIX = ".egs"
EPOCH_PREFIX, EPOCH_SUFFIX = "epoch-", ".ege"
EPOCH_MAX = 2048  # bytes of a statement (epoch.SIZE_MAX, which a reader checks)
O_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # neither a link nor a FIFO leads us astray
HELD, HANDED_OUT = 0o600, 0o640  # modes of a segment
_NAME_LENGTH = 22  # "0-0000000000000001.egs"


class Name(NamedTuple):
    """Which segment a file holds, by its name. Sorts by stream, then sequence."""

    stream: int
    sequence: int

    @property
    def file(self) -> str:
        return f"{self.stream}-{self.sequence:016d}{SUFFIX}"


def parse_name(file: str) -> Name | None:
    """The segment of a file name; None for any other file."""
    stream, _, rest = file.partition("-")
    digits, dot, suffix = rest.partition(".")
    plain = (stream + digits).isascii() and (stream + digits).isdigit()
    if len(file) != _NAME_LENGTH or len(stream) != 1 or not plain or dot + suffix != SUFFIX or stream > "3":
        return None
    return Name(int(stream), int(digits))


def epoch_file(number: int) -> str:
    """The name of an epoch's statement."""
    return f"{EPOCH_PREFIX}{number:016d}{EPOCH_SUFFIX}"


def parse_epoch(file: str) -> int | None:
    """The epoch of a file name; None for any other file."""
    digits = file.removeprefix(EPOCH_PREFIX).removesuffix(EPOCH_SUFFIX)
    plain = len(digits) == 16 and digits.isascii() and digits.isdigit()
    return int(digits) if plain and file == epoch_file(int(digits)) else None


def is_one(data: bytes) -> bool:
    """Is it one item of the sequence that is sent, from its first byte to its last?"""
    try:
        return wire.split(data) == [data]
    except SegmentRefused:
        return False


def epochs(directory: str) -> list[int]:
    """All epochs of which a statement lies there, the oldest first."""
    try:
        files = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(number for number in map(parse_epoch, files) if number is not None)


def read_epoch(directory: str, number: int) -> bytes:
    """The bytes of one statement file, whatever they are. Raises SegmentRefused for a giant, OSError else."""
    data = _read(os.path.join(directory, epoch_file(number)), EPOCH_MAX + 1)
    if len(data) > EPOCH_MAX:
        raise SegmentRefused(f"{epoch_file(number)}: larger than {EPOCH_MAX} bytes")
    return data


def listing(directory: str) -> list[Name]:
    """All segments there, by stream and sequence. A directory that is not there is empty."""
    try:
        files = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(name for name in map(parse_name, files) if name is not None)


def newest(names: Iterable[Name]) -> dict[int, Name]:
    """The last segment of each stream: anchor of its chain, kept even after its receipt."""
    last: dict[int, Name] = {}
    for name in names:
        if name.stream not in last or name.sequence > last[name.stream].sequence:
            last[name.stream] = name
    return last


def read(directory: str, name: Name) -> bytes:
    """The bytes of one segment file, whatever they are. Raises SegmentRefused for a link or a giant, OSError else."""
    data = _read(os.path.join(directory, name.file), wire.SEGMENT_MAX + 1)
    if len(data) > wire.SEGMENT_MAX:
        raise SegmentRefused(f"{name.file}: larger than {wire.SEGMENT_MAX} bytes")
    return data


def _read(path: str, limit: int) -> bytes:
    fd = os.open(path, O_READ)
    try:
        with open(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:  # also where it is a directory, which `open` refuses without closing it
        os.close(fd)


def is_held(directory: str, name: Name) -> bool:
    """Has it not been handed out yet? Raises OSError."""
    return holds(os.stat(os.path.join(directory, name.file), follow_symlinks=False))


def holds(status: os.stat_result) -> bool:
    """`is_held`, of a file's status."""
    return stat.S_ISREG(status.st_mode) and not status.st_mode & stat.S_IRGRP


def hand_out(directory: str, name: Name) -> None:
    """Whoever sends may read it from now on. That the mode is durable nobody needs: the next run hands it out again."""
    fd = os.open(os.path.join(directory, name.file), O_READ)
    try:
        os.fchmod(fd, HANDED_OUT)
    finally:
        os.close(fd)


def header(directory: str, name: Name) -> wire.Header:
    """What the segment says of itself, not verified. Raises SegmentRefused or OSError."""
    try:
        return wire.decode_header(cose.parse1(read(directory, name)).payload)
    except DecodeError as error:
        raise SegmentRefused(f"{name.file}: {error}") from error


def replace(path: str, data: bytes) -> None:
    """Write a file as a whole, also for who reads it after a power cut: an empty receipt would be a finding. That its
    name is durable nobody needs: the collector only sends a receipt again."""
    directory, _, name = path.rpartition("/")
    temporary = f"{directory}/.{name}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    os.fchmod(fd, 0o644)  # whatever the umask is: the sealer is another user
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.replace(temporary, path)
