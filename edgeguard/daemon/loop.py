"""One thread, one epoll: descriptors, timers and signals of the resident daemon.

asyncio would cost 11 MB of a 24 MB budget. Timers may be given some slack, so that several of them share one
wake-up: a device that sleeps between wake-ups is a device that runs on a battery.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import select
import signal
import time
from collections.abc import Callable
from itertools import count

Callback = Callable[[], object]
ROUND_MAX = 64  # descriptors served before timers get their turn: no single noisy source starves the rest


class Timer:
    """Handle of a callback in the future."""

    __slots__ = ("callback", "due", "latest")

    def __init__(self, due: float, latest: float, callback: Callback | None) -> None:
        self.due = due
        self.latest = latest
        self.callback = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Calls back when a descriptor is ready, a time has come, or a signal arrived."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[Callback, int]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._running = False
        self._signals: dict[int, Callback] = {}
        self._signal_read = -1
        self.wakeups = 0

    # -- descriptors

    def watch(self, fd: int, callback: Callback, *, write: bool = False, urgent: bool = False) -> None:
        """Call back whenever `fd` is readable (or writable, or, `urgent`, has a priority event); replaces a watch."""
        mask = select.EPOLLOUT if write else select.EPOLLPRI if urgent else select.EPOLLIN
        if fd in self._callbacks:
            self._epoll.modify(fd, mask)
        else:
            self._epoll.register(fd, mask)
        self._callbacks[fd] = (callback, mask)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; one that is unknown or already closed is fine."""
        if self._callbacks.pop(fd, None) is not None:
            # A closed descriptor has left the epoll set by itself.
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    # -- time

    def later(self, seconds: float, callback: Callback, slack: float = 0.0) -> Timer:
        """Call back once, after `seconds`, at most `slack` later: whichever wake-up comes in that window serves it."""
        due = self._clock() + seconds
        timer = Timer(due, due + slack, callback)
        heapq.heappush(self._timers, (timer.latest, next(self._order), timer))
        return timer

    def _timeout(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self._clock()) if self._timers else -1

    def _run_timers(self) -> None:
        now = self._clock()
        ready = [item for item in self._timers if item[2].due <= now]
        if not ready:
            return
        self._timers = [item for item in self._timers if item[2].due > now]
        heapq.heapify(self._timers)
        for _, _, timer in sorted(ready, key=lambda item: (item[2].due, item[1])):
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    # -- signals

    def on_signal(self, number: int, callback: Callback) -> None:
        """Call back in the loop, not in the handler, when a signal arrives."""
        if self._signal_read < 0:
            self._signal_read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            self.watch(self._signal_read, self._deliver_signals)
        self._signals[number] = callback
        signal.signal(number, lambda *_: None)

    def _deliver_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in set(os.read(self._signal_read, 512)):
                if callback := self._signals.get(number):
                    callback()

    # -- life

    def run(self) -> None:
        """Until `stop`. What a callback raises ends the loop: an unexpected error is a bug, and systemd restarts us."""
        self._running = True
        while self._running:
            self.turn(self._timeout())

    def turn(self, timeout: float) -> None:
        """One wait and the callbacks that follow from it. `timeout` in seconds, below 0 for ever."""
        try:
            events = self._epoll.poll(timeout, ROUND_MAX)
        except InterruptedError:
            events = []
        except OSError as error:
            if error.errno != errno.EINTR:
                raise
            events = []
        self.wakeups += 1
        for fd, _ in events:
            entry = self._callbacks.get(fd)  # an earlier callback of this round may have dropped it
            if entry is not None:
                entry[0]()
        self._run_timers()

    def stop(self) -> None:
        self._running = False
