"""Files that are whole after a power cut: the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def alone(directory: str, waiting: bool = True) -> Iterator[bool]:
    """In this block nobody else who asks for this changes the directory, which is made if need be. Waits for whoever is
    at it; without `waiting`, False says that somebody is."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if waiting else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        else:
            free = True
        yield free
    finally:
        os.close(fd)


def write(path: str, data: bytes, mode: int) -> None:
    """Replace a file, for good. Raises OSError; the old one stands then."""
    put(path, data, mode)
    sync(os.path.dirname(path))


def put(path: str, data: bytes, mode: int) -> None:
    """Beside, durable, renamed. The caller makes the directory durable, once for all that he puts there.

    Two for the same name at the same time would write the same file: where that may be, only `alone`.
    """
    directory, _, file = path.rpartition("/")
    temporary = f"{directory}/.{file}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.fchmod(fd, mode)  # whatever the umask is: others may have to read it
        written = 0
        while written < len(data):  # a short write is no error by itself, the next one tells
            written += os.pwrite(fd, data[written:], written)
        os.fsync(fd)
    except OSError:
        os.unlink(temporary)  # it may hold the last blocks of the disk
        raise
    finally:
        os.close(fd)
    os.replace(temporary, path)


def move(source: str, target: str) -> None:
    """For good, also to another file system. Raises OSError."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        import shutil  # rare, and not small

        shutil.copyfile(source, target, follow_symlinks=False)
        if not os.path.islink(target):
            sync(target)
        sync(os.path.dirname(target))
        os.unlink(source)
    sync(os.path.dirname(target))
    sync(os.path.dirname(source))


def sync(path: str) -> None:
    """What was put into a directory, renamed or taken away stays so; what a file holds, too. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
