"""Copies of file contents, named by the digest that the baseline has of them, so that a file can be put back
(`protect`) or what changed in it can be told (`diff`). Written while learning, when something is accepted, and when a
policy asks for more.

A copy is made from the very bytes that are hashed, so name and content cannot disagree.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress

from edgeguard.model import Watch
from edgeguard.sensors.look import CannotLook, Eye, Seen

TEMPORARY = ".copy"


class Vault:
    """A directory of copies with a budget in bytes. A copy that cannot be kept is left out, and the file is looked at
    all the same."""

    def __init__(self, directory: str, budget: int, *, anew: bool = False) -> None:
        """`anew`: what lies there is another baseline's, which gives way when this one is signed (`tidy`)."""
        directory = os.path.abspath(directory)  # while it walks the process stands elsewhere
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._temporary = f"{directory}/{TEMPORARY}"
        there = sum(entry.stat().st_size for entry in os.scandir(directory))
        self._left = min(budget, 3 * budget - there) if anew else budget - there  # of one that never is, too
        self._anew = anew
        self.bytes_written = 0
        self.refused: list[tuple[str, str]] = []  # (path, why)
        self.names: set[str] = set()  # of the copies that were asked for here

    def look(self, eye: Eye, directory: int, name: str, path: str, size: int, watch: Watch) -> Seen:
        """Like `eye.look`, and what is read is kept."""
        if size > self._left:
            self.refused.append((path, "the vault is full"))
            return eye.look(directory, name, watch)
        copy = _Copy(self._temporary)
        eye.tee = copy.write
        try:
            seen = eye.look(directory, name, watch)
            whole = seen.settled and bool(seen.entry.digest) and copy.size == seen.entry.size
            # What is only compared is known by its digest when it is read; a power cut may take it.
            copy.end(durably=whole and watch.protect)
        except (OSError, CannotLook):
            copy.end()
            copy.forget()
            raise
        finally:
            eye.tee = None
        if copy.problem:
            self.refused.append((path, copy.problem))
        if whole and not copy.problem:
            self._place(seen)
        else:
            copy.forget()
        return seen

    def _place(self, seen: Seen) -> None:
        name = seen.entry.digest.hex()
        final = f"{self._directory}/{name}"
        there = os.path.lexists(final)
        if not there or (self._anew and name not in self.names):
            self._left -= seen.entry.size
        self.names.add(name)
        if there:
            os.unlink(self._temporary)
            return
        os.rename(self._temporary, final)
        self.bytes_written += seen.entry.size

    def sync(self) -> None:
        """Make the names durable."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def tidy(directory: str, names: Collection[str]) -> None:
    """Take away what is none of these copies: that of a baseline that was learned before, of which nothing counts any
    more. Else it would hold the room for good."""
    for name in os.listdir(directory):
        if name not in names:
            with suppress(OSError):
                os.unlink(f"{directory}/{name}")


class _Copy:
    """Written as long as the disk takes it: one that is full is no reason not to know the file."""

    def __init__(self, path: str) -> None:
        self.size = 0
        self.problem = ""
        self._path = path
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._failed(error)

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self.size += len(view)
        try:
            while view and not self.problem:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self._failed(error)

    def end(self, *, durably: bool = False) -> None:
        if self._fd < 0:
            return
        try:
            if durably and not self.problem:
                os.fsync(self._fd)
        except OSError as error:
            self._failed(error)
        finally:
            os.close(self._fd)
            self._fd = -1

    def forget(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _failed(self, error: OSError) -> None:
        self.problem = error.strerror or str(error)
