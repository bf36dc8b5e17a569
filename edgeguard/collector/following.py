"""Records in the order of their rows, each once, as they come in: `events -f`.

A row's number is taken when it is written, and others see it when its transaction ends. So with several writers a row
may appear behind one with a higher number that was there first; whoever only remembers the highest passes it over. A
tail goes as far as nothing can appear any more: it looks which row is the newest, and then who is writing. Whoever has
a lower number and is not done took it before and is among those; when they have ended, all up to that row is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from edgeguard.collector import events
from edgeguard.collector.database import Database

TABLE = "records"
HELD_S, AGAIN_S = 10.0, 60.0  # a transaction of ours takes fractions of a second: what is longer is said, and again
NAMED_MAX = 5  # writers in one line


class Tail:
    """How far the records are settled. `clock` gives seconds that only grow."""

    def __init__(self, db: Database, clock: Callable[[], float]) -> None:
        self._db = db
        self._clock = clock
        self._through = 0
        self._newest = 0  # once nobody of `_writers` writes any more, all up to this row is there
        self._writers: dict[str, str] = {}
        self._since = self._say_at = 0.0

    @property
    def waits(self) -> bool:
        """Is there more, and somebody who may add to what is before it?"""
        return bool(self._writers)

    def through(self) -> int:
        """The row up to which all is there that ever will be; it never goes back. To be read after this call."""
        if self._writers:
            writing = self._db.writing(TABLE)
            self._writers = {name: who for name, who in self._writers.items() if name in writing}
            if self._writers:
                return self._through
            self._through = self._newest
        newest = events.last_row(self._db)
        if newest > self._through:
            self._writers = self._db.writing(TABLE)  # after the newest row was looked up, never before
            if self._writers:
                self._newest, self._since = newest, self._clock()
                self._say_at = self._since + HELD_S
            else:
                self._through = newest
        return self._through

    def complaint(self) -> str:
        """For whom it waits, when that takes long and was not said within AGAIN_S; else ""."""
        now = self._clock()
        if not self._writers or now < self._say_at:
            return ""
        self._say_at = now + AGAIN_S
        who = sorted(set(self._writers.values()))
        named = ", ".join(who[:NAMED_MAX]) + (f" and {len(who) - NAMED_MAX} more" if len(who) > NAMED_MAX else "")
        seconds = now - self._since
        return f"for {seconds:.0f} s new records wait for a transaction that may add some before them: {named}"


def follow(
    db: Database, name: str | None, pause: Callable[[], None], say: Callable[[str], None], clock: Callable[[], float]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What is stored, each device's in the order of its recording, and then without end what comes: where and when,
    and the record's own content. Of all devices or of the one with this name. `pause` is called when all there is was
    given, `say` when something holds it up."""
    tail = Tail(db, clock)
    while not (after := tail.through()) and tail.waits:
        _wait(tail, pause, say)
    yield from events.parts(db, after, name)
    while True:
        through = tail.through()
        while after < through:
            seen = after
            for row, common, own in events.new_parts(db, seen, through):
                after = row
                if name in {None, common["name"]}:
                    yield common, own
            if after == seen:  # numbers that nobody used
                after = through
        _wait(tail, pause, say)


def _wait(tail: Tail, pause: Callable[[], None], say: Callable[[str], None]) -> None:
    if complaint := tail.complaint():
        say(complaint)
    pause()
