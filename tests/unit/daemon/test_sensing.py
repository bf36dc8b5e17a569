"""When sensors look: on a grid, after hints, and what is told of what."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from edgeguard.daemon import sensing as module
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.sensing import HINT_LOOKS_S, UNTOLD_MIN_S, Report, Sensing
from edgeguard.model import Observation, Origin, Status
from edgeguard.sensors import Rung


class Clock:
    """Time of the loop and of the looks."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Listeners:
    """A sensor whose world is a list."""

    name = "listeners"
    kinds = {"listener": {}}  # noqa: RUF012 - a test's
    ladder = ("list",)
    interval_s = 10
    triggers = ()

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.world: list[str] = []
        self.looks: list[float] = []

    def start(self) -> Rung:
        return Rung("list", proven=True)

    def fileno(self) -> None:
        return None

    def ready(self, now: int) -> Iterable[Observation]:
        return ()

    def observe(self, now: int) -> Iterable[Observation]:
        self.looks.append(round(self.clock.now - 1000.0, 3))
        return [Observation("listener", subject, {}, now) for subject in self.world]

    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(module.time, "monotonic", one)
    return one


def run(loop: Loop, clock: Clock, until: float) -> None:
    """Let time pass: from timer to timer."""
    while True:
        wait = loop._timeout()
        if wait < 0 or clock.now + wait > until:
            clock.now = until
            return
        clock.now += wait
        loop.turn(0)


def make(clock: Clock, standing: Iterable[str] = ()) -> tuple[Loop, Sensing, Listeners, list[Observation]]:
    loop, told = Loop(clock), []
    sensing = Sensing(loop, told.append, lambda _kind: standing, lambda _report: None)
    sensor = Listeners(clock)
    sensing.add(sensor, snapshot=True)  # type: ignore[arg-type]  # class attributes as a test writes them
    return loop, sensing, sensor, told


def test_what_is_gone_since_the_last_run_is_told(clock: Clock) -> None:
    _, sensing, sensor, told = make(clock, standing=["tcp/0.0.0.0:4444", "tcp/0.0.0.0:22"])
    sensor.world = ["tcp/0.0.0.0:22"]
    sensing.run()
    gone = [one for one in told if one.status is Status.ABSENT]
    assert [(one.subject, one.origin) for one in gone] == [("tcp/0.0.0.0:4444", Origin.DOWN)]


def test_looks_fall_on_a_grid(clock: Clock) -> None:
    clock.now = 1003.0
    loop, sensing, sensor, _ = make(clock)
    sensing.run()
    run(loop, clock, 1031.0)
    assert sensor.looks == [3.0, 10.0, 20.0, 30.0]


def test_a_program_that_starts_late_in_a_series_gets_its_looks(clock: Clock) -> None:
    loop, sensing, sensor, _ = make(clock)
    sensing.run()
    sensing.program_started()
    run(loop, clock, 1002.9)
    sensing.program_started()
    sensor.looks.clear()
    run(loop, clock, 1006.5)
    expected = [HINT_LOOKS_S[-1] + wait for wait in (0.0, *HINT_LOOKS_S)]
    assert sensor.looks == pytest.approx(expected)


def test_without_programs_nothing_is_looked_at_in_between(clock: Clock) -> None:
    loop, sensing, sensor, _ = make(clock)
    sensing.run()
    sensing.program_started()
    run(loop, clock, 1009.0)
    assert len(sensor.looks) == 1 + len(HINT_LOOKS_S)


def test_what_wakes_a_sensor() -> None:
    sensor = Listeners(Clock())
    sensor.triggers = ("/etc/pass*",)  # type: ignore[assignment]
    assert module._concerns(sensor, "/etc/passwd")
    assert not module._concerns(sensor, "/var/www/.ssh")
    sensor.places = frozenset({"/var/www/.ssh/authorized_keys"})  # type: ignore[attr-defined]
    for path in ("/var/www/.ssh/authorized_keys", "/var/www/.ssh", "/var/www"):  # what leads there may be replaced
        assert module._concerns(sensor, path)
    assert not module._concerns(sensor, "/var/www/index.html")
    assert not module._concerns(sensor, "/var/w")


def told_of(clock: Clock) -> tuple[Sensing, list[Report]]:
    stands: list[Report] = []
    return Sensing(Loop(clock), lambda _seen: None, lambda _kind: (), stands.append), stands


def test_a_rung_that_changes_later_is_told_once(clock: Clock) -> None:
    sensing, stands = told_of(clock)
    sensor = Listeners(clock)
    sensing.add(sensor, snapshot=True)  # type: ignore[arg-type]
    sensor.rung = Rung("list", proven=False, blind=("half of it",))  # type: ignore[attr-defined]
    sensing.look("listeners")
    sensing.look("listeners")
    assert [(one.rung.proven, one.rung.blind) for one in stands] == [(True, ()), (False, ("half of it",))]
    assert sensing.reports() == stands[-1:]


def test_where_no_event_tells_of_files_their_readers_look_often_and_say_so(clock: Clock) -> None:
    sensing, stands = told_of(clock)
    sensing.untold = True
    reader, other = Listeners(clock), Listeners(clock)
    reader.name, reader.triggers, reader.interval_s = "accounts", ("/etc/passwd",), 900  # type: ignore[assignment]
    sensing.add(other, snapshot=True)  # type: ignore[arg-type]
    sensing.add(reader, snapshot=True)  # type: ignore[arg-type]
    assert stands[0].rung.blind == ()
    assert stands[1].rung.blind == ("what is read from files is looked at every 60 s: no event tells that one changed",)
    sensing.run()
    run(sensing._loop, clock, 1000.0 + 3 * UNTOLD_MIN_S)
    assert len(reader.looks) >= 3


@pytest.mark.parametrize(
    ("rung", "works"),
    [
        (Rung("best", proven=False), True),  # an event of our own could not be made; it may carry
        (Rung("last", proven=True), True),
        (Rung("last", proven=False), False),  # a look does not succeed either
    ],
)
def test_only_the_last_rung_must_be_proven(rung: Rung, works: bool) -> None:
    assert Report("any", rung, ("best", "last")).works is works
