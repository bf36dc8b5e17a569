"""Short-lived children: what is rare and heavy happens there, so that the resident daemon stays slim.

The daemon asks (a CBOR map on the child's standard input), the child answers in frames on its standard output and
ends. A child that takes too long, says nonsense or dies is a named failure, never a stop of the daemon.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from edgeguard.codec import cbor
from edgeguard.daemon.frames import Unpacker
from edgeguard.daemon.loop import Loop, Timer
from edgeguard.errors import DecodeError

OPTIMIZED = 2  # sys.flags.optimize under -OO
READ_BYTES = 256 * 1024  # a turn's share of one helper's output
REAP_S = 0.02  # between two questions whether a child has ended that closed its output, where there is no pidfd
OnMessage = Callable[[dict[str, Any]], None]
OnDone = Callable[[str], None]  # "" when it went well, else what went wrong


class Helper:
    """One running child."""

    def __init__(
        self, loop: Loop, verb: str, argv: list[str], request: dict[str, Any], *, timeout_s: float, low: bool
    ) -> None:
        self.verb = verb
        self._loop = loop
        self._unpacker = Unpacker()
        self._error = ""
        self._reaped = False
        self.on_message: OnMessage = lambda _message: None
        self.on_done: OnDone = lambda _error: None
        question = os.memfd_create("request", os.MFD_CLOEXEC)
        os.write(question, cbor.encode(request))
        os.lseek(question, 0, os.SEEK_SET)
        self._out, child_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(child_out, True)
        try:
            self.pid = os.posix_spawn(
                argv[0],
                argv,
                _environment(),
                file_actions=[(os.POSIX_SPAWN_DUP2, question, 0), (os.POSIX_SPAWN_DUP2, child_out, 1)],
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD),
            )
        except OSError:
            os.close(self._out)
            raise
        finally:
            os.close(question)
            os.close(child_out)
        if low:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self.pid, 19)
        self._pidfd = _pidfd(self.pid)
        self._timer: Timer = loop.later(timeout_s, self._too_slow)
        loop.watch(self._out, self._readable)

    def kill(self) -> None:
        if not self._reaped:  # until then the number is its own
            os.kill(self.pid, signal.SIGKILL)

    def _too_slow(self) -> None:
        self._error = "took too long and was ended"
        self.kill()

    def _readable(self) -> None:
        try:
            data = os.read(self._out, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.unwatch(self._out)
            os.close(self._out)
            self._await_end()
            return
        try:
            messages = self._unpacker.feed(data)
        except DecodeError as error:
            self._error = str(error)
            self.kill()
            return
        for message in messages:
            if isinstance(message.get("error"), str):
                self._error = message["error"]
            self.on_message(message)

    def _await_end(self) -> None:
        """It has said its last word. Where no descriptor tells that it ended, it is asked again soon."""
        if self._pidfd is not None:
            self._loop.watch(self._pidfd, self._ended)
        else:
            self._ended()

    def _ended(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            self._loop.later(REAP_S, self._ended)
            return
        self._reaped = True
        if self._pidfd is not None:
            self._loop.unwatch(self._pidfd)
            os.close(self._pidfd)
        self._timer.cancel()
        code = os.waitstatus_to_exitcode(status)
        if code and not self._error:
            self._error = f"ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"
        self.on_done(self._error)


def _pidfd(pid: int) -> int | None:
    """None where the kernel, or a filter, does not give one: it is a comfort, the child is ours without it."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _environment() -> dict[str, str]:
    """Only what a helper needs; nothing that steers Python."""
    kept = ("PATH", "LANG", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "CACHE_DIRECTORY", "TZ")
    return {name: os.environ[name] for name in kept if name in os.environ and name != "NOTIFY_SOCKET"}


class Helpers:
    """Starts helpers; at most one of a verb at a time."""

    def __init__(self, loop: Loop, program: str, settings_file: str) -> None:
        self._loop = loop
        self._program = program
        self._settings_file = settings_file
        self.running: dict[str, Helper] = {}

    def start(
        self,
        verb: str,
        request: dict[str, Any],
        on_message: OnMessage,
        on_done: OnDone,
        *,
        timeout_s: float,
        low: bool = False,
        program: str = "",
    ) -> bool:
        """Start `verb`; False when one is running already. `on_done` is called in every other case, once."""
        if verb in self.running:
            return False
        flags = "-ISOO" if sys.flags.optimize == OPTIMIZED else "-IS"  # the daemon's own: they share a cache
        argv = [sys.executable, flags, program or self._program, verb, "--settings", self._settings_file]
        try:
            helper = Helper(self._loop, verb, argv, request, timeout_s=timeout_s, low=low)
        except OSError as error:
            message = f"cannot start: {error.strerror}"
            self._loop.later(0, lambda: on_done(message))
            return True

        def done(error: str) -> None:
            self.running.pop(verb, None)
            on_done(error)

        helper.on_message, helper.on_done = on_message, done
        self.running[verb] = helper
        return True

    def stop(self) -> None:
        for helper in list(self.running.values()):
            helper.kill()
