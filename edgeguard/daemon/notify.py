"""Telling systemd how we are: READY, STATUS, WATCHDOG."""

from __future__ import annotations

import contextlib
import os

from edgeguard.daemon.loop import Loop

AGAIN_S = 1.0  # after a READY that was not taken: systemd waits for it, and ends in the end who never says it


class Notify:
    """sd_notify through systemd-python; silent where nobody listens (make run, tests)."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._listening = bool(os.environ.get("NOTIFY_SOCKET"))
        self._last = ""
        micros = os.environ.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(micros) / 1e6 if micros.isdigit() and int(micros) else 0.0

    def send(self, text: str) -> bool:
        """False: it was not taken."""
        if not self._listening:
            return True
        from systemd.daemon import notify  # 1.5 MB of private memory that a run without systemd does not pay

        with contextlib.suppress(OSError):  # a listener that is gone, or deaf for now, must not end the guard
            notify(text)
            return True
        return False

    def ready(self) -> None:
        """Once, and for certain."""
        if not self.send("READY=1"):
            self._loop.later(AGAIN_S, self.ready)

    def stopping(self) -> None:
        self.send("STOPPING=1")

    def watchdog(self) -> None:
        self.send("WATCHDOG=1")

    def status(self, line: str) -> None:
        """The verdict line; told only when it changed."""
        if line != self._last:
            self._last = line
            self.send(f"STATUS={line}")
