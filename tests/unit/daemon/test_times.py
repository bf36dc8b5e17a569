"""Which sweeps may believe change times: those that follow another within a day, if nothing came between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgeguard.daemon import times
from edgeguard.daemon.times import Disturbances, Times
from edgeguard.errors import Unavailable
from tests import lent

HOUR = 3600.0


class World:
    """What happens to clock and mounts, and how long the device has run."""

    def __init__(self, every: float = 6 * HOUR) -> None:
        self.happened = False
        self.works = True
        self.now = 1000.0
        self.every = every
        self.number = 100
        self.times = Times(every, self._open, lambda: self.now)

    def _open(self) -> Any:
        if not self.works:
            raise Unavailable("timerfd_create: Function not implemented")
        return self

    def any(self) -> bool:
        """As `Disturbances`."""
        if not self.works:
            raise OSError(9, "Bad file descriptor")
        happened, self.happened = self.happened, False
        return happened

    def disturb(self) -> None:
        self.happened = True

    def sweep(
        self, *, listing: bool = False, during: Callable[[], None] = lambda: None, failed: bool = False, late: float = 0
    ) -> bool:
        """Did it believe what the last one left?"""
        self.now += late
        told = self.times.since(listing=listing)
        assert told in (None, self.number)
        during()
        self.number += 1
        self.times.done(0 if failed else self.number)
        self.now += self.every
        return told is not None


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_one_lists_and_then_one_a_day(world: World) -> None:
    assert [world.sweep(late=60) for _ in range(9)] == [False, True, True, True, False, True, True, True, False]


@pytest.mark.parametrize(("hours", "believed"), [(1, 23), (5, 3), (7, 2), (12, 1), (13, 0), (20, 0), (48, 0)])
def test_never_later_than_a_day(hours: int, believed: int) -> None:
    world = World(hours * HOUR)
    for _ in range(3):
        assert [world.sweep() for _ in range(believed + 1)] == [False] + [True] * believed


def test_after_a_disturbance_everything_is_listed_once(world: World) -> None:
    world.sweep()
    world.disturb()
    assert not world.sweep()
    assert world.sweep(during=world.disturb)
    assert not world.sweep(), "it came while the one before was on its way"
    assert world.sweep()


def test_a_sweep_that_lists_for_somebody_ends_no_disturbance_of_the_next(world: World) -> None:
    world.sweep()
    assert not world.sweep(listing=True, during=world.disturb)
    assert not world.sweep()
    world.disturb()
    assert not world.sweep(listing=True)
    assert [world.sweep() for _ in range(4)] == [True, True, True, False], "the day begins anew"


def test_after_a_failure_everything_is_listed(world: World) -> None:
    world.sweep()
    assert world.sweep(failed=True)
    assert not world.sweep()
    assert world.sweep()


def test_what_was_not_adopted_is_nothing_to_believe_in(world: World) -> None:
    world.sweep()
    world.times.forget()
    assert not world.sweep()
    assert world.sweep()


def test_where_the_kernel_tells_nothing_everything_is_listed(world: World) -> None:
    world.works = False
    assert [world.sweep() for _ in range(3)] == [False, False, False]
    world.works = True
    assert [world.sweep() for _ in range(2)] == [False, True]
    world.works = False
    assert not world.sweep()


def test_what_cannot_be_had_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise Unavailable("timerfd_create: Function not implemented")

    monkeypatch.setattr(times.timerfd, "ClockSteps", refuse)
    before = lent.open_now()
    with pytest.raises(Unavailable):
        Disturbances()
    assert lent.open_now() == before


def test_both_are_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hears of one first and does not ask for the other would hear of it at the next sweep, and list again."""
    asked: list[str] = []

    class Clock:
        def was_set(self) -> bool:
            asked.append("clock")
            return len(asked) == 1

    class Mounts:
        def changed(self) -> bool:
            asked.append("mounts")
            return len(asked) == 4

    monkeypatch.setattr(times.timerfd, "ClockSteps", Clock)
    monkeypatch.setattr(times.mounts, "Changes", Mounts)
    both = Disturbances()
    assert [both.any() for _ in range(3)] == [True, True, False]
    assert asked == ["clock", "mounts"] * 3
