"""SHA-256 and BLAKE2b without OpenSSL, for the resident daemon, which hashes a few small files an hour.

`hashlib` loads OpenSSL (measured: +3.9 MB RSS); the interpreter's own implementation costs 0.07 MB at a fifth of
the speed. Helpers that read gigabytes import hashlib instead.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast


class Hash(Protocol):
    """What we use of a hash object, whichever implementation it is."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class NewHash(Protocol):
    """Begins with some data, or with none."""

    def __call__(self, data: bytes = b"", /) -> Hash: ...


def _builtin() -> NewHash:
    try:
        module = import_module("_sha2" if sys.version_info >= (3, 12) else "_sha256")
    except ImportError:  # a Python built without its own hashes
        module = import_module("hashlib")
    return cast("NewHash", module.sha256)


new: NewHash = _builtin()


def blake2b(data: bytes | memoryview, size: int, person: bytes = b"") -> bytes:
    """A short digest of a name or a state: keys of findings, marks. `size` in bytes, `person` at most 16 bytes."""
    return cast("bytes", _blake2().blake2b(data, digest_size=size, person=person).digest())


def new_blake2b() -> Any:
    """The interpreter's own BLAKE2b: takes data and keywords."""
    return _blake2().blake2b


@cache
def _blake2() -> Any:
    try:
        return import_module("_blake2")
    except ImportError:
        return import_module("hashlib")


def digest(data: bytes) -> bytes:
    """SHA-256 of some bytes."""
    value = new()
    value.update(data)
    return value.digest()


def of_file(fd: int) -> bytes:
    """SHA-256 of a whole file, from its start, wherever the descriptor stands."""
    value = new()
    offset = 0
    while chunk := os.pread(fd, 1 << 16, offset):
        value.update(chunk)
        offset += len(chunk)
    return value.digest()
