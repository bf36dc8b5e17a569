"""Paths that something happened to and that wait for their look.

One look, a moment after the first event, serves create, write, chmod and rename. A file that somebody goes on writing
to, or whose look took long, rests before it is looked at again: whoever writes to a large file all the time must not
make us read it all the time.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from edgeguard.linux.timerfd import Timer
from edgeguard.model import NOBODY, Actor, Watch

SETTLE_S = 0.05  # between an event and the look
PENDING_MAX = 512  # paths waiting for their look, 250 bytes each; beyond, events wait in the kernel's queue
RESTING_MAX = 256  # files that are not looked at again yet
REST_S = 1.0  # between two looks at a file that stays open for writing
REST_SHARE = 10  # a look that took long is followed by a rest of so many times its length,
REST_MAX_S = 1.5  # but not longer than this: what happened is to be told within two seconds
LONG_S = 0.005  # what is long


class Waiting(NamedTuple):
    """A path that will be looked at."""

    actor: Actor
    watch: Watch | None
    came: bool = False
    went: bool = False
    alias: bool = False  # another name of a file that something happened to
    writing: bool = False  # somebody writes to it and keeps it open

    def after(self, before: Waiting) -> Waiting:
        """Both in one. The later actor counts, if it is known."""
        return self._replace(
            actor=before.actor if self.actor == NOBODY else self.actor,
            came=self.came or before.came,
            went=self.went or before.went,
            alias=self.alias and before.alias,
            writing=self.writing and before.writing,
        )


class _Rest(NamedTuple):
    until: float  # monotonic
    then: Waiting | None


class Pending:
    """Arms `timer` for the next look that is due."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._waiting: dict[str, Waiting] = {}
        self._resting: dict[str, _Rest] = {}
        self._armed = float("inf")  # monotonic

    def __contains__(self, path: str) -> bool:
        rest = self._resting.get(path)
        return path in self._waiting or (rest is not None and rest.then is not None)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= PENDING_MAX

    @property
    def empty(self) -> bool:
        """Does nothing wait, and nothing that rests want another look?"""
        return not self._waiting and all(rest.then is None for rest in self._resting.values())

    def add(self, path: str, waiting: Waiting) -> None:
        rest = self._resting.get(path) if self._resting else None
        if rest is not None and rest.until > time.monotonic():
            then = waiting.after(rest.then) if rest.then is not None else waiting
            self._resting[path] = rest._replace(then=then)
            return
        before = self._waiting.get(path)
        self._waiting[path] = waiting if before is None else waiting.after(before)

    def take(self) -> tuple[str, Waiting] | None:
        """The one that waits longest. None: none is due."""
        if not self._waiting:
            return None
        path = next(iter(self._waiting))
        return path, self._waiting.pop(path)

    def looked(self, path: str, waiting: Waiting, seconds: float) -> None:
        """It was looked at, and the look took so long."""
        rest = REST_S if waiting.writing else 0.0
        if seconds > LONG_S:
            rest = min(REST_MAX_S, max(rest, REST_SHARE * seconds))
        if not rest:
            return
        if len(self._resting) >= RESTING_MAX:
            self._wake(next(iter(self._resting)))
        self._resting[path] = _Rest(time.monotonic() + rest, None)

    def wake(self) -> None:
        """Whose rest is over waits again, if something happened meanwhile."""
        now = time.monotonic()
        for path in [path for path, rest in self._resting.items() if rest.until <= now]:
            self._wake(path)

    def _wake(self, path: str) -> None:
        then = self._resting.pop(path).then
        if then is not None:
            self.add(path, then)

    def went_off(self) -> bool:
        """Did the timer go off?"""
        if not self._timer.expired():
            return False
        self._armed = float("inf")
        self.wake()
        return True

    def arm(self, settle: float, other: float) -> None:
        """For the next look: `settle` seconds from now where something waits, or `other` (monotonic) before that."""
        now = time.monotonic()
        due = min(other, now + settle) if self._waiting else other
        for rest in self._resting.values():
            if rest.then is not None:
                due = min(due, rest.until)
        if due < self._armed:
            self._timer.arm(max(0.0, due - now))
            self._armed = due
