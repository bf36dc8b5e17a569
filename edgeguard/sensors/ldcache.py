"""Kind `library_dir`: where the dynamic loader looks for libraries, by its cache. Part of the sensor `host`.

/etc/ld.so.cache is made by ldconfig out of the loader's own directories, those that /etc/ld.so.conf names, and those on
ldconfig's command line. What is in it goes before the system's libraries for every program, so a directory of the last
kind is what nobody was told of.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Mapping

from edgeguard.errors import DecodeError
from edgeguard.model import Columns, Observation, Origin, Status
from edgeguard.sensors import Column, reading
from edgeguard.sensors.snapshot import WHOLE_KIND

CACHE, CONFIG = "/etc/ld.so.cache", "/etc/ld.so.conf"
TRIGGERS = (CACHE,)
FILE_MAX = 64 * 1024  # bytes of one file of the configuration; Debian's have a line or two
FILES_MAX = 256  # of them in all
DEPTH_MAX = 10  # includes within includes
# A package that is purged takes its line of the configuration first, and dpkg runs ldconfig at the very end.
GRACE_MS = 600_000
NO_FILE = (errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG)  # the loader cannot read it either

KIND: Mapping[str, Column] = {
    "origin": Column("str", "who names it: loader (one of its own), configuration (ld.so.conf), or neither"),
    "library": Column("str", "of a directory that neither names: the first of its libraries by name; else empty"),
}


class Directories:
    """Looks at the cache. Remembers which of its directories the configuration named, as long as it is the same."""

    def __init__(self) -> None:
        self._stamp: tuple[int, ...] = ()
        self._named: dict[str, int] = {}  # directory -> when the configuration was last seen to name it, ms

    def observe(self, root: str, now: int) -> Iterator[Observation]:
        """Every directory in the cache; nothing where there is none."""
        from edgeguard.sensors import parse_ldcache  # where there is no cache, nothing is loaded

        path = reading.under(root, CACHE)
        try:
            self._same(os.stat(path))
            found = parse_ldcache.directories(reading.read(path, parse_ldcache.SIZE_MAX), sys.byteorder)
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, DecodeError) as error:
            ignored = isinstance(error, DecodeError) and not isinstance(error, parse_ldcache.TooMuch)
            yield from _unread(error, ignored or getattr(error, "errno", 0) in NO_FILE, now)
            return
        configured = frozenset(_configured(root, CONFIG, 0, [FILES_MAX]))
        for directory, library in found.items():
            origin = parse_ldcache.origin(directory, configured)
            if origin == "configuration":
                self._named[directory] = now
            elif origin == "neither" and 0 <= now - self._named.get(directory, -GRACE_MS) < GRACE_MS:
                origin = "configuration"
            columns: Columns = {"origin": origin, "library": library if origin == "neither" else ""}
            yield Observation("library_dir", directory, columns, now, Status.PRESENT, Origin.SWEEP)

    def _same(self, found: os.stat_result) -> None:
        stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if stamp != self._stamp:
            self._stamp = stamp
            self._named.clear()


def _unread(error: OSError | DecodeError, ignored: bool, now: int) -> Iterator[Observation]:
    """Of no directory can be said that it is gone. What the loader reads and we could not is told besides."""
    note = reading.why(error) if isinstance(error, OSError) else str(error)
    if ignored:
        note = f"{CACHE} is broken, and the loader ignores it: {note}"
    for subject in (WHOLE_KIND,) if ignored else (WHOLE_KIND, CACHE):
        yield Observation("library_dir", subject, {}, now, Status.UNREADABLE, Origin.SWEEP, note=note)


def _configured(root: str, path: str, depth: int, budget: list[int]) -> Iterator[str]:
    """Every directory that the configuration names. What cannot be read names none, for ldconfig neither."""
    from edgeguard.sensors import parse_ldcache

    budget[0] -= 1
    if budget[0] < 0 or depth > DEPTH_MAX:
        return
    try:
        data = reading.read(reading.under(root, path), FILE_MAX)
    except OSError:
        return
    for include, said in parse_ldcache.lines(data):
        if not include:
            yield said
            continue
        pattern = said if said.startswith("/") else f"{path.rpartition('/')[0]}/{said}"
        for included in reading.matching(root, pattern, FILES_MAX):
            yield from _configured(root, included, depth + 1, budget)
