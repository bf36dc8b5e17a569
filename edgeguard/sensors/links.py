"""Hard links: the kernel names the link that was used, and a watched file may be reached by a name that nobody watches.

Which watched names such a file has is only known to a search through everything, so a helper is asked, once for each
inode, and the answer is kept. A backup that makes links by the thousand must not keep helpers running all the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from stat import S_ISREG

from edgeguard.model import NOBODY, Actor

INODES_MAX = 1024  # inodes with several names that something happened to, 200 bytes each
ASK_S = 1.0  # between two requests to a helper; the first one goes out at once
ASK_MAX_S = 60.0  # the same where one follows the other
WANTED_MAX = 256  # inodes in one request; those beyond are asked for when they are touched again

Inode = tuple[int, int]  # device, number


class Links:
    """`root` is the tree's place in the file system."""

    def __init__(self, root: str) -> None:
        self._prefix = root.rstrip("/")
        self._names: dict[Inode, dict[str, None]] = {}  # watched names of inodes that were searched for
        self._actors: dict[Inode, Actor] = {}  # who touched them last
        self._wanted: dict[str, None] = {}  # names to be searched from
        self._next = 0.0  # monotonic
        self._pause = ASK_S

    def touched(self, path: str, actor: Actor) -> Iterable[str]:
        """Something happened to a file under a name that is not watched: the watched names that are known of it."""
        inode = self._inode(path)
        if inode is None:
            return ()
        names = self._names.get(inode)
        if names is None and len(self._wanted) < WANTED_MAX:
            if len(self._names) >= INODES_MAX:
                oldest = next(iter(self._names))
                del self._names[oldest]
                self._actors.pop(oldest, None)
            self._names[inode] = names = {}
            self._wanted[path] = None
        if names is None:  # the next time that something happens to it
            return ()
        if actor != NOBODY:
            self._actors[inode] = actor
        return tuple(names)

    def found(self, path: str) -> Actor:
        """A watched name of a file was looked at: is it one that was searched for, and who touched it? A file may get
        watched names after the search."""
        inode = self._inode(path) if self._names else None
        if inode not in self._names or inode is None:
            return NOBODY
        self._names[inode][path] = None
        return self._actors.get(inode, NOBODY)

    def ask(self) -> Iterator[str]:
        """The names that a helper is to search from, if it is time to ask."""
        now = time.monotonic()
        if not self._wanted or now < self._next:
            return
        busy = now < self._next + self._pause
        self._pause = min(ASK_MAX_S, 2 * self._pause) if busy else ASK_S
        self._next = now + self._pause
        wanted, self._wanted = self._wanted, {}
        yield from wanted

    @property
    def due(self) -> float:
        """When `ask` has something to say, monotonic."""
        return self._next if self._wanted else float("inf")

    def forget(self) -> None:
        """Something else is watched now."""
        self._names.clear()
        self._actors.clear()

    def _inode(self, path: str) -> Inode | None:
        """None: gone, no regular file, or it has no other name."""
        try:
            at = os.lstat(self._prefix + path)
        except OSError:
            return None
        return (at.st_dev, at.st_ino) if S_ISREG(at.st_mode) and at.st_nlink > 1 else None
