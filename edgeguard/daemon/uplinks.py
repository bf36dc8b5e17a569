"""The uplink, seen from the daemon: ring when segments wait, back off when it fails, check receipts when they come.

The uplink is another process and another user. Nothing it writes is believed before `edgeguard-seal` has checked the
collector's signature; its status file only decides when we ring again and what `status` says about the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from edgeguard.daemon.helpers import Helpers
from edgeguard.daemon.loop import Loop, Timer
from edgeguard.errors import Unavailable
from edgeguard.linux import inotify
from edgeguard.settings import Settings

BACKOFF_S = (5.0, 3600.0)  # first and longest wait; the wait itself is drawn at random below (full jitter)
RUN_S = 900.0  # seconds that one run may take over a slow link
STATUS_MAX = 4096  # bytes of the uplink's status file
TIME_MAX = 1 << 43  # ms since 1970: the year 2248
GATHER_S = 0.05  # a receipt is two file operations


class UplinkStatus(NamedTuple):
    """What the uplink last said of itself."""

    ok: bool = True
    error: str = ""
    retry_after: int = 0
    last_sent: int | None = None


class Uplinks:
    """Rings and listens. Without a url it does nothing."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        helpers: Helpers,
        program: str,
        check_receipts: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._helpers = helpers
        self._program = program
        self._check_receipts = check_receipts
        self._report = report
        self._timer: Timer | None = None
        self._gather: Timer | None = None
        self._failures = 0
        self._events: inotify.Queue | None = None
        self._inbox = f"{settings.paths.exchange}/inbox"
        self._again = False
        self._rest_until = 0.0  # monotonic; before it, the collector does not want to hear from us
        self.status = UplinkStatus()
        self.waiting = 0  # sealed segments without a receipt
        self._first_seal = True  # the next answer of the sealer is the first

    @property
    def configured(self) -> bool:
        return bool(self._settings.uplink.url)

    def open(self) -> None:
        if not self.configured and not os.path.exists(self._settings.uplink.collector_key):
            return  # with the key, but no network, a receipt may be carried here
        try:
            self._events = inotify.Queue()
            self._events.add(self._inbox, inotify.IN_MOVED_TO | inotify.IN_CLOSE_WRITE)
        except (Unavailable, OSError) as error:
            self._report(f"{self._inbox} cannot be watched: {error}")
            return
        self._loop.watch(self._events.fileno(), self._arrived)
        if self.configured:
            self._read_status()

    def close(self) -> None:
        if self._events is not None:
            self._loop.unwatch(self._events.fileno())
            self._events.close()
            self._events = None

    def ring(self) -> None:
        """Segments wait: let the uplink run now, unless the collector asked us to wait."""
        if not self.configured or time.monotonic() < self._rest_until:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._settings.uplink.spawn:
            started = self._helpers.start(
                "uplink", {}, lambda _message: None, self._ended, timeout_s=RUN_S, program=self._program
            )
            self._again = self._again or not started
            return
        with contextlib.suppress(OSError):
            fd = os.open(f"{self._settings.paths.runtime}/doorbell", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with open(fd, "wb") as doorbell:
                doorbell.write(str(time.time_ns()).encode())

    def sealed(self, answer: dict[str, Any]) -> None:
        """The sealer ended, be it early: what it handed out waits to be sent, and so does what an earlier run did and
        nobody sent."""
        self.waiting = answer.get("waiting", self.waiting)
        if answer.get("handed_out") or (self.waiting and self._first_seal and "error" not in answer):
            self._first_seal = False
            self.ring()

    def _ended(self, _error: str) -> None:
        """A run that we started is over; what it has to say is in its status file."""
        if self._again:
            self._again = False
            self.ring()

    def _arrived(self) -> None:
        assert self._events is not None
        names = {event.name for event in inotify.parse(self._events.read())}
        if b"status.json" in names and self.configured:
            self._read_status()
        if any(not name.startswith((b"status", b".")) for name in names) and self._gather is None:
            self._gather = self._loop.later(GATHER_S, self._receipts)

    def _receipts(self) -> None:
        self._gather = None
        self._check_receipts()

    def _read_status(self) -> None:
        said = read_status(f"{self._inbox}/status.json")
        if said is None:
            return
        self.status = said
        self._rest_until = 0.0
        if said.ok:
            self._failures = 0
            self._report("")
            if said.retry_after and self._timer is None:  # the rest of what waits is for later: its budget is spent
                self._timer = self._loop.later(said.retry_after, self._rested)
            return
        self._failures += 1
        self._report(said.error)
        first, longest = BACKOFF_S
        bound = min(longest, first * 2 ** min(self._failures, 12))
        # Full jitter keeps a fleet from knocking all at once. (`random` would load OpenSSL into the daemon.)
        wait = max(said.retry_after, 1.0 + (bound - 1.0) * int.from_bytes(os.urandom(2), "big") / 65536)
        if self._timer is not None:
            self._timer.cancel()
        if said.retry_after:
            self._rest_until = time.monotonic() + wait
        self._timer = self._loop.later(wait, self._rested)

    def _rested(self) -> None:
        self._timer = None
        self._rest_until = 0.0
        self.ring()


def read_status(path: str) -> UplinkStatus | None:
    """The uplink's own words, bounded and typed; None where there are none or they make no sense.

    The uplink talks to the network, so whatever it leaves here (a directory, a FIFO, infinity) must not end us.
    """
    try:
        words: Any = json.loads(_read_regular(path))
        last = words.get("last_sent")
        return UplinkStatus(
            bool(words["ok"]),
            str(words.get("error") or "")[:300],
            min(86_400, max(0, int(words.get("retry_after") or 0))),
            last if type(last) is int and 0 < last < TIME_MAX else None,
        )
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _read_regular(path: str) -> bytes:
    """A small file. Raises OSError, and ValueError for what is none."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a file")
        return os.read(fd, STATUS_MAX + 1)
    finally:
        os.close(fd)
