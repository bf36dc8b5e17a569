"""May a sweep believe that a directory with the change time that it had holds the names that it held?

It may, as long as nobody has set the clock or changed the mounts since the last sweep began: each name that came or
went since then gave its directory a time from after that. Root could set the clock to the old time and make a name
then, and another file system may have any times. What else it takes is in `sensors.timely`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edgeguard.errors import Unavailable
from edgeguard.linux import mounts, timerfd

LISTED_S = 24 * 3600.0 + 600  # seconds; within so many all directories are listed again. A day, and how late timers are


class Disturbances:
    """What nobody tells us, but the kernel when it is asked. Raises Unavailable, OSError where it cannot."""

    def __init__(self) -> None:
        self._mounts = mounts.Changes()
        try:
            self._clock = timerfd.ClockSteps()
        except BaseException:
            self._mounts.close()
            raise

    def any(self) -> bool:
        """Did somebody set the clock, mount, move or unmount something since the last call?"""
        clock, table = self._clock.was_set(), self._mounts.changed()  # both, or the other would be told next time
        return clock or table


class Times:
    """What one whole sweep leaves to the next."""

    def __init__(
        self,
        sweep_s: float,
        disturbances: Callable[[], Disturbances] = Disturbances,
        boot_s: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        """`sweep_s`: seconds from one sweep to the next."""
        self._sweep_s = sweep_s
        self._open = disturbances
        self._disturbances: Disturbances | None = None
        self._boot_s = boot_s
        self._began = 0  # ns by the wall clock: when the last sweep did, if that may be believed
        self._listed = 0.0  # when the last one began that believed nothing
        self._next = 0.0  # the same, of the one that runs

    def since(self, *, listing: bool) -> int | None:
        """What the helper is told as a whole sweep begins: older change times than this (ns) may be believed. None:
        none, as with `listing`."""
        now = self._boot_s()
        undisturbed = self._undisturbed()
        if listing or not undisturbed or not self._began or now - self._listed + self._sweep_s > LISTED_S:
            self._next = now
            return None
        self._next = self._listed
        return self._began

    def done(self, began: int) -> None:
        """A whole sweep ended, and began then. 0: it failed, or something in it leaves nothing to believe in."""
        self._began, self._listed = began, self._next

    def forget(self) -> None:
        """What the last one saw is not what the next compares with."""
        self._began = 0

    def _undisturbed(self) -> bool:
        """Since the last call."""
        try:
            if self._disturbances is None:
                self._disturbances = self._open()
                return False
            return not self._disturbances.any()
        except (Unavailable, OSError):
            return False  # not to be known here: all is listed, each time
