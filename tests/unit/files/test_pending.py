"""What waits for its look: several events make one look, a file that is written all the time is looked at now and
then, and nothing that happened is forgotten."""

import select
import time

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
    pending.add("/log", Waiting(ONE, None, writing=True))
    path, waiting = pending.take()
    pending.looked(path, waiting, 0.001)
    pending.add("/log", Waiting(TWO, None, writing=True))
    assert "/log" in pending
    assert pending.take() is None
    clock.now += module.REST_S
    pending.wake()
    assert pending.take() == ("/log", Waiting(TWO, None, writing=True))


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
    wanted = {f"/{number}" for number in range(3 * module.RESTING_MAX)}
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
    assert made.take() == ("/log", Waiting(ONE, None, writing=True))
    timer.close()


def test_it_is_empty_when_nothing_wants_a_look(pending, clock):
    assert pending.empty
    pending.add("/a", Waiting(ONE, None, writing=True))
    assert not pending.empty
    path, waiting = pending.take()
    pending.looked(path, waiting, 0.0)
    assert pending.empty, "it rests, and nothing happened to it meanwhile"
    pending.add("/a", Waiting(ONE, None))
    assert not pending.empty
