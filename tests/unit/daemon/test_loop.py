"""The loop: descriptors, timers that share wake-ups, signals."""

from __future__ import annotations

import os
import signal

import pytest

from edgeguard.daemon.loop import Loop


def test_a_readable_descriptor_calls_back() -> None:
    loop, seen = Loop(), []
    read, write = os.pipe()
    loop.watch(read, lambda: seen.append(os.read(read, 10)))
    os.write(write, b"x")
    loop.turn(1)
    assert seen == [b"x"]


def test_a_closed_descriptor_can_be_forgotten() -> None:
    loop = Loop()
    read, write = os.pipe()
    loop.watch(read, lambda: None)
    os.close(read)
    os.close(write)
    loop.unwatch(read)
    loop.unwatch(12345)


def test_a_callback_may_drop_another_of_the_same_round() -> None:
    loop, seen = Loop(), []
    pipes = [os.pipe() for _ in range(2)]
    fds = [read for read, _ in pipes]

    def served(me: int, other: int) -> None:
        seen.append(me)
        loop.unwatch(other)

    loop.watch(fds[0], lambda: served(fds[0], fds[1]))
    loop.watch(fds[1], lambda: served(fds[1], fds[0]))
    for _, write in pipes:
        os.write(write, b"x")
    loop.turn(1)
    assert len(seen) == 1


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_timers_run_in_order_once_and_not_after_cancel() -> None:
    clock = Clock()
    loop, seen = Loop(clock), []
    loop.later(2, lambda: seen.append("b"))
    loop.later(1, lambda: seen.append("a"))
    loop.later(1.5, lambda: seen.append("never")).cancel()
    clock.now += 5
    loop.turn(0)
    loop.turn(0)
    assert seen == ["a", "b"]


def test_slack_lets_timers_share_a_wakeup() -> None:
    clock = Clock()
    loop, seen = Loop(clock), []
    loop.later(10, lambda: seen.append("tick"))
    loop.later(9, lambda: seen.append("lazy"), slack=5)
    assert loop._timeout() == pytest.approx(10), "the lazy timer alone must not wake the device at 9"
    clock.now += 10
    loop.turn(0)
    assert seen == ["lazy", "tick"]


def test_a_timer_may_start_a_timer() -> None:
    clock = Clock()
    loop, seen = Loop(clock), []
    loop.later(1, lambda: loop.later(1, lambda: seen.append("second")))
    clock.now += 1
    loop.turn(0)
    clock.now += 1
    loop.turn(0)
    assert seen == ["second"]


def test_signals_arrive_in_the_loop() -> None:
    loop, seen = Loop(), []
    before = signal.getsignal(signal.SIGUSR1)
    try:
        loop.on_signal(signal.SIGUSR1, lambda: seen.append("usr1"))
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.turn(1)
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["usr1"]
