"""What waits for its look: several events make one look, a file that is written all the time is looked at now and
then, and nothing that happened is forgotten."""

import select
import time
from itertools import pairwise

import pytest

from edgeguard.linux.timerfd import Timer
from edgeguard.model import NOBODY, Actor
from edgeguard.sensors import pending as module
from edgeguard.sensors.pending import Pending, Waiting

NEVER = float("inf")
ONE, TWO = Actor(pid=1), Actor(pid=2)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def pending():
    timer = Timer()
    yield Pending(timer)
    timer.close()


def test_what_happens_together_is_one_look(pending):
    pending.add("/a", Waiting(ONE, None, came=True))
    pending.add("/a", Waiting(NOBODY, None, went=True, writing=True))
    pending.add("/b", Waiting(TWO, None))
    assert pending.take() == ("/a", Waiting(ONE, None, came=True, went=True))
    assert pending.take() == ("/b", Waiting(TWO, None))
    assert pending.take() is None


def test_a_file_that_stays_open_is_looked_at_once_a_second(pending, clock):
    for actor in (ONE, TWO, ONE):
        pending.add("/log", Waiting(actor, None, writing=True))
        assert "/log" in pending
        assert pending.take() is None
        clock.now += module.REST_S
        pending.wake()
        path, waiting = pending.take()
        assert (path, waiting.actor, waiting.writing) == ("/log", actor, True)
        pending.looked(path, waiting, 0.001)


def test_a_slow_rewrite_is_looked_at_when_it_is_closed(pending, clock):
    pending.add("/etc/foo.conf", Waiting(ONE, None, writing=True))  # empty now
    clock.now += 0.9 * module.REST_S
    pending.wake()
    assert pending.take() is None
    pending.add("/etc/foo.conf", Waiting(NOBODY, None))
    assert pending.take() == ("/etc/foo.conf", Waiting(ONE, None))
    clock.now += module.REST_S
    pending.wake()
    assert pending.take() is None


def looks(pending, clock, seconds, every, told, paths=("/log",)):
    """When files that are written to `every` so often are looked at."""
    times, began = [], clock.now
    while clock.now < began + seconds:
        for path in paths:
            pending.add(path, Waiting(ONE, None, writing=True))
        pending.wake()
        while (taken := pending.take()) is not None:
            times.append(clock.now - began)
            pending.looked(*taken, 0.001, told=told)
        clock.now += every
    return times


@pytest.mark.parametrize("every", [0.1, 3.0])
def test_a_log_that_is_known_to_differ_is_looked_at_ever_less_often(pending, clock, every):
    times = looks(pending, clock, 3600, every, told=True)
    assert times[0] <= 2 * max(module.REST_S, every)
    assert len(times) < 70
    assert max(after - before for before, after in pairwise(times)) <= 64
    pending.add("/log", Waiting(ONE, None))  # closed
    assert pending.take() is not None
    clock.now += 2 * module.REST_TOLD_S
    assert looks(pending, clock, 3, 0.1, told=True)[0] < 2, "it is quiet for long, and the rest forgotten"


def test_what_does_not_differ_yet_is_looked_at_within_the_promise(pending, clock):
    times = looks(pending, clock, 60, 0.1, told=False)
    assert max(after - before for before, after in pairwise(times)) < 1.5


@pytest.mark.parametrize("count", [400, 6000])
def test_many_open_files_are_looked_at_once_a_second_each(pending, clock, count):
    paths = [f"/opt/{number}" for number in range(count)]
    assert len(looks(pending, clock, 3.05, 0.1, told=False, paths=paths)) <= 3 * count
    assert len(pending._resting) <= module.RESTING_MAX


def test_what_is_closed_is_looked_at_at_once(pending):
    pending.add("/a", Waiting(ONE, None))
    path, waiting = pending.take()
    pending.looked(path, waiting, 0.001)
    pending.add("/a", Waiting(ONE, None))
    assert pending.take() is not None


def test_a_look_that_took_long_is_followed_by_a_rest_within_the_promise(pending, clock):
    pending.add("/large", Waiting(ONE, None))
    path, waiting = pending.take()
    pending.looked(path, waiting, 3.0)
    pending.add("/large", Waiting(ONE, None))
    assert pending.take() is None
    clock.now += 2.0 - module.SETTLE_S
    pending.wake()
    assert pending.take() is not None


def test_more_resting_files_than_there_is_room_for_lose_nothing(pending, clock):
    wanted = {f"/{number}" for number in range(3 * module.RESTING_MAX)}  # their own rest, a shared one, and none
    for path in wanted:
        pending.looked(path, Waiting(ONE, None, writing=True), 0.0)
        pending.add(path, Waiting(ONE, None, writing=True))
    clock.now += 10
    pending.wake()
    assert {pending.take()[0] for _ in wanted} == wanted
    assert pending.take() is None


def test_the_timer_goes_off_for_what_is_due_first():
    timer = Timer()
    made = Pending(timer)
    poll = select.poll()
    poll.register(timer.fileno(), select.POLLIN)
    made.looked("/log", Waiting(ONE, None, writing=True), 0.0)
    made.add("/log", Waiting(ONE, None, writing=True))
    began = time.monotonic()
    made.arm(module.SETTLE_S, NEVER)
    made.add("/a", Waiting(ONE, None))
    made.arm(module.SETTLE_S, NEVER)
    assert poll.poll(5000)
    assert time.monotonic() - began < module.REST_S
    assert made.went_off()
    assert made.take() == ("/a", Waiting(ONE, None))
    made.arm(0.0, NEVER)
    assert poll.poll(5000)
    assert made.went_off()
    assert made.take() == ("/log", Waiting(ONE, None, writing=True, rested=module.REST_S))
    timer.close()


def test_it_is_empty_when_nothing_wants_a_look(pending, clock):
    assert pending.empty
    pending.add("/a", Waiting(ONE, None, writing=True))
    assert not pending.empty
    clock.now += module.REST_S
    pending.wake()
    path, waiting = pending.take()
    pending.looked(path, waiting, 0.0)
    assert pending.empty, "it rests, and nothing happened to it meanwhile"
    pending.add("/a", Waiting(ONE, None))
    assert not pending.empty
