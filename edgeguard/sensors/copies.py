"""Which files keep a copy of what they were, and both contents of one that differs.

Copies lie in the vault, named by the digest that the baseline has of them; a reference value names the one that it was
made from. So an earlier content is found by what the baseline expects, and where nothing like that was kept (a package
brought the file, the baseline came from elsewhere, the vault was full) there is none, and that is said.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from stat import S_ISREG

from edgeguard.codec.digests import Algorithm, slim
from edgeguard.model import Watch
from edgeguard.sensors.watching import glob_pattern

FILE_MAX = 64 * 1024  # bytes of a file whose difference is told; settings that people write are far smaller
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class CannotCompare(Exception):
    """The message says why, in plain words."""


def compared(watch: Watch, path: str) -> bool:
    """Does the policy want to know what changed in this file? `nodiff` wins, and keys never."""
    if not watch.diff or not watch.content or watch.only or watch.category == "key":
        return False
    return _any(watch.diff, path) and not _any(watch.nodiff, path)


def comparable(watch: Watch, path: str, size: int) -> bool:
    """Is it a file whose difference will be told, and not too large for that?"""
    return size <= FILE_MAX and compared(watch, path)


def kept(watch: Watch, path: str, size: int) -> bool:
    """Is a copy of the content to be kept while learning?"""
    return watch.content and (watch.protect or comparable(watch, path, size))


def earlier(vault: str, algorithm: Algorithm, digest: bytes) -> bytes:
    """The content with this digest. Raises CannotCompare."""
    try:
        data = _read(f"{vault}/{digest.hex()}")
    except OSError:
        raise CannotCompare("no earlier copy to compare with") from None
    if slim(algorithm).digest(data) != digest:
        raise CannotCompare("the earlier copy is damaged")
    return data


def present(path: str, algorithm: Algorithm, digest: bytes) -> bytes:
    """What is at `path` now, if it is still what a look found there. Raises CannotCompare."""
    try:
        data = _read(path)
    except OSError as error:
        raise CannotCompare(f"it cannot be read: {error.strerror}") from error
    if slim(algorithm).digest(data) != digest:
        raise CannotCompare("it has changed since, or what is read is not what lies on the disk")
    return data


def _read(path: str) -> bytes:
    fd = os.open(path, _OPEN)
    with open(fd, "rb", buffering=0) as file:
        if not S_ISREG(os.fstat(fd).st_mode):
            raise CannotCompare("it is not a regular file")
        data = bytearray()
        while len(data) <= FILE_MAX and (chunk := file.read(FILE_MAX + 1 - len(data))):
            data += chunk
    if len(data) > FILE_MAX:
        raise CannotCompare(f"larger than {FILE_MAX >> 10} KiB")
    return bytes(data)


def _any(globs: tuple[str, ...], path: str) -> bool:
    return any(pattern.match(path) for pattern in _compiled(globs))


@lru_cache(maxsize=64)  # a policy has a handful of such lists
def _compiled(globs: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(glob_pattern(glob) for glob in globs)
