"""What changed in a file that differs: the columns that tell it, added to an observation before it is judged.

Only for files that the policy marks (`diff`), and only where it becomes a finding. It happens here and not in the
sensor, because a difference is found in several ways (an event, a sweep, the end of an upgrade) and all of them come by
here. The work is bounded: a file's bytes, the lines of a difference, the time of all of them, and how many stand.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edgeguard.codec.digests import held
from edgeguard.model import Columns, Observation, Origin, Status, Watch
from edgeguard.settings import Settings

BURST_S = 0.5  # of comparing at once; then only SHARE of the time
SHARE = 0.02
STANDING_MAX = 512  # findings that hold a difference, 8 KiB of memory each
TOO_MUCH = "(not compared: too much changes at once; `edgeguard why` does it)"
TOO_MANY = f"(not compared: {STANDING_MAX} findings hold their difference already; `edgeguard why` does it)"


class Differing:
    """Asked for every observation; adds columns `diff` and `changes` to those of marked files that differ."""

    def __init__(
        self,
        settings: Settings,
        watch_of: Callable[[str], Watch | None],
        expected: Callable[[str], Columns | None],  # path -> reference columns in force
        deviates: Callable[[Observation], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = settings.paths.root.rstrip("/")
        self._vault = f"{settings.paths.state}/vault"
        self._watch_of = watch_of
        self._expected = expected
        self._deviates = deviates
        self._clock = clock
        self._standing: dict[str, None] = {}
        self._spent = 0.0  # seconds of comparing, forgotten at the rate SHARE
        self._since = clock()

    def told(self, seen: Observation, *, asked: bool = False) -> Observation:
        """The observation with what changed in it. `asked`: a person waits for it, and no bound but the file's own
        holds."""
        if seen.kind != "file" or seen.status is Status.UNREADABLE or seen.origin is Origin.LEARN:
            return seen
        watch = self._watch_of(seen.subject)
        if watch is None or not watch.diff:
            return seen
        from edgeguard.sensors.copies import compared

        reference = self._expected(seen.subject)
        if not compared(watch, seen.subject) or not _content_differs(seen, reference):
            self._standing.pop(seen.subject, None)
            return seen
        if asked:
            return self._compared(seen, reference)
        if not self._deviates(seen):
            return seen
        if seen.subject not in self._standing and len(self._standing) >= STANDING_MAX:
            return _with(seen, (TOO_MANY,), ())
        if not self._in_time():
            return _with(seen, (TOO_MUCH,), ())
        self._standing[seen.subject] = None
        return self._compared(seen, reference)

    def _in_time(self) -> bool:
        now = self._clock()
        self._spent = max(0.0, self._spent - (now - self._since) * SHARE)
        self._since = now
        return self._spent < BURST_S

    def _compared(self, seen: Observation, reference: Columns | None) -> Observation:
        from edgeguard.sensors import copies
        from edgeguard.sensors.changes import compare  # 0.2 MB that a device where nothing differs does not need

        began = self._clock()
        try:
            old = b"" if reference is None else copies.earlier(self._vault, *held(reference))
            new = b""
            if seen.status is Status.PRESENT:
                new = copies.present(self._root + seen.subject, *held(seen.columns))
            told = compare(seen.subject, old, new)
            diff = told.diff if seen.status is Status.PRESENT else ()  # of what is gone, only what that means
            return _with(seen, diff, told.changes)
        except copies.CannotCompare as why:
            return _with(seen, (f"({why})",), ())
        finally:
            self._spent += self._clock() - began


def _content_differs(seen: Observation, reference: Columns | None) -> bool:
    """Is there, or was there, a content that is another now?"""
    if seen.status is Status.ABSENT:
        return reference is not None and bool(held(reference)[1])
    if not held(seen.columns)[1]:
        return False  # a link, a directory, or too large to be read
    return reference is None or (bool(held(reference)[1]) and held(reference) != held(seen.columns))


def _with(seen: Observation, diff: tuple[str, ...], changes: tuple[str, ...]) -> Observation:
    columns = {**seen.columns, **({"diff": diff} if diff else {}), **({"changes": changes} if changes else {})}
    return seen._replace(columns=columns)
