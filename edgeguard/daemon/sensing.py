"""Sensors at work: who looks when, and how a look becomes observations for the river.

Sensors that list everything they see go through a Snapshot, so that only what is new, changed or gone flows on.
A change of a file that another sensor reads (its `triggers`) makes that sensor look at once, and the change's actor
goes with what it finds: that is how "user eve added" knows who did it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from edgeguard.daemon.loop import Loop, Timer
from edgeguard.model import NOBODY, Actor, Observation
from edgeguard.sensors import Rung, Sensor
from edgeguard.sensors.snapshot import Snapshot

Take = Callable[[Observation], None]
TRIGGER_WAIT_S = 0.05  # tools replace several files in one go; one look serves them
HINT_LOOKS_S = (0.2, 0.6, 1.5, 3.0)  # after a program started: when does it open its port?
TICK_SLACK_S = 2.0  # timers this close share a wake-up


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Report(NamedTuple):
    """One sensor's standing for `doctor` and the records."""

    name: str
    rung: Rung
    ladder: tuple[str, ...]


class _Seat:
    """One sensor with what the daemon keeps about it."""

    __slots__ = ("actor", "due", "rung", "sensor", "snapshot", "waiting")

    def __init__(self, sensor: Sensor, snapshot: Snapshot | None) -> None:
        self.sensor = sensor
        self.snapshot = snapshot
        self.rung = Rung("", proven=False)
        self.due = 0.0
        self.waiting: Timer | None = None
        self.actor = NOBODY


class Sensing:
    """Starts the sensors, wakes them, and lets what they see flow into `take`."""

    def __init__(self, loop: Loop, take: Take, health_rung: Callable[[str, Rung], None]) -> None:
        self._loop = loop
        self._take = take
        self._health_rung = health_rung
        self._seats: dict[str, _Seat] = {}
        self._tick: Timer | None = None
        self._hints: list[Timer] = []
        self.counts: dict[str, int] = {}  # kind -> subjects present at the last full look

    # -- life

    def add(self, sensor: Sensor, *, snapshot: bool) -> Rung:
        """Start one sensor and take its first look."""
        seat = _Seat(sensor, Snapshot(getattr(sensor, "volatile", frozenset())) if snapshot else None)
        self._seats[sensor.name] = seat
        seat.rung = sensor.start()
        self._health_rung(sensor.name, seat.rung)
        fd = sensor.fileno()
        if fd is not None:
            self._loop.watch(fd, lambda: self._ready(seat))
        return seat.rung

    def run(self) -> None:
        """First looks of everything, then the clock."""
        for seat in self._seats.values():
            self._look(seat)
        self._schedule()

    def close(self) -> None:
        for seat in self._seats.values():
            if (fd := seat.sensor.fileno()) is not None:
                self._loop.unwatch(fd)
            seat.sensor.close()
        if self._tick:
            self._tick.cancel()
        self._seats.clear()

    def reports(self) -> list[Report]:
        return [Report(name, seat.rung, seat.sensor.ladder) for name, seat in self._seats.items()]

    def sensor(self, name: str) -> Sensor | None:
        seat = self._seats.get(name)
        return seat.sensor if seat else None

    # -- looking

    def look(self, name: str, actor: Actor = NOBODY) -> None:
        """One full look now."""
        if seat := self._seats.get(name):
            seat.actor = actor
            self._look(seat)

    def look_again(self) -> None:
        """Forget what was seen and look at everything: after a new baseline every subject is judged anew."""
        for seat in self._seats.values():
            if seat.snapshot is not None:
                seat.snapshot.forget()
            self._look(seat)

    def _look(self, seat: _Seat) -> None:
        now = now_ms()
        seat.due = time.monotonic() + seat.sensor.interval_s if seat.sensor.interval_s else float("inf")
        actor, seat.actor = seat.actor, NOBODY
        if seat.snapshot is None:
            self._flow(seat.sensor.observe(now), actor)
            return
        seen = list(seat.sensor.observe(now))
        counts: dict[str, int] = dict.fromkeys(seat.sensor.kinds, 0)
        for observation in seen:
            counts[observation.kind] = counts.get(observation.kind, 0) + 1
        self.counts.update(counts)
        self._flow(seat.snapshot.update(seen, now), actor)

    def _ready(self, seat: _Seat) -> None:
        self._flow(seat.sensor.ready(now_ms()), NOBODY)

    def _flow(self, observations: Iterable[Observation], actor: Actor) -> None:
        for observation in observations:
            known = observation if actor == NOBODY or observation.actor != NOBODY else observation._replace(actor=actor)
            self._take(known)
            if known.kind == "file":
                self._trigger(known)

    # -- waking

    def _trigger(self, observation: Observation) -> None:
        for seat in self._seats.values():
            if any(fnmatchcase(observation.subject, pattern) for pattern in seat.sensor.triggers):
                if observation.actor != NOBODY:
                    seat.actor = observation.actor
                if seat.waiting is None:
                    seat.waiting = self._loop.later(TRIGGER_WAIT_S, lambda seat=seat: self._triggered(seat))  # type: ignore[misc]  # binds now, not later

    def _triggered(self, seat: _Seat) -> None:
        seat.waiting = None
        self._look(seat)

    def program_started(self) -> None:
        """A hint from the process sensor: ports may open soon. One series of looks at a time."""
        listeners = self._seats.get("listeners")
        if listeners is None or self._hints:
            return
        self._hints = [self._loop.later(wait, lambda: self._look(listeners)) for wait in HINT_LOOKS_S]
        self._loop.later(HINT_LOOKS_S[-1], self._hints.clear)

    def _schedule(self) -> None:
        due = min((seat.due for seat in self._seats.values()), default=float("inf"))
        wait = min(max(0.0, due - time.monotonic()), 3600.0)
        self._tick = self._loop.later(wait, self._on_tick)

    def _on_tick(self) -> None:
        horizon = time.monotonic() + min(TICK_SLACK_S, 0.25 * self._shortest())
        for seat in list(self._seats.values()):
            if seat.due <= horizon:
                self._look(seat)
        self._schedule()

    def _shortest(self) -> float:
        return min((seat.sensor.interval_s for seat in self._seats.values() if seat.sensor.interval_s), default=60)


def names(sensors: Sequence[Sensor]) -> list[str]:
    return [sensor.name for sensor in sensors]
