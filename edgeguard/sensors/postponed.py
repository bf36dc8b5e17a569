"""What is too much for a resident daemon: large files and large new trees that a helper is to look at.

A path is asked for at once, and after the answer not again for ten times as long as the answer took: whoever touches a
large file all the time must not keep helpers reading it all the time, and is told of all the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from edgeguard.model import NOBODY, Actor

SHARE = 10  # an answer is followed by a pause of so many times what it took,
PAUSE_MAX_S = 60.0  # but not longer than this, which is also how long an answer is waited for
PATHS_MAX = 1024  # paths that wait, that pause, and actors that are kept; 200 bytes each


class _Pause(NamedTuple):
    asked: float  # monotonic; 0: it was answered
    until: float


class Postponed:
    """Paths on their way to a helper, with who touched them last."""

    def __init__(self) -> None:
        self._wanted: dict[str, float] = {}  # when they are to be asked for, monotonic
        self._pauses: dict[str, _Pause] = {}
        self._actors: dict[str, Actor] = {}

    def leave(self, path: str, actor: Actor) -> None:
        """Somebody else is to look at it."""
        if actor != NOBODY:
            _make_room(self._actors)
            self._actors[path] = actor
        pause = self._pauses.get(path)
        if len(self._wanted) >= PATHS_MAX:  # more than pauses are worth it: whole sweeps serve so many
            self._wanted = dict.fromkeys(self._wanted, 0.0)
        self._wanted.setdefault(path, pause.until if pause is not None else 0.0)

    def ask(self) -> Iterator[str]:
        """Those whose time has come."""
        if not self._wanted:
            return
        now = time.monotonic()
        for path in [path for path, at in self._wanted.items() if at <= now]:
            del self._wanted[path]
            self._pauses.pop(path, None)  # in the order in which they were asked for
            _make_room(self._pauses)
            self._pauses[path] = _Pause(now, now + PAUSE_MAX_S)
            yield path

    def answered(self, path: str) -> Actor:
        """A helper looked at it. Who had touched it, if it was asked for."""
        pause = self._pauses.get(path)
        if pause is not None and pause.asked:
            now = time.monotonic()
            until = now + min(PAUSE_MAX_S, SHARE * (now - pause.asked))
            self._pauses[path] = _Pause(0.0, until)
            if path in self._wanted:
                self._wanted[path] = until
        return self._actors.pop(path, NOBODY)

    @property
    def empty(self) -> bool:
        return not self._wanted

    @property
    def due(self) -> float:
        """When `ask` has something to say, monotonic."""
        return min(self._wanted.values(), default=float("inf"))


def _make_room(kept: dict[str, Actor] | dict[str, _Pause]) -> None:
    if len(kept) >= PATHS_MAX:
        del kept[next(iter(kept))]
