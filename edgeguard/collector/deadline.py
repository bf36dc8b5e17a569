"""Telling somebody outside, within a time: a server that answers a byte a minute holds nobody up."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class Undelivered(Exception):
    """It did not arrive, as far as we know. `wait_ms`: what the other side asked for."""

    def __init__(self, why: str, wait_ms: int | None = None) -> None:
        super().__init__(why)
        self.wait_ms = wait_ms


class Deadline:
    """Cuts the socket that it was given when the time is over; whoever waits on it gets an OSError then."""

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._socket: socket.socket | None = None
        self._over = False

    def guards(self, connection: socket.socket | None) -> None:
        """Of the same exchange: STARTTLS makes a second socket of the first."""
        self._socket = connection
        if self._over:
            self._cut()

    def _cut(self) -> None:
        self._over = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
