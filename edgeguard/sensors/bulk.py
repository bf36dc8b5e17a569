"""Reading a whole directory whose files are plain, without making an entry of each.

A full look makes an entry of a file, and a learn or a sweep makes bytes of it or compares it with two more. Here what
the kernel tells stays in columns, and what comes of it is what observed.db keeps of the directory: a learn writes it, a
verify compares it. The kernel is asked for the same as by a full look. Whatever is not as its lstat said, or has
something to tell, gives nothing here, and the whole directory is then looked at in full.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import compress

from edgeguard.codec.manifest import ATTRIBUTES, RARE, assembled, extra_of
from edgeguard.linux import statx
from edgeguard.linux.fileflags import STATX_BASIC_STATS
from edgeguard.model import Watch
from edgeguard.sensors.look import CHUNK, NOTHING, CannotLook, Eye
from edgeguard.sensors.observed import STAT

WIDTH = ATTRIBUTES.size


class Bulk:
    """Holds the room for it."""

    def __init__(self, eye: Eye) -> None:
        """`eye`: reads as programs do."""
        self._eye = eye
        self._room = statx.Room()

    def block(
        self,
        fd: int,
        directory: bytes,
        names: list[bytes],
        stats: bytes,
        regular: Sequence[bool],
        watch: Watch,
        settled: int,
        device: int = 0,
    ) -> bytes | None:
        """All in the open directory as a block without categories. None: look at it in full.

        `stats`: their lstat of a moment ago, as in observed.db; `regular`: which of them are regular files; `watch`:
        decides for all of them, and leaves nothing out; `settled`: ns, what changed later may change again unseen;
        `device`: that they all lie on, 0 where what was seen of them is all that they must be."""
        rows = memoryview(stats)
        sizes = rows.cast("Q")[2::3].tolist()
        if max(rows.cast("q")[1::3]) > settled or max(sizes) > self._eye.largest or not self._room.telling(fd):
            return None
        some = [is_file and size <= CHUNK for is_file, size in zip(regular, sizes, strict=True)]
        found = _Found(len(names))
        if not self._files(fd, names, list(compress(range(len(names)), some)), sizes, rows, device, found):
            return None
        for at, is_file in enumerate(some):
            if (not is_file or at in found.held) and not self._other(fd, names[at], at, watch, found):
                return None
        extras = b"".join([found.extras[at] for at in sorted(found.extras)])
        return assembled(directory, names, found.digests, bytes(found.attributes), extras)

    def _other(self, fd: int, name: bytes, at: int, watch: Watch, found: _Found) -> bool:
        """Whatever is no small file, or is held by a flag: a full look. False: there is something to tell of it."""
        try:
            seen = self._eye.look(fd, os.fsdecode(name), watch)
        except (OSError, CannotLook):
            return False
        entry = seen.entry
        extra = extra_of(at, entry)
        found.attributes[WIDTH * at : WIDTH * (at + 1)] = ATTRIBUTES.pack(
            entry.st_mode, 0, bool(extra), entry.uid, entry.gid, entry.size
        )
        found.digests[at] = entry.digest
        if extra:
            found.extras[at] = extra
        return seen.settled and not seen.note

    def _files(
        self,
        fd: int,
        names: list[bytes],
        places: list[int],
        sizes: list[int],
        stats: memoryview,
        device: int,
        found: _Found,
    ) -> bool:
        """Small files, each in as few system calls as its content takes. False: one is not as its lstat said."""
        eye, room, digests = self._eye, self._room, found.digests
        open_file, read, xattrs, close = os.open, os.pread, os.listxattr, os.close
        ask, basic, whole, flags = statx.ask, STATX_BASIC_STATS, statx.AT_EMPTY_PATH, eye.flags
        new_hash = eye.digester.direct()
        for first in range(0, len(places), statx.SLOTS):
            some = places[first : first + statx.SLOTS]
            marked: dict[int, bytes] = {}
            opened = -1
            try:
                for at, slot in zip(some, room.slots, strict=False):
                    opened = open_file(names[at], flags, dir_fd=fd)
                    # What took its place meanwhile and is no file (a FIFO, say) has no offsets: nothing is taken out.
                    content = read(opened, sizes[at], 0)
                    if xattrs(opened):
                        caps, others = eye.attributes(opened)
                        marked[at] = extra_of(at, NOTHING._replace(caps=caps, xattrs=others))
                    failed = ask(opened, b"", whole, basic, slot)
                    close(opened)
                    opened = -1
                    if failed or len(content) != sizes[at]:
                        return False
                    digests[at] = new_hash(content).digest()
            except OSError:
                return False
            finally:
                if opened >= 0:
                    close(opened)
            eye.bytes_read += sum([sizes[at] for at in some])
            # The answers come after the reading: what is as it was before was not changed meanwhile either.
            if not room.as_seen(len(some), _chosen(stats, STAT.size, some)) or not room.on(device, len(some)):
                return False
            found.held.update(compress(some, room.held(len(some))))
            _put(found.attributes, room.attributes(len(some)), some)
            for at, extra in marked.items():
                if extra:
                    found.extras[at] = extra
                    found.attributes[WIDTH * at + RARE] = 1
        return True


class _Found:
    """What comes of a directory, by the position of the names."""

    __slots__ = ("attributes", "digests", "extras", "held")

    def __init__(self, count: int) -> None:
        self.attributes = bytearray(WIDTH * count)
        self.digests = [b""] * count
        self.extras: dict[int, bytes] = {}
        self.held: set[int] = set()


def _chosen(rows: memoryview, size: int, places: list[int]) -> memoryview:
    """The rows at ascending places; all in a piece, where they lie so."""
    first, last = places[0], places[-1]
    if last - first + 1 == len(places):
        return rows[size * first : size * (last + 1)]
    return memoryview(b"".join([rows[size * at : size * (at + 1)] for at in places]))


def _put(rows: bytearray, some: bytes, places: list[int]) -> None:
    first, last = places[0], places[-1]
    if last - first + 1 == len(places):
        rows[WIDTH * first : WIDTH * (last + 1)] = some
        return
    for number, at in enumerate(places):
        rows[WIDTH * at : WIDTH * (at + 1)] = some[WIDTH * number : WIDTH * (number + 1)]
