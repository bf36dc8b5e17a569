"""Copies of file contents, named by the digest that the baseline has of them, so that a file can be put back
(`protect`) or what changed in it can be told (`diff`). Written while learning, when something is accepted, and when a
policy asks for more.

A copy is made from the very bytes that are hashed, so name and content cannot disagree.
"""

from __future__ import annotations

import os

from edgeguard.model import Watch
from edgeguard.sensors.look import CannotLook, Eye, Seen

TEMPORARY = ".copy"


class Vault:
    """A directory of copies with a budget in bytes."""

    def __init__(self, directory: str, budget: int) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = directory
        self._temporary = f"{directory}/{TEMPORARY}"
        self._left = budget - sum(entry.stat().st_size for entry in os.scandir(directory))
        self.bytes_written = 0
        self.refused: list[str] = []

    def look(self, eye: Eye, directory: int, name: str, path: str, size: int, watch: Watch) -> Seen:
        """Like `eye.look`, and what is read is kept."""
        if size > self._left:
            self.refused.append(path)
            return eye.look(directory, name, watch)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self._temporary, flags, 0o600), "wb") as copy:
            eye.tee = copy.write
            try:
                seen = eye.look(directory, name, watch)
            except (OSError, CannotLook):
                os.unlink(self._temporary)
                raise
            finally:
                eye.tee = None
            copy.flush()
            whole = seen.settled and bool(seen.entry.digest) and copy.tell() == seen.entry.size
            if whole and watch.protect:
                # What is only compared is known by its digest when it is read; a power cut may take it.
                os.fsync(copy.fileno())
        self._place(seen, whole)
        return seen

    def _place(self, seen: Seen, whole: bool) -> None:
        final = f"{self._directory}/{seen.entry.digest.hex()}"
        if not whole or os.path.lexists(final):
            os.unlink(self._temporary)
            return
        os.rename(self._temporary, final)
        self._left -= seen.entry.size
        self.bytes_written += seen.entry.size

    def sync(self) -> None:
        """Make the names durable."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
