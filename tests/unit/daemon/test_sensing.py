"""One sensor that fails does not take the others with it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import pytest

from edgeguard.daemon.loop import Loop
from edgeguard.daemon.sensing import FAILURES_MAX, Sensing
from edgeguard.model import Observation
from edgeguard.sensors import Rung


class Sensor:
    kinds: Any = MappingProxyType({"port": {}})
    ladder = ("one",)
    interval_s = 60
    triggers: tuple[str, ...] = ()

    def __init__(self, name: str, error: Exception | None = None, start_error: Exception | None = None) -> None:
        self.name = name
        self.error = error
        self.start_error = start_error
        self.pipe = os.pipe()
        self.looks = self.heard = 0

    def start(self) -> Rung:
        if self.start_error:
            raise self.start_error
        return Rung("one", proven=True)

    def fileno(self) -> int | None:
        return self.pipe[0]

    def observe(self, now: int) -> Iterable[Observation]:
        self.looks += 1
        yield Observation("port", self.name, {}, now)
        if self.error:
            raise self.error

    def ready(self, now: int) -> Iterable[Observation]:
        del now
        self.heard += 1
        if self.error:
            raise self.error
        os.read(self.pipe[0], 10)
        return ()

    def close(self) -> None: ...


def made(*sensors: Any) -> tuple[Sensing, Loop, list[str], list[str]]:
    loop, failed = Loop(), list[str]()
    seen = list[str]()
    sensing = Sensing(
        loop,
        lambda observation: seen.append(observation.subject),
        lambda _kind: (),
        lambda *_: None,
        lambda name, error: failed.append(f"{name}: {error}"),
    )
    for sensor in sensors:
        sensing.add(sensor, snapshot=True)
    return sensing, loop, failed, seen


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("a line of /etc/passwd")])
def test_a_look_that_fails_is_told_once_and_the_others_go_on(error: Exception) -> None:
    bad, good = Sensor("bad", error), Sensor("good")
    sensing, _, failed, seen = made(bad, good)
    sensing.run()
    sensing.look("bad")
    assert failed == [f"bad: {error}"]
    assert seen == ["good"]
    assert sensing.in_time()
    bad.error = None
    sensing.look("bad")
    assert seen == ["good", "bad"]
    bad.error = error
    sensing.look("bad")
    assert len(failed) == 2


def test_a_descriptor_that_only_fails_is_left_alone() -> None:
    bad = Sensor("bad", OSError(5, "Input/output error"))
    _, loop, failed, _ = made(bad)
    os.write(bad.pipe[1], b"x")
    for _ in range(3 * FAILURES_MAX):
        loop.turn(0)
    assert len(failed) == 1
    assert bad.heard == FAILURES_MAX


def test_a_sensor_that_does_not_start_is_not_looked_with() -> None:
    bad, good = Sensor("bad", start_error=OSError(24, "Too many open files")), Sensor("good")
    sensing, *_ = made(good)
    with pytest.raises(OSError, match="Too many"):
        sensing.add(bad, snapshot=True)
    sensing.run()
    assert (bad.looks, good.looks) == (0, 1)
    assert sensing.in_time()
