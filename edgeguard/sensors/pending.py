"""Paths that something happened to and that wait for their look.

One look, a moment after the first event, serves create, write, chmod and rename. A file that somebody writes to and
keeps open is looked at a second later, so that a rewrite that takes its time is not seen half done. A file that
somebody goes on writing to, or whose look took long, rests before it is looked at again: whoever writes to a large
file all the time must not make us read it all the time.
"""

from __future__ import annotations

import time
from heapq import heappop, heappush
from typing import NamedTuple

from edgeguard.linux.timerfd import Timer
from edgeguard.model import NOBODY, Actor, Watch

SETTLE_S = 0.05  # between an event and the look
PENDING_MAX = 512  # paths waiting for their look, 250 bytes each; beyond, events wait in the kernel's queue
RESTING_MAX = 4096  # files that are not looked at again yet, 400 bytes each; as many more share one rest
REST_S = 1.0  # before a look at a file that stays open for writing, and between two
REST_TOLD_S = 60.0  # the longest rest of one that was told already and is still written to: each is twice the last
KEPT_S = 10.0  # how long its rest is remembered when it is over
REST_SHARE = 10  # a look that took long is followed by a rest of so many times its length,
REST_MAX_S = 1.5  # but not longer than this: what happened is to be told within two seconds
LONG_S = 0.005  # what is long

NEVER = float("inf")


class Waiting(NamedTuple):
    """A path that will be looked at."""

    actor: Actor
    watch: Watch | None
    came: bool = False
    went: bool = False
    alias: bool = False  # another name of a file that something happened to
    writing: bool = False  # somebody writes to it and keeps it open
    rested: float = 0.0  # seconds of rest before this look

    def after(self, before: Waiting | None) -> Waiting:
        """Both in one. The later actor counts, if it is known."""
        if before is None:
            return self
        return self._replace(
            actor=before.actor if self.actor == NOBODY else self.actor,
            came=self.came or before.came,
            went=self.went or before.went,
            alias=self.alias and before.alias,
            writing=self.writing and before.writing,
            rested=max(self.rested, before.rested),
        )


class _Rest:
    __slots__ = ("closed", "length", "then", "until")

    def __init__(self, until: float, closed: float, length: float, then: Waiting | None) -> None:
        self.until = until  # monotonic
        self.closed = closed  # the same if the file is closed meanwhile, or something else happens to it
        self.length = length  # seconds
        self.then = then  # what happened since


class Pending:
    """Arms `timer` for the next look that is due."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._waiting: dict[str, Waiting] = {}
        self._resting: dict[str, _Rest] = {}
        self._ends: list[tuple[float, str]] = []  # heap: when rests end after which there is a look; some hold no more
        self._crowd: dict[str, Waiting] = {}  # written to, without room for a rest of their own
        self._crowd_until = 0.0
        self._swept = 0.0  # when rests that are over were last forgotten
        self._armed = NEVER  # monotonic

    def __contains__(self, path: str) -> bool:
        rest = self._resting.get(path)
        return path in self._waiting or path in self._crowd or (rest is not None and rest.then is not None)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= PENDING_MAX

    @property
    def empty(self) -> bool:
        """Does nothing wait, and nothing that rests want another look?"""
        return not self._waiting and not self._crowd and self._next_end() == NEVER

    def add(self, path: str, waiting: Waiting) -> None:
        now = time.monotonic()
        rest = self._resting.get(path)
        if rest is not None:
            if rest.then is None and rest.until <= now:  # over, and nothing had happened
                del self._resting[path]
                waiting = waiting._replace(rested=rest.length if now < rest.until + KEPT_S else 0.0)
            else:
                self._while_resting(path, rest, waiting, now)
                return
        if path in self._waiting or not waiting.writing:
            self._waits(path, waiting.after(self._crowd.pop(path, None)))
        elif self._room(now):
            self._resting[path] = _Rest(now + REST_S, now, waiting.rested, waiting)
            heappush(self._ends, (now + REST_S, path))
        elif path in self._crowd or len(self._crowd) < RESTING_MAX:
            if not self._crowd:
                self._crowd_until = now + REST_S
            self._crowd[path] = waiting.after(self._crowd.get(path))
        else:
            self._waits(path, waiting)

    def _waits(self, path: str, waiting: Waiting) -> None:
        self._waiting[path] = waiting.after(self._waiting.get(path))

    def _while_resting(self, path: str, rest: _Rest, waiting: Waiting, now: float) -> None:
        news = rest.then is None
        rest.then = waiting.after(rest.then)
        if not waiting.writing and rest.closed < rest.until:
            rest.until, news = rest.closed, True
        if rest.until <= now:
            self._wake(path, rest)
        elif news:
            heappush(self._ends, (rest.until, path))

    def take(self) -> tuple[str, Waiting] | None:
        """The one that waits longest. None: none is due."""
        if not self._waiting:
            return None
        path = next(iter(self._waiting))
        return path, self._waiting.pop(path)

    def looked(self, path: str, waiting: Waiting, seconds: float, *, told: bool = False) -> None:
        """It was looked at, and the look took so long. `told`: it is known to differ."""
        long = min(REST_MAX_S, REST_SHARE * seconds) if seconds > LONG_S else 0.0
        length = 0.0
        if waiting.writing:
            length = min(REST_TOLD_S, max(REST_S, 2 * waiting.rested)) if told else REST_S
        now = time.monotonic()
        if (long or length) and path not in self._resting and self._room(now):
            self._resting[path] = _Rest(now + max(long, length), now + long, length, None)

    def _room(self, now: float) -> bool:
        """For one more rest. Those that are over are forgotten now and then."""
        if len(self._resting) >= RESTING_MAX and now >= self._swept + REST_S:
            self._sweep(now, 0.0)
        return len(self._resting) < RESTING_MAX

    def _sweep(self, now: float, kept: float) -> None:
        self._swept = now
        over = [path for path, rest in self._resting.items() if rest.then is None and rest.until + kept <= now]
        for path in over:
            del self._resting[path]

    def wake(self) -> None:
        """Whose rest is over waits again, if something happened meanwhile."""
        now = time.monotonic()
        while self._next_end() <= now:
            path = heappop(self._ends)[1]
            self._wake(path, self._resting[path])
        if self._crowd and self._crowd_until <= now:
            crowd, self._crowd = self._crowd, {}
            for path, waiting in crowd.items():
                self._waits(path, waiting)
        if now >= self._swept + KEPT_S:
            self._sweep(now, KEPT_S)

    def _wake(self, path: str, rest: _Rest) -> None:
        del self._resting[path]
        if rest.then is not None:
            self._waits(path, rest.then._replace(rested=rest.length))

    def _next_end(self) -> float:
        """Of the first rest after which there is a look."""
        while self._ends:
            until, path = self._ends[0]
            rest = self._resting.get(path)
            if rest is not None and rest.then is not None and rest.until == until:
                return until
            heappop(self._ends)
        return NEVER

    def went_off(self) -> bool:
        """Did the timer go off?"""
        if not self._timer.expired():
            return False
        self._armed = NEVER
        self.wake()
        return True

    def arm(self, settle: float, other: float) -> None:
        """For the next look: `settle` seconds from now where something waits, or `other` (monotonic) before that."""
        now = time.monotonic()
        due = min(other, self._next_end())
        if self._waiting:
            due = min(due, now + settle)
        if self._crowd:
            due = min(due, self._crowd_until)
        if due < self._armed:
            self._timer.arm(max(0.0, due - now))
            self._armed = due
