"""Logs: what was in them is still there. They grow, they are rotated, and nothing else may happen to them.

What a log held is known by a few digests (`rotation.Sample`) that move on with every look, so a look costs two short
reads, however long the log is. They are no reference values: the baseline says whose a log is, and this what became of
it. When something was lost, that stays so (`continuity`, `lost`) until a new baseline is learned: the log goes on, and
its next lines do not bring the old ones back.

The memory is kept in a file between two runs (`logbook`), so that what happened meanwhile is found.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from enum import IntEnum
from stat import S_ISREG
from typing import NamedTuple

from edgeguard.sensors import rotation
from edgeguard.sensors.rotation import Sample, Tail

LOGS_MAX = 1024  # logs that are remembered, 600 bytes each; a device has some fifty
GAP_MAX = 4096  # bytes written between the copy and the truncation of a log: some lines
LOST_MAX = 2**63 - 1
RACY_NS = 100_000_000  # two changes within one tick of the file system's clock have one ctime

KEPT = "kept"
ROTATED = "rotated"
GONE = "gone"
SHORTENED = "shortened"
REWRITTEN = "rewritten"
REPLACED = "replaced"
UNKNOWN = "unknown"
WORDS = (KEPT, ROTATED, GONE, SHORTENED, REWRITTEN, REPLACED, UNKNOWN)
"""What may have become of a log. For a log that stands: kept, or the worst that happened to it; for one that is not
there: rotated or gone; unknown where it is not followed."""

Inode = tuple[int, int]


class Loaded(IntEnum):
    """Where a memory is from."""

    SEEN = 0  # this run
    THIS_BOOT = 1  # an earlier run; what happened since happened while we were away
    OTHER_BOOT = 2  # an earlier boot: inodes and devices may be others since


class Known(NamedTuple):
    """A log as it was last looked at."""

    inode: Inode
    sample: Sample
    before: Tail | None = None  # how it ended at the look before that
    broken: str = ""  # what happened to it that was no rotation
    lost: int = 0  # bytes that are not there any more, of all such times
    changed: int = 0  # ctime, ns, of the look; 0: read it again
    loaded: Loaded = Loaded.SEEN


class Fate(NamedTuple):
    """What a look says: the columns of an observation."""

    continuity: str
    lost: int
    away: bool = False  # it happened while nobody looked


class Logs:
    """Remembers logs by their paths. `prefix` is the root of the tree, without a slash at its end."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._known: dict[str, Known] = {}
        self.news = False  # something else than growth since this was last kept
        self.grown = False
        self.full = False  # there are more logs than are remembered

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, path: str) -> bool:
        return path in self._known

    def paths(self) -> tuple[str, ...]:
        return tuple(self._known)

    def remember(self, path: str, known: Known) -> None:
        """What was kept between two runs."""
        if len(self._known) < LOGS_MAX:
            self._known[path] = known

    def forget_volatile(self, paths: Iterable[str]) -> None:
        """These lie in memory: those of an earlier boot are not missed."""
        for path in paths:
            if self._known[path].loaded is Loaded.OTHER_BOOT:
                del self._known[path]

    def items(self) -> tuple[tuple[str, Known], ...]:
        return tuple(self._known.items())

    def settle(self) -> None:
        """Another baseline was learned: what was lost before is no news any more."""
        for path, known in self._known.items():
            if known.broken:
                self._known[path] = known._replace(broken="", lost=0)
                self.news = True

    def absent(self, path: str) -> Fate:
        """The log is not there."""
        known = self._known.get(path)
        if known is None or rotation.is_rotated(path):
            self._forget(path)
            return Fate(ROTATED if known is not None or rotation.is_rotated(path) else UNKNOWN, 0)
        if not known.sample.tail.size or self._rotated(path, known):
            self._forget(path)
            return Fate(ROTATED, 0)
        return Fate(GONE, known.lost + known.sample.tail.size, known.loaded is not Loaded.SEEN)

    def look(self, path: str) -> Fate:
        """The log as it is now. Raises OSError."""
        known = self._known.get(path)
        if known is None and (path.endswith(rotation.PACKED) or not self._room()):
            return Fate(UNKNOWN, 0)
        fd = rotation.opened(self._prefix + path)
        try:
            at = os.fstat(fd)
            if not S_ISREG(at.st_mode):
                self._forget(path)
                return Fate(UNKNOWN, 0)
            if known is not None and known.changed == at.st_ctime_ns and known.inode == (at.st_dev, at.st_ino):
                return Fate(known.broken or KEPT, known.lost)
            new = self._judged(path, fd, at, known)
        finally:
            os.close(fd)
        if known is None or new.broken != known.broken or new.inode != known.inode or new.lost != known.lost:
            self.news = True
        else:
            self.grown = True
        self._known[path] = new
        away = known is not None and known.loaded is not Loaded.SEEN
        return Fate(new.broken or KEPT, new.lost, away)

    def _judged(self, path: str, fd: int, at: os.stat_result, known: Known | None) -> Known:
        size, inode = at.st_size, (at.st_dev, at.st_ino)
        sample = rotation.take(fd, size)
        # What is written while we read is read again: a look may only be skipped if nothing happened since.
        old = time.time_ns() - at.st_ctime_ns > RACY_NS
        changed = at.st_ctime_ns if old and os.fstat(fd).st_ctime_ns == at.st_ctime_ns else 0
        if known is None:
            return Known(inode, sample, changed=changed)
        went_on = size >= known.sample.tail.size and rotation.holds(fd, known.sample, known.sample.tail)
        if went_on and (inode == known.inode or known.loaded is Loaded.OTHER_BOOT or not known.sample.tail.size):
            before = known.sample.tail if known.sample.tail.size < size else known.before
            return known._replace(inode=inode, sample=sample, before=before, changed=changed, loaded=Loaded.SEEN)
        new = Known(inode, sample, None, known.broken, known.lost, changed)
        if not known.sample.tail.size or (rotation.is_rotated(path) and inode != known.inode):
            return new  # nothing was in it; or the next one was put aside under this name
        if self._rotated(path, known):
            return new
        lost = known.sample.tail.size
        if inode != known.inode:
            word = REPLACED
        elif size < lost and rotation.begins_so(fd, known.sample) and size >= known.sample.head_length:
            word, lost = SHORTENED, lost - size
        else:
            word = SHORTENED if size < lost else REWRITTEN
        return new._replace(broken=word, lost=min(LOST_MAX, known.lost + lost))

    def _rotated(self, path: str, known: Known) -> bool:
        directory, _, name = (self._prefix + path).rpartition("/")
        tail, before = known.sample.tail, known.before
        tails = (tail, before) if before is not None and tail.size - before.size <= GAP_MAX else (tail,)
        return bool(rotation.successor(directory, name, known.inode, known.sample, tails))

    def _room(self) -> bool:
        if len(self._known) < LOGS_MAX:
            return True
        self.full = True
        return False

    def _forget(self, path: str) -> None:
        if self._known.pop(path, None) is not None:
            self.news = True
