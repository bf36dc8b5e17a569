"""The daemon's half of the conversation with edgeguard-act: one request at a time, never waiting.

A request and a reply are one line of JSON each, on a connection of their own. Nothing is believed of the reply but
its three fields, in bounds; whatever goes wrong is a reply too, so that the caller has one path.
"""

from __future__ import annotations

import json
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from edgeguard.remediations import ActRequest, Reply

LINE_MAX = 4096  # bytes of a request or a reply
TIMEOUT_S = 60.0  # restoring 256 MiB from and to an SD card takes 50 s; more means that it hangs
WAITING_MAX = 64  # requests; beyond, the device has more wrong with it than acts can put right
DETAIL_MAX = 1024  # characters
RETRY_MAX_S = 86_400  # a day; an answer that asks for more is nonsense

OnReply = Callable[[ActRequest, Reply], None]


class Handle(Protocol):
    def cancel(self) -> None: ...


class Watcher(Protocol):
    """What is used of the daemon's loop."""

    def watch(self, fd: int, callback: Callable[[], None], *, write: bool = False) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def later(self, seconds: float, callback: Callable[[], None]) -> Handle: ...


class Client:
    """Sends requests in order; calls back with each reply."""

    def __init__(self, watcher: Watcher, path: str, timeout_s: float = TIMEOUT_S) -> None:
        self._watcher = watcher
        self._path = path
        self._timeout_s = timeout_s
        self._waiting: deque[tuple[ActRequest, OnReply]] = deque()
        self._socket: socket.socket | None = None
        self._timer: Handle | None = None
        self._buffer = b""

    def send(self, request: ActRequest, on_reply: OnReply) -> None:
        """Ask; `on_reply` is called exactly once, never before this returns."""
        if len(self._waiting) >= WAITING_MAX:
            reply = Reply(ok=False, state="failed", detail="too many acts are waiting")
            self._watcher.later(0, lambda: on_reply(request, reply))
            return
        self._waiting.append((request, on_reply))
        if len(self._waiting) == 1:
            self._watcher.later(0, self._begin)

    def close(self) -> None:
        """Forget everything; nobody is called back."""
        self._waiting.clear()
        self._hang_up()

    def _begin(self) -> None:
        if not self._waiting or self._socket is not None:
            return
        request = self._waiting[0][0]
        self._buffer = b""
        line = json.dumps(request._asdict()).encode() + b"\n"
        kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_UNIX, kind)  # may fail, too: no descriptor is left
            # AF_UNIX connects at once or says that its queue is full; the line fits any socket buffer
            self._socket.connect(self._path)
            self._socket.send(line, socket.MSG_NOSIGNAL)
        except OSError as error:
            self._finish(_trouble(f"edgeguard-act cannot be reached: {os.strerror(error.errno or 0)}"))
            return
        self._timer = self._watcher.later(self._timeout_s, lambda: self._finish(_trouble("edgeguard-act hangs")))
        self._watcher.watch(self._socket.fileno(), self._readable)

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(LINE_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            self._finish(_trouble(f"edgeguard-act hung up: {os.strerror(error.errno or 0)}"))
            return
        self._buffer += data
        if b"\n" in self._buffer:
            self._finish(parse_reply(self._buffer, self._waiting[0][0].nonce))
        elif not data or len(self._buffer) > LINE_MAX:
            self._finish(_trouble("edgeguard-act gave no answer"))

    def _finish(self, reply: Reply) -> None:
        self._hang_up()
        request, on_reply = self._waiting.popleft()
        if self._waiting:
            self._watcher.later(0, self._begin)
        on_reply(request, reply)

    def _hang_up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._watcher.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None


def parse_reply(data: bytes, nonce: int) -> Reply:
    """A reply in bounds, or a failure that says what was wrong with it."""
    try:
        document = json.loads(data.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return _trouble("edgeguard-act answered nonsense")
    if not isinstance(document, dict) or document.get("nonce") != nonce:
        return _trouble("edgeguard-act answered another request")
    ok, state, detail, retry = (document.get(name) for name in ("ok", "state", "detail", "retry_s"))
    if not isinstance(ok, bool) or state not in ("done", "refused", "failed") or not isinstance(detail, str):
        return _trouble("edgeguard-act answered nonsense")
    if type(retry) is not int or not 0 <= retry <= RETRY_MAX_S:
        return _trouble("edgeguard-act answered nonsense")
    return Reply(ok, state, detail[:DETAIL_MAX], retry)


def _trouble(detail: str) -> Reply:
    return Reply(ok=False, state="failed", detail=detail)
