"""One connection of the control socket and the request that is under way on it.

Nothing here blocks and nothing waits for a client: replies are delivered while the reader keeps up, and whoever lets us
wait too long is cut off.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from edgeguard.control import PREFIX, REQUEST_MAX, dump
from edgeguard.control_server.peers import Peer
from edgeguard.errors import ControlError, EdgeGuardError

LINE_S = 2.0  # seconds from the first byte of a request (or from connecting) to its end
IDLE_S = 30.0  # seconds that a connection may rest between two requests
STUCK_S = 10.0  # seconds without a single byte taken by a reader that has something waiting
OUTPUT_MAX = 256 * 1024  # bytes waiting for one reader (log --follow): beyond that it has lost the thread
STREAM_FILL = 64 * 1024  # bytes waiting up to which a stream is asked for more
STREAM_STEP = 512  # bytes that a reply counts for at least, when it could be sent at once
REPLY_MAX = 1024 * 1024  # bytes of one reply line


class Timer(Protocol):
    def cancel(self) -> None: ...


class Watcher(Protocol):
    """What the server asks of the loop. `write` waits for writability *instead of* readability."""

    def watch(self, fd: int, callback: Callable[[], None], *, write: bool = False) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def later(self, seconds: float, callback: Callable[[], None]) -> Timer: ...


class Host(Protocol):
    """What a connection asks of the server."""

    loop: Watcher
    clock: Callable[[], float]

    def dispatch(self, client: Client, line: bytes) -> Request: ...
    def next_reply(self, replies: Iterator[Mapping[str, Any]], request: Request) -> Mapping[str, Any] | None: ...
    def forget(self, fd: int) -> None: ...


class Request:
    """One question and the way to answer it, now or later. A handler keeps it as long as it likes."""

    def __init__(self, client: Client, verb: str, parameters: Mapping[str, Any]) -> None:
        self._client = client
        self._done = False
        self.verb = verb
        self.parameters = parameters  # checked: exactly those of VERBS[verb], defaults filled in
        self.peer = client.peer
        self.on_close: Callable[[], None] | None = None
        """Called once if the client leaves before the last reply (stop following, stop showing progress)."""

    @property
    def closed(self) -> bool:
        """Nothing more can be said: it was answered, or the client is gone."""
        return self._done or self._client.gone

    def reply(self, parameters: Mapping[str, Any], continues: bool = False) -> bool:
        """Answer. False: nobody listens any more (also when the reader was too slow and has been cut off)."""
        if self.closed:
            return False
        message: dict[str, Any] = {"parameters": dict(parameters)}
        if continues:
            message["continues"] = True
        return self._say(message, last=not continues)

    def stream(self, replies: Iterator[Mapping[str, Any]]) -> None:
        """Answer with all of `replies`, the last one without "continues"; each is made when the reader has room."""
        if not self.closed:
            self._client.pull(self, iter(replies))

    def fail(self, error: EdgeGuardError) -> bool:
        """Answer that it cannot be done. Errors that have no name of their own go by that of their class."""
        if self.closed:
            return False
        name = error.name if isinstance(error, ControlError) else PREFIX + type(error).__name__
        return self._say({"error": name, "parameters": {"message": str(error)}}, last=True)

    def _say(self, message: Mapping[str, Any], last: bool) -> bool:
        self._done = last
        return self._client.say(dump(message), last)


class Client:
    """One connection: bytes in, one request at a time, bytes out. Waiting requests stay in the kernel's buffer."""

    def __init__(self, server: Host, connection: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self.request: Request | None = None
        self.since = server.clock()  # when it last did something that ends a wait
        self.gone = False
        self._server = server
        self._connection = connection
        self._fd = connection.fileno()
        self._input = bytearray()
        self._output = bytearray()
        self._stream: Iterator[Mapping[str, Any]] | None = None
        self._held: Mapping[str, Any] | None = None  # the reply after which the stream may turn out to be over
        self._ended = False  # it will send no more
        self._served = False  # at least one request was answered
        self._watch()

    @property
    def idle(self) -> bool:
        return self.request is None and not self._output and not self._input

    # -- in

    def readable(self) -> None:
        try:
            data = self._connection.recv(REQUEST_MAX)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self._ended = True
        elif not self._input:
            self.since = self._server.clock()
        self._input += data
        self._work()

    def _work(self) -> None:
        """Serve one complete line if nothing is under way. One: the next waits its turn behind everybody else's."""
        if self.gone or self.request is not None or self._output:
            self._watch()
            return
        end = self._input.find(b"\n", 0, REQUEST_MAX + 1)
        if end >= 0:
            line = bytes(self._input[:end])
            del self._input[: end + 1]
            self._server.dispatch(self, line)
        elif len(self._input) > REQUEST_MAX:
            self.refuse(ControlError("TooLong", f"a request has at most {REQUEST_MAX} bytes"))
        self._watch()

    def refuse(self, error: ControlError) -> None:
        """Say why and hang up: what follows on this connection cannot be trusted to begin with a request."""
        self.request = None
        self._output += dump({"error": error.name, "parameters": {"message": str(error)}})
        self._input.clear()
        self._flush()
        self.close()

    # -- out

    def say(self, line: bytes, last: bool) -> bool:
        """Queue a reply and send what fits. False: the client is gone, now at the latest."""
        if len(line) > REPLY_MAX:
            line = dump({"error": PREFIX + "TooLong", "parameters": {"message": "the answer is too long"}})
            last = True
        if last:
            self.request, self._stream, self._held = None, None, None
            self._served = True
        if not self._output:
            self.since = self._server.clock()
        self._output += line
        self._flush()
        if not last and len(self._output) > OUTPUT_MAX:
            self.close()
        self._watch()
        return not self.gone

    def pull(self, request: Request, replies: Iterator[Mapping[str, Any]]) -> None:
        self._stream = replies
        self._held = self._server.next_reply(replies, request)
        if self._held is None and not request.closed:
            request.reply({})
        self._watch()

    def _fill(self) -> None:
        """Ask the stream for some more: the reader has room, and others shall have their turn soon."""
        made = 0
        while self._stream is not None and self._held is not None and made < STREAM_FILL:
            request = self.request
            if request is None or self.gone:
                return
            reply, self._held = self._held, self._server.next_reply(self._stream, request)
            before = len(self._output)
            request.reply(reply, continues=self._held is not None)
            made += max(len(self._output) - before, STREAM_STEP)

    def _writable(self) -> None:
        self._flush()
        if len(self._output) < STREAM_FILL:
            self._fill()
        self._work()

    def _flush(self) -> None:
        while self._output:
            try:
                sent = self._connection.send(self._output)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # it hung up
                self.close()
                return
            del self._output[:sent]
            self.since = self._server.clock()

    # -- waiting

    def _watch(self) -> None:
        """Wait for what can happen next: room to write; or, when nothing is owed, the next request (or the end)."""
        if self.gone:
            return
        waiting = self.request is None and b"\n" in self._input
        if self._output or self._stream is not None or waiting:
            self._server.loop.watch(self._fd, self._writable, write=True)
        elif self._ended and (self.request is None or self._hung_up()):
            self.close()
        elif self._ended or len(self._input) > REQUEST_MAX:
            self._server.loop.unwatch(self._fd)  # an ended reader is always readable: do not spin until the answer
        else:
            self._server.loop.watch(self._fd, self.readable)

    def _hung_up(self) -> bool:
        """Did the peer close both directions, not just end its questions?"""
        poll = select.poll()
        poll.register(self._fd, 0)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def check(self, now: float) -> None:
        """Whoever lets us wait too long is cut off."""
        waited = now - self.since
        if self._output or self._stream is not None:
            if waited > STUCK_S:
                self.close()
        elif self._ended:
            self._watch()
        elif self.request is None and waited > (IDLE_S if self._served and not self._input else LINE_S):
            self.refuse(ControlError("TimedOut", f"a request must be complete within {LINE_S:.0f} s"))

    def close(self) -> None:
        if self.gone:
            return
        self.gone = True
        self._server.forget(self._fd)
        self._connection.close()
        request, self.request = self.request, None
        self._stream = None
        if request is not None and request.on_close is not None:
            request.on_close()
