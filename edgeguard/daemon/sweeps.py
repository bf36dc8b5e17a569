"""Sweeps: looking at every watched file, in a helper; at start, every few hours, on demand, and for what is too large
to be read in the resident daemon.

A sweep that is asked for while another runs is remembered and follows it; nobody's request is dropped. Requests that
nobody waits for are joined: a program that writes a large file every second must not make a queue of sweeps.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from edgeguard.daemon.frames import observation_from_plain, swept_path
from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.times import Times
from edgeguard.errors import DecodeError
from edgeguard.model import Observation, Origin

SWEEP_S = 4 * 3600.0  # seconds; then something is wrong (a dead network file system, a dying card)
TARGETS_MAX = 1000  # paths; beyond, a whole incremental sweep is cheaper

OnDone = Callable[[dict[str, Any]], None]
OnProgress = Callable[[dict[str, Any]], None]


def adopt(state: str) -> None:
    """From now on the next sweep compares with what this one saw, and does not tell it again: call it when what was
    told is kept. A power cut may take this back; then it is told twice."""
    os.rename(swept_path(state), f"{state}/observed.db")


class Request:
    """One wish for a sweep."""

    __slots__ = ("cached", "compare", "full", "on_done", "on_progress", "origin", "targets")

    def __init__(
        self,
        origin: Origin,
        *,
        full: bool = False,
        cached: bool = False,
        compare: bool = False,
        targets: tuple[str, ...] = (),
        on_progress: OnProgress | None = None,
        on_done: OnDone | None = None,
    ) -> None:
        self.origin = origin
        self.full = full  # read every content again
        self.cached = cached  # from the page cache, where that gives what was seen
        self.compare = compare  # judge everything by the manifest, also what did not change since the last sweep
        self.targets = targets  # only these paths
        self.on_progress = on_progress
        self.on_done = on_done

    @property
    def listing(self) -> bool:
        """Is every directory to be listed, whatever its change time says?"""
        return self.full or self.compare or self.on_done is not None or self.origin is not Origin.SWEEP

    def again(self) -> Request:
        """The same wish, for nobody in particular."""
        return Request(self.origin, full=self.full, cached=self.cached, compare=self.compare, targets=self.targets)

    def join(self, other: Request) -> bool:
        """Take another wish on, if both can be served as one."""
        awaited = self.on_done or self.on_progress or other.on_done or other.on_progress
        if awaited or self.origin is not other.origin or bool(self.targets) != bool(other.targets):
            return False
        thorough = [wish for wish in (self, other) if wish.full and not wish.cached]
        self.cached = (self.cached or other.cached) and not thorough
        self.full, self.compare = self.full or other.full, self.compare or other.compare
        self.targets = tuple(dict.fromkeys((*self.targets, *other.targets)))
        if len(self.targets) > TARGETS_MAX:
            self.targets = ()
        return True


class Sweeps:
    """Runs one at a time."""

    def __init__(
        self,
        helpers: Helpers,
        take: Callable[[Observation], None],
        finished: Callable[[Request, dict[str, Any]], None],
        failed: Callable[[str], None],
        judged_by: Callable[[], dict[str, Any]],  # watches and manifest in force, as sweeping.sweep takes them
        times: Times,
    ) -> None:
        self.times = times
        self._helpers = helpers
        self._judged_by = judged_by
        self._take = take
        self._finished = finished
        self._failed = failed
        self._waiting: list[Request] = []
        self.running: Request | None = None

    def ask(self, request: Request) -> None:
        if self.running is not None:
            if not any(waiting.join(request) for waiting in self._waiting):
                self._waiting.append(request)
            return
        self.running = request
        answer: dict[str, Any] = {}
        if len(request.targets) > TARGETS_MAX:
            request.targets = ()
        self._helpers.start(
            "sweep",
            {
                "origin": int(request.origin),
                "full": request.full,
                "cached": request.cached,
                "compare": request.compare,
                "targets": [os.fsencode(path) for path in request.targets],
                "since": self.times.since(listing=request.listing) if not request.targets else None,
                "low": request.on_done is None,  # also a large file that is written all day
                **self._judged_by(),
            },
            lambda message: self._message(request, answer, message),
            lambda error: self._done(request, answer, error),
            timeout_s=SWEEP_S,
        )

    def _message(self, request: Request, answer: dict[str, Any], message: dict[str, Any]) -> None:
        if "observations" in message:
            for plain in message["observations"]:
                try:
                    self._take(observation_from_plain(plain))
                except DecodeError as error:
                    answer["undecodable"] = answer.get("undecodable", 0) + 1
                    self._failed(str(error))
        elif "progress" in message:
            if request.on_progress:
                request.on_progress(message["progress"])
        else:
            answer.update(message)

    def _done(self, request: Request, answer: dict[str, Any], error: str) -> None:
        self.running = None
        if not request.targets:
            self.times.done(answer.get("summary", {}).get("began", 0))  # a helper from before an upgrade says nothing
        if error:
            answer["error"] = error
            self._failed(error)
        self._finished(request, answer)
        if request.on_done:
            request.on_done(answer)
        if self._waiting and self.running is None:
            self.ask(self._waiting.pop(0))
