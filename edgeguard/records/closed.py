"""Closed journals, which wait for the sealer: found, and let go when all or some of what they hold is in segments.

Only a sealer, of which there is one, changes a closed journal.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import NamedTuple, cast

from edgeguard.linux import durable
from edgeguard.records import journal
from edgeguard.records.spool import JOURNALS


class Closed(NamedTuple):
    """One of them, completed by what the next journal knows of it."""

    path: str
    number: int  # which of JOURNALS
    content: journal.Content

    def release(self) -> bool:
        """All of it is in segments: the daemon may write there again. False: it was free already. Raises OSError."""
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            header = journal.parse_header(os.pread(fd, journal.FRAMES_AT, 0))
            if header is None or header.state != journal.CLOSED:
                return False
            free = header._replace(state=journal.FREE)
            try:
                # Read as closed until both copies are free: else a damaged first copy could bring it all back.
                journal.write_header(cast("journal.Files", os), fd, free, backwards=True)
            except OSError:  # of a bad place on the disk: an empty one elsewhere, or its segments were held for ever
                durable.write(self.path, journal.without_frames(free._replace(next=self.content.next)), 0o600)
            return True
        finally:
            os.close(fd)

    def note_sealed(self, following: Iterable[int]) -> None:
        """By stream: records below this number are in segments, and are not sealed from here again. Raises OSError."""
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            sealed = map(max, following, self.content.sealed)
            journal.write_sealed(cast("journal.Files", os), fd, self.content.header.generation, sealed)
        finally:
            os.close(fd)


def found(spool: str) -> tuple[list[Closed], int]:
    """Those that wait, oldest first, and the boot that the newest of all journals knows. Raises OSError."""
    whole: dict[int, journal.Content] = {}
    for number, file in enumerate(JOURNALS):
        with contextlib.suppress(FileNotFoundError):
            content = journal.parse(journal.read(os.path.join(spool, file)))
            if content is not None:
                whole[number] = content
    closed = [item for item in whole.items() if item[1].header.state == journal.CLOSED]
    closed.sort(key=lambda item: item[1].header.generation)
    waiting = [
        Closed(os.path.join(spool, JOURNALS[number]), number, journal.completed(content, whole.values()))
        for number, content in closed
    ]
    return waiting, max([0, *(content.boot for content in whole.values())])
