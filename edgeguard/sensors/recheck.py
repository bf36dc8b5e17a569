"""Reading a whole directory again that seems to be as it was seen, and saying whether it is.

A full look makes an entry of each file and compares it with two more, one of observed.db and one of the manifest. Here
nothing is taken apart: what is seen is compared with the bytes of both, column by column. It asks the kernel as often
and for the same as a full look, and only says yes or no: after a no, all of the directory is looked at in full, which
finds and tells what differs.
"""

from __future__ import annotations

import os

from edgeguard.codec.manifest import ATTRIBUTES, HEAD, Layout, Packed, extra_of
from edgeguard.linux import statx
from edgeguard.linux.fileflags import STATX_BASIC_STATS
from edgeguard.model import Watch
from edgeguard.sensors.look import CHUNK, CannotLook, Eye
from edgeguard.sensors.observed import STAT, Record

REGULAR = 0o10  # a file without extras in the first word of its attributes: mode, no category, nothing rare; >> 12


class Recheck:
    """Holds the room for it."""

    def __init__(self, eye: Eye) -> None:
        """`eye`: reads as programs do."""
        self._eye = eye
        self._room = statx.Room()

    def same(
        self, fd: int, names: list[bytes], record: Record, reference: Packed | None, watch: Watch, settled: int
    ) -> bool:
        """Is all in the open directory, whose names are those of `record`, as that and the manifest have it? `watch`:
        decides for all of them, and leaves nothing out; `settled`: ns, what changed later may change again unseen."""
        block = record.block
        if not block or (reference is not None and not reference.says(block)):
            return False
        layout = Layout.of(block[: HEAD.size])
        if (
            layout.entries != len(names)
            or layout.end != len(block)
            or block[layout.names : layout.marks] != record.joined
        ):
            return False  # a name that is no subject
        stats = memoryview(record.stats)
        words = stats.cast("Q")
        sizes = words[2::3].tolist()
        if max(stats.cast("q")[1::3]) > settled or not self._room.telling(fd):
            return False
        attributes = memoryview(block)[layout.attributes : layout.digests]
        marks = block[layout.marks : layout.attributes]
        quick = [
            at
            for at, (mode, size) in enumerate(zip(attributes.cast("I")[0::5].tolist(), sizes, strict=True))
            if size <= CHUNK and mode >> 12 == REGULAR
        ]
        digests = [b""] * len(names)
        extras = b""
        if len(quick) < len(names):
            told = self._others(fd, names, sorted(set(range(len(names))).difference(quick)), watch, attributes, digests)
            if told is None:
                return False
            extras = told
        return (
            extras == block[layout.extras : layout.end]
            and self._files(fd, names, quick, sizes, stats, attributes, digests)
            and bytes(map(bool, digests)) == marks
            and b"".join(digests) == block[layout.digests : layout.extras]
        )

    def _others(
        self,
        fd: int,
        names: list[bytes],
        places: list[int],
        watch: Watch,
        attributes: memoryview,
        digests: list[bytes],
    ) -> bytes | None:
        """Whatever is no small file without extended attributes: a full look at each; their extras. None: differs."""
        extras = b""
        for at in places:
            try:
                seen = self._eye.look(fd, os.fsdecode(names[at]), watch)
            except (OSError, CannotLook):
                return None
            entry = seen.entry
            extra = extra_of(at, entry)
            told = ATTRIBUTES.pack(entry.st_mode, 0, bool(extra), entry.uid, entry.gid, entry.size)
            if seen.note or not seen.settled or told != attributes[ATTRIBUTES.size * at : ATTRIBUTES.size * (at + 1)]:
                return None
            digests[at] = entry.digest
            extras += extra
        return extras

    def _files(
        self,
        fd: int,
        names: list[bytes],
        places: list[int],
        sizes: list[int],
        stats: memoryview,
        attributes: memoryview,
        digests: list[bytes],
    ) -> bool:
        """Small files without extended attributes, each in as few system calls as its content takes; their digests."""
        eye, room = self._eye, self._room
        open_file, read, xattrs, close = os.open, os.pread, os.listxattr, os.close
        ask, basic, whole, flags = statx.ask, STATX_BASIC_STATS, statx.AT_EMPTY_PATH, eye.flags
        new_hash = eye.digester.direct()
        for first in range(0, len(places), statx.SLOTS):
            some = places[first : first + statx.SLOTS]
            fd_of = -1
            try:
                for at, slot in zip(some, room.slots, strict=False):
                    fd_of = open_file(names[at], flags, dir_fd=fd)
                    # What took its place meanwhile and is no file (a FIFO, say) has no offsets: nothing is taken out.
                    content = read(fd_of, sizes[at], 0)
                    bare = not xattrs(fd_of) or eye.bare(fd_of)
                    failed = ask(fd_of, b"", whole, basic, slot)
                    close(fd_of)
                    fd_of = -1
                    if failed or not bare or len(content) != sizes[at]:
                        return False
                    digests[at] = new_hash(content).digest()
            except OSError:
                return False
            finally:
                if fd_of >= 0:
                    close(fd_of)
            eye.bytes_read += sum([sizes[at] for at in some])
            # The answers come after the reading: what is as it was seen then was not changed meanwhile either.
            if not room.as_seen(len(some), _chosen(stats, STAT.size, some), _chosen(attributes, ATTRIBUTES.size, some)):
                return False
        return True


def _chosen(rows: memoryview, size: int, places: list[int]) -> memoryview:
    """The rows at ascending places; all in a piece, where they lie so."""
    first, last = places[0], places[-1]
    if last - first + 1 == len(places):
        return rows[size * first : size * (last + 1)]
    return memoryview(b"".join([rows[size * at : size * (at + 1)] for at in places]))
