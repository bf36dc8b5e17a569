"""A descriptor that only says when to look: looks follow, a noisy bell is bounded, and a quiet one costs nothing."""

import os
from typing import ClassVar

import pytest

from edgeguard.daemon.loop import Loop
from edgeguard.daemon.sensing import Sensing
from edgeguard.model import Observation
from edgeguard.sensors import Rung


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Belled:
    name = "listeners"
    kinds: ClassVar = {"listener": {}}
    ladder = ("bpf",)
    interval_s = 0
    triggers = ()
    looks_after = (0.1, 0.5, 1.5)

    def __init__(self):
        self.end, self.rope = os.pipe2(os.O_NONBLOCK)
        self.looks = 0
        self.drained = 0
        self.ports = []

    def ring(self):
        os.write(self.rope, b"x")

    def start(self):
        return Rung("bpf", proven=True)

    def fileno(self):
        return self.end

    def ready(self, now):
        self.drained += 1
        os.read(self.end, 4096)
        return ()

    def observe(self, now):
        self.looks += 1
        return [Observation("listener", port, {}, now) for port in self.ports]

    def close(self):
        os.close(self.end)
        os.close(self.rope)


@pytest.fixture
def world():
    clock, told, sensor = Clock(), [], Belled()
    loop = Loop(clock)
    sensing = Sensing(loop, lambda seen: told.append((seen.subject, seen.status.name)), lambda _: (), lambda *_: None)
    sensing.add(sensor, snapshot=True)
    sensing.run()

    def pass_time(seconds, step=0.05):
        end = clock.now + seconds
        while clock.now < end:
            clock.now = min(end, clock.now + step)
            loop.turn(0)

    yield sensor, told, pass_time, sensing.close
    sensing.close()


def test_nothing_rings_nothing_looks(world):
    sensor, _, pass_time, _ = world
    pass_time(30)
    assert (sensor.looks, sensor.drained) == (1, 0)


def test_looks_follow_and_tell_what_came_and_went(world):
    sensor, told, pass_time, _ = world
    sensor.ring()
    pass_time(0.05)
    assert sensor.looks == 1  # not yet: bind comes before listen
    sensor.ports = ["tcp/0.0.0.0:4444"]
    pass_time(0.15)
    assert sensor.looks == 2
    assert told == [("tcp/0.0.0.0:4444", "PRESENT")]
    sensor.ports = []
    pass_time(0.5)
    assert sensor.looks == 3
    assert told[1:] == [("tcp/0.0.0.0:4444", "ABSENT")]
    pass_time(5)
    assert (sensor.looks, sensor.drained) == (4, 1)


def test_a_noisy_bell_is_bounded(world):
    sensor, _, pass_time, _ = world
    for _ in range(1000):
        sensor.ring()
        pass_time(0.01, step=0.01)
    assert sensor.looks <= 10 / 0.1 + 3
    assert sensor.drained <= 10 / 0.1 + 3
    assert sensor.looks >= 80  # and is not starved by its own noise either


def test_the_last_ring_gets_its_whole_series(world):
    sensor, told, pass_time, _ = world
    sensor.ring()
    pass_time(1.4)
    sensor.ring()
    pass_time(1.4)
    sensor.ports = ["udp/0.0.0.0:5555"]
    pass_time(0.3)
    assert told == [("udp/0.0.0.0:5555", "PRESENT")]


def test_closed_in_between(world):
    """With looks still to come: none may fall on a closed descriptor."""
    sensor, _, pass_time, close = world
    sensor.ring()
    pass_time(0.05)
    close()
    pass_time(5)
    assert (sensor.looks, sensor.drained) == (1, 1)
