"""Segments that leave by hand: the outbox as a few files for a stick, encrypted to one reader or, on request, not.

A file holds a CBOR sequence of segments, after the statements that vouch for their keys, inside a COSE_Encrypt where it
is encrypted. Nothing leaves the outbox by being exported: only a receipt that comes back lets a segment go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from edgeguard.codec import cose, encrypt
from edgeguard.errors import DecodeError, SegmentRefused
from edgeguard.records import outbox, wire

PART_MAX = 4 * 1024 * 1024  # bytes of segments in one file: what is encrypted is in memory, twice
SUFFIX = ".egx"
PLAIN_SUFFIX = ".egseq"


def parts(directory: str, left_out: list[str]) -> Iterator[tuple[bytes, int]]:
    """(CBOR sequence, number of segments) of the outbox; what cannot be read is named in `left_out`. Raises OSError."""
    batch: list[bytes] = []
    size = 0
    for name in outbox.listing(directory):
        try:
            if outbox.is_held(directory, name):  # its records are still the journal's
                continue
            data = outbox.read(directory, name)
        except FileNotFoundError:  # a receipt has just let it go
            continue
        except PermissionError:
            raise
        except (OSError, SegmentRefused) as error:
            left_out.append(f"{name.file}: {error}")
            continue
        if not outbox.is_one(data):
            left_out.append(f"{name.file}: not a segment")
            continue
        if batch and size + len(data) > PART_MAX:
            yield b"".join([*_statements(directory, batch), *batch]), len(batch)
            batch, size = [], 0
        batch.append(data)
        size += len(data)
    if batch:
        yield b"".join([*_statements(directory, batch), *batch]), len(batch)


def _statements(directory: str, segments: list[bytes]) -> Iterator[bytes]:
    """Of the epochs of these segments, and of the newest: it names where they end. Raises PermissionError."""
    wanted = set(outbox.epochs(directory)[-1:])
    for data in segments:
        try:
            wanted.add(wire.decode_header(cose.parse1(data).payload).epoch)
        except (DecodeError, SegmentRefused):  # who takes it in says so
            continue
    for number in sorted(wanted):
        try:
            data = outbox.read_epoch(directory, number)
        except PermissionError:
            raise
        except (OSError, SegmentRefused):  # gone with its segments; or the next one names its key
            continue
        if outbox.is_one(data):
            yield data


def write(path: str, data: bytes) -> None:
    """A new file, on the medium when this returns. Raises FileExistsError: an export is never overwritten."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def sealed(data: bytes, public: bytes | None) -> bytes:
    """As it goes into a file."""
    return data if public is None else encrypt.encrypt(data, public, encrypt.EXPORT_AAD)
