"""Sensors at work: who looks when, and how a look becomes observations for the river.

Sensors that list everything they see go through a Snapshot, so that only what is new, changed or gone flows on.
A change of a file that another sensor reads (its `triggers`) makes that sensor look at once, and the change's actor
goes with what it finds: that is how "user eve added" knows who did it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple

from edgeguard.daemon.loop import Loop, Timer
from edgeguard.model import NOBODY, Actor, Observation, Origin, Status
from edgeguard.sensors import Rung, Sensor
from edgeguard.sensors.snapshot import WHOLE_KIND, Snapshot

Take = Callable[[Observation], None]
Standing = Callable[[str], Iterable[str]]  # kind -> subjects with a live finding
TRIGGER_WAIT_S = 0.05  # tools replace several files in one go; one look serves them
HINT_LOOKS_S = (0.2, 0.6, 1.5, 3.0)  # after a program started: when does it open its port?
OVERDUE_S = 60.0  # a look that is this late never came: systemd may restart us
FAILURES_MAX = 10  # in a row; then its descriptor is not listened to any more
TICK_SLACK_S = 2.0  # timers this close share a wake-up
# Where no event tells of a file, sensors that read files look after this share of their rhythm, but not oftener than
# once a minute.
UNTOLD_SHARE, UNTOLD_MIN_S = 15, 60
UNTOLD = "what is read from files is looked at every {} s: no event tells that one changed"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Report(NamedTuple):
    """One sensor's standing for `doctor` and the records."""

    name: str
    rung: Rung
    ladder: tuple[str, ...]

    @property
    def best(self) -> bool:
        return not self.ladder or self.rung.name == self.ladder[0]

    @property
    def works(self) -> bool:
        """A rung that could not be proven may still carry; on the last one the proof is a look that succeeds."""
        return self.rung.proven or self.rung.name != self.ladder[-1]


class _Seat:
    """One sensor with what the daemon keeps about it."""

    __slots__ = ("actor", "due", "every", "failures", "fresh", "looks", "rung", "sensor", "snapshot", "waiting")

    def __init__(self, sensor: Sensor, snapshot: Snapshot | None) -> None:
        self.sensor = sensor
        self.snapshot = snapshot
        self.rung = Rung("", proven=False)
        self.due = 0.0
        self.every = 0  # seconds; 0: as the sensor says
        self.waiting: Timer | None = None
        self.looks: list[Timer] = []  # those to come after the sensor's bell rang
        self.actor = NOBODY
        self.failures = 0  # in a row
        self.fresh = True  # the next look is the first one: what has a finding and is not there any more is gone


class Sensing:
    """Starts the sensors, wakes them, and lets what they see flow into `take`."""

    def __init__(
        self,
        loop: Loop,
        take: Take,
        standing: Standing,
        stands: Callable[[Report], None],  # told where a sensor stands: at its start, and when that changes
        failed: Callable[[str, Exception], None] | None = None,  # told once until the sensor works again; None: raise
    ) -> None:
        self._loop = loop
        self._take = take
        self._standing = standing
        self._stands = stands
        self._failed = failed
        self._seats: dict[str, _Seat] = {}
        self._tick: Timer | None = None
        self._hints: list[Timer] = []
        self._hinted = False  # another program started since these were planned
        self.untold = False  # no event tells of files; said before the sensors are added that have triggers
        self.storm: Callable[[], bool] = lambda: False  # do more file events wait than are worked off?
        self.counts: dict[str, int] = {}  # kind -> subjects present at the last full look

    # -- life

    def add(self, sensor: Sensor, *, snapshot: bool) -> Rung:
        """Start one sensor. One that cannot be started raises and has no seat: it is not looked with."""
        seat = _Seat(sensor, Snapshot(getattr(sensor, "volatile", frozenset())) if snapshot else None)
        seat.rung = sensor.start()
        if self.untold and sensor.triggers:
            seat.every = max(UNTOLD_MIN_S, sensor.interval_s // UNTOLD_SHARE)
        self._seats[sensor.name] = seat
        self._stands(self._report(seat))
        self._listen(seat)
        return seat.rung

    def _report(self, seat: _Seat) -> Report:
        rung = seat.rung
        if self.untold and seat.sensor.triggers:
            rung = rung._replace(blind=(*rung.blind, UNTOLD.format(seat.every)))
        return Report(seat.sensor.name, rung, seat.sensor.ladder)

    def _settle(self, seat: _Seat) -> None:
        """Some prove their rung with the first real event only, some learn later that it does not carry."""
        rung = getattr(seat.sensor, "rung", None)
        if isinstance(rung, Rung) and rung != seat.rung:
            seat.rung = rung
            self._stands(self._report(seat))

    def settle(self) -> None:
        """Ask all sensors anew where they stand: something happened that their looks do not show."""
        for seat in self._seats.values():
            self._settle(seat)

    def _listen(self, seat: _Seat) -> None:
        fd = seat.sensor.fileno()
        if fd is None:
            return
        if after := getattr(seat.sensor, "looks_after", ()):  # its descriptor says when to look, not what there is
            self._loop.watch(fd, lambda: self._bell(seat, fd, after))
        else:
            self._loop.watch(fd, lambda: self._ready(seat))

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
            for timer in seat.looks:
                timer.cancel()
        if self._tick:
            self._tick.cancel()
        self._seats.clear()

    def reports(self) -> list[Report]:
        """Where every sensor stands now."""
        self.settle()
        return [self._report(seat) for seat in self._seats.values()]

    def sensor(self, name: str) -> Sensor | None:
        seat = self._seats.get(name)
        return seat.sensor if seat else None

    def in_time(self) -> bool:
        """Is no look overdue by more than a while?"""
        now = time.monotonic()
        return all(seat.due + OVERDUE_S > now for seat in self._seats.values())

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
            seat.fresh = True
            self._look(seat)

    @contextmanager
    def _unit(self, seat: _Seat) -> Iterator[None]:
        """One look of one sensor is the unit of work: what it cannot cope with must not end the others."""
        try:
            yield
        except Exception as error:  # told in full by `failed`, and the other sensors go on
            if self._failed is None:
                raise
            seat.failures += 1
            if seat.failures == 1:
                self._failed(seat.sensor.name, error)
            if seat.failures == FAILURES_MAX and (fd := seat.sensor.fileno()) is not None:
                self._loop.unwatch(fd)  # it would call us again at once; from now on only looks find something
        else:
            seat.failures = 0

    def _look(self, seat: _Seat) -> None:
        with self._unit(seat):
            self._look_with(seat)
        self._settle(seat)

    def _look_with(self, seat: _Seat) -> None:
        now = now_ms()
        every = seat.every or seat.sensor.interval_s
        # On a common grid, so that looks of different rhythm share a wake-up.
        seat.due = (time.monotonic() // every + 1) * every if every else float("inf")
        actor, seat.actor = seat.actor, NOBODY
        seen = list(seat.sensor.observe(now))
        if seat.fresh:
            seat.fresh = False
            self._close_gone(seat, seen, now)
        if seat.snapshot is None:
            self._flow(seen, actor)
            return
        counts: dict[str, int] = dict.fromkeys(seat.sensor.kinds, 0)
        for observation in seen:
            counts[observation.kind] = counts.get(observation.kind, 0) + 1
        self.counts.update(counts)
        self._flow(seat.snapshot.update(seen, now), actor)

    def _close_gone(self, seat: _Seat, seen: list[Observation], now: int) -> None:
        """What had a finding when we last ran and is not there any more ended while nobody looked."""
        if seat.sensor.name == "files":
            return  # its sweep tells
        present = {(observation.kind, observation.subject) for observation in seen}
        blind = {kind for kind, subject in present if subject == WHOLE_KIND}
        for kind in seat.sensor.kinds:
            for subject in [] if kind in blind else list(self._standing(kind)):
                if (kind, subject) not in present:
                    self._take(Observation(kind, subject, {}, now, Status.ABSENT, Origin.DOWN))

    def _ready(self, seat: _Seat) -> None:
        with self._unit(seat):
            for observation in seat.sensor.ready(now_ms()):
                self._live(seat, observation)
        self._settle(seat)
        if seat.sensor.name == "files" and self.storm():
            self.program_started()  # the hint of one that starts now would come late

    def _bell(self, seat: _Seat, fd: int, after: tuple[float, ...]) -> None:
        """Look a little later, and again. The bell rests until then: who rings it all the time costs a look each time,
        and no more. What rang in between is heard when it is listened to again."""
        self._ready(seat)
        self._loop.unwatch(fd)
        for timer in seat.looks:
            timer.cancel()

        def first() -> None:
            self._listen(seat)
            self._look(seat)

        seat.looks = [self._loop.later(wait, lambda: self._look(seat)) for wait in after[1:]]
        seat.looks.append(self._loop.later(after[0], first))

    def live(self, name: str, observation: Observation) -> None:
        """An observation that a sensor made outside its turn."""
        if seat := self._seats.get(name):
            self._live(seat, observation)

    def _live(self, seat: _Seat, observation: Observation) -> None:
        if seat.snapshot is not None:
            seat.snapshot.note(observation)  # the next look need not tell it again; a repetition counts
        self._flow((observation,), NOBODY)

    def _flow(self, observations: Iterable[Observation], actor: Actor) -> None:
        for observation in observations:
            known = observation if actor == NOBODY or observation.actor != NOBODY else observation._replace(actor=actor)
            self._take(known)
            if known.kind == "file":
                self._trigger(known)

    # -- waking

    def _trigger(self, observation: Observation) -> None:
        for seat in self._seats.values():
            if _concerns(seat.sensor, observation.subject):
                if observation.actor != NOBODY:
                    seat.actor = observation.actor
                if seat.waiting is None:
                    seat.waiting = self._loop.later(TRIGGER_WAIT_S, lambda seat=seat: self._triggered(seat))  # type: ignore[misc]  # binds now, not later

    def _triggered(self, seat: _Seat) -> None:
        seat.waiting = None
        self._look(seat)

    def hurry(self, name: str, interval_s: int) -> None:
        """Look more often than the sensor asks for: where nothing announces that something may have changed."""
        if seat := self._seats.get(name):
            seat.every = interval_s

    def program_started(self) -> None:
        """A hint from the process sensor: ports may open soon. One series of looks at a time."""
        listeners = self._seats.get("listeners")
        if listeners is None:
            return
        if self._hints:
            self._hinted = True  # the looks that are under way may be too early for this one
            return
        self._hints = [self._loop.later(wait, lambda: self._look(listeners)) for wait in HINT_LOOKS_S]
        self._loop.later(HINT_LOOKS_S[-1], self._hints_over)

    def _hints_over(self) -> None:
        self._hints.clear()
        if self._hinted:
            self._hinted = False
            self.program_started()

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
        everies = [seat.every or seat.sensor.interval_s for seat in self._seats.values()]
        return min((every for every in everies if every), default=60)


def _concerns(sensor: Sensor, path: str) -> bool:
    """Does a change there wake the sensor? By its globs, or by the places that it found, and what leads to them."""
    if any(fnmatchcase(path, pattern) for pattern in sensor.triggers):
        return True
    places: frozenset[str] = getattr(sensor, "places", frozenset())
    return path in places or any(place.startswith(path + "/") for place in places)
