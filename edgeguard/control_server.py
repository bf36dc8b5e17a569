"""The daemon's half of the control socket: clients that may be slow, many, rude or not allowed, in one epoll loop.

Nothing here blocks and nothing here waits for a client. What a verb does is a handler of the daemon's; this file
takes a line, checks access and parameters by control.VERBS, calls the handler, and delivers replies while the reader
keeps up. The shape of messages is in `control`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from edgeguard.control import PREFIX, REQUEST_MAX, VERBS, Access, Parameter, dump, load
from edgeguard.errors import ControlError, DecodeError, EdgeGuardError, NotPermitted

CLIENTS_MAX = 16  # connections at a time; more are told "busy". A person has one or two
STREAMS_MAX = 12  # clients with a request under way (log --follow, scan); the rest is for short questions
LINE_S = 2.0  # seconds from the first byte of a request (or from connecting) to its end
IDLE_S = 30.0  # seconds that a connection may rest between two requests
STUCK_S = 10.0  # seconds without a single byte taken by a reader that has something waiting
OUTPUT_MAX = 256 * 1024  # bytes waiting for one reader (log --follow): beyond that it has lost the thread
STREAM_FILL = 64 * 1024  # bytes waiting up to which a stream is asked for more
STREAM_STEP = 512  # bytes that a reply counts for at least, when it could be sent at once
REPLY_MAX = 1024 * 1024  # bytes of one reply line
BACKLOG = 64  # connections the kernel keeps for us between two turns of the loop
ACCEPTS = 32  # connections taken in one callback, so that a flood of them cannot hold the loop
CHECK_S = 1.0  # between looks at the clocks above, only while somebody is connected
GROUPS_MAX = 1024  # bytes of SO_PEERGROUPS that Python's getsockopt reads: 256 groups
SO_PEERGROUPS = 59  # asm-generic/socket.h; not in the socket module

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_NO_LOGIN = 2**32 - 1


class Timer(Protocol):
    def cancel(self) -> None: ...


class Watcher(Protocol):
    """What the server asks of the loop. `write` waits for writability *instead of* readability."""

    def watch(self, fd: int, callback: Callable[[], None], *, write: bool = False) -> None: ...
    def unwatch(self, fd: int) -> None: ...
    def later(self, seconds: float, callback: Callable[[], None]) -> Timer: ...


class Peer(NamedTuple):
    """Who asks, as the kernel says. `pid` is for information only: it may be another process by now."""

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    login_uid: int | None = None  # so that `sudo edgeguard accept` is recorded under the person's name


class Rights(NamedTuple):
    """Whom the two kinds of verbs are for; group ids are looked up by the wiring. -1: there is no such group."""

    owner: int = 0  # the daemon's own uid
    readers: int = -1
    admins: int = -1

    def allows(self, peer: Peer, access: Access) -> bool:
        if peer.uid in {0, self.owner}:
            return True
        mine = {peer.gid, *peer.groups}
        if self.admins >= 0 and self.admins in mine:
            return True
        return access is Access.READ and self.readers >= 0 and self.readers in mine


class Request:
    """One question and the way to answer it, now or later. A handler keeps it as long as it likes."""

    def __init__(self, client: _Client, verb: str, parameters: Mapping[str, Any]) -> None:
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


Handler = Callable[[Request], None]


class Server:
    """Listens at `path` and hands requests to `handlers` (verb -> function)."""

    def __init__(
        self,
        path: str,
        loop: Watcher,
        handlers: Mapping[str, Handler],
        rights: Rights,
        on_bug: Callable[[str, Exception], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        identify: Callable[[socket.socket], Peer] | None = None,
    ) -> None:
        self.loop = loop
        self.handlers = handlers
        self.rights = rights
        self.clock = clock
        self.refused = 0  # connections told "busy"
        self.denied = 0  # requests that were not permitted
        self._on_bug = on_bug
        self._identify = identify or peer_of
        self._clients: dict[int, _Client] = {}
        self._timer: Timer | None = None
        self._listener = listen(path, rights)
        loop.watch(self._listener.fileno(), self._accept)

    @property
    def clients(self) -> int:
        return len(self._clients)

    def close(self) -> None:
        """Stop listening and drop everybody. The socket file goes with its directory."""
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients.values()):
            client.close()
        if self._timer:
            self._timer.cancel()
            self._timer = None

    # -- connections

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE}:  # no descriptor left: make one free or wait
                    if self._evict():
                        continue
                    self.loop.unwatch(self._listener.fileno())  # it stays readable: do not spin
                    self.loop.later(CHECK_S, self._listen_again)
                    return
                if error.errno in {errno.ECONNABORTED, errno.EINTR}:
                    continue
                raise
            self._admit(connection)

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.watch(self._listener.fileno(), self._accept)

    def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if len(self._clients) >= CLIENTS_MAX and not self._evict():
            self.refused += 1
            _last_word(connection, ControlError("Busy", f"{CLIENTS_MAX} clients are being served; try again"))
            return
        try:
            peer = self._identify(connection)
        except OSError:  # it is gone already
            connection.close()
            return
        client = _Client(self, connection, peer)
        self._clients[connection.fileno()] = client
        if self._timer is None:
            self._timer = self.loop.later(CHECK_S, self._check)

    def _evict(self) -> bool:
        """Drop whoever has been silent longest and waits for nothing: idle connections cannot starve a person.

        What somebody has sent may still lie in the kernel, so each is read once more before it is called silent.
        """
        for client in sorted(self._clients.values(), key=lambda client: client.since):
            if client.idle:
                client.readable()
            if client.idle:
                client.close()
            if len(self._clients) < CLIENTS_MAX:
                return True
        return False

    def forget(self, fd: int) -> None:
        self.loop.unwatch(fd)
        self._clients.pop(fd, None)

    def _check(self) -> None:
        now = self.clock()
        for client in list(self._clients.values()):
            client.check(now)
        self._timer = self.loop.later(CHECK_S, self._check) if self._clients else None

    # -- requests

    def dispatch(self, client: _Client, line: bytes) -> Request:
        """A line becomes a request, and the request is handled or refused."""
        request = Request(client, "", {})
        client.request = request
        try:
            request.verb, given = _parse(line)
            verb = VERBS.get(request.verb)
            handler = self.handlers.get(request.verb)
            if verb is None or handler is None:
                raise ControlError("MethodNotFound", f"no verb {request.verb[:80]!r}")
            if not self.rights.allows(request.peer, verb.access):
                self.denied += 1
                raise NotPermitted(_who_may(verb.access))
            request.parameters = check_parameters(verb.parameters, given)
            if verb.streams and sum(1 for other in self._clients.values() if other.request) > STREAMS_MAX:
                raise ControlError("Busy", f"{STREAMS_MAX} clients are following already")
            handler(request)
        except DecodeError as error:
            client.refuse(ControlError("InvalidRequest", str(error)))
        except EdgeGuardError as error:
            request.fail(error)
        except Exception as error:  # one request is the unit of work: a bug in a handler must not end the watch
            if self._on_bug is None:
                raise
            self._on_bug(request.verb, error)
            request.fail(ControlError("InternalError", "this is a bug of EdgeGuard; the journal has the details"))
        return request

    def next_reply(self, replies: Iterator[Mapping[str, Any]], request: Request) -> Mapping[str, Any] | None:
        """One step of a stream, with the same care for errors as `dispatch`; None at its end."""
        try:
            return next(replies, None)
        except EdgeGuardError as error:
            request.fail(error)
        except Exception as error:  # as in dispatch
            if self._on_bug is None:
                raise
            self._on_bug(request.verb, error)
            request.fail(ControlError("InternalError", "this is a bug of EdgeGuard; the journal has the details"))
        return None


class _Client:
    """One connection: bytes in, one request at a time, bytes out. Waiting requests stay in the kernel's buffer."""

    def __init__(self, server: Server, connection: socket.socket, peer: Peer) -> None:
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


# -- small parts


def listen(path: str, rights: Rights) -> socket.socket:
    """The socket file: 0660, of the reader group where there is one. A stale one of ours is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    old = os.umask(0o777)  # nobody gets in between bind and chmod
    try:
        listener.bind(path)
    finally:
        os.umask(old)
    if rights.readers >= 0:
        with contextlib.suppress(PermissionError):  # a daemon of an ordinary user: only that user asks
            os.chown(path, -1, rights.readers)
    os.chmod(path, 0o660)
    listener.listen(BACKLOG)
    return listener


def peer_of(connection: socket.socket) -> Peer:
    """What the kernel noted when the peer connected."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid, gid, _groups_of(connection), _login_uid(pid))


def _groups_of(connection: socket.socket) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_MAX)
    except OSError:  # ERANGE: in more groups than we read; then only the primary one counts
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _login_uid(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/loginuid", "rb") as file:
            uid = int(file.read(16))
    except (OSError, ValueError):
        return None
    return None if uid == _NO_LOGIN else uid


def _parse(line: bytes) -> tuple[str, dict[str, Any]]:
    message = load(line)
    method, given = message.get("method"), message.get("parameters", {})
    if not isinstance(method, str) or not isinstance(given, dict):
        raise DecodeError('expected {"method": text, "parameters": object}')
    if extra := message.keys() - {"method", "parameters", "more"}:
        raise DecodeError(f"unknown key {min(extra)[:80]!r}")
    return method.removeprefix(PREFIX), given


def check_parameters(declared: Mapping[str, Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a verb with its defaults; what is not declared, or not of its type, is refused."""
    if unknown := given.keys() - declared.keys():
        raise ControlError("InvalidParameter", f"unknown parameter {min(unknown)[:80]!r}")
    checked: dict[str, Any] = {}
    for name, parameter in declared.items():
        value = given.get(name)
        if value is None:
            if parameter.required:
                raise ControlError("InvalidParameter", f"{name} is needed: {parameter.description}")
            checked[name] = parameter.default
        elif _fits(parameter, value):
            checked[name] = value
        else:
            raise ControlError("InvalidParameter", f"{name}: expected {_expected(parameter)}")
    return checked


def _fits(parameter: Parameter, value: Any) -> bool:
    if parameter.type == "bool":
        return isinstance(value, bool)
    if parameter.type == "int":
        return type(value) is int and parameter.low <= value <= parameter.high
    if parameter.type == "strs":
        if not isinstance(value, list) or len(value) > parameter.high:
            return False
        return all(isinstance(item, str) and _is_text(item, 4096) for item in value)
    return isinstance(value, str) and _is_text(value, parameter.high)


def _is_text(value: str, limit: int) -> bool:
    """Short enough, and something that a file system or a terminal can hold: JSON may spell half a character."""
    try:
        return len(value) <= limit and len(os.fsencode(value)) >= 0
    except UnicodeEncodeError:
        return False


def _expected(parameter: Parameter) -> str:
    if parameter.type == "int":
        return f"a whole number from {parameter.low} to {parameter.high}"
    if parameter.type == "strs":
        return f"a list of at most {parameter.high} texts"
    return "true or false" if parameter.type == "bool" else f"a text of at most {parameter.high} characters"


def _who_may(access: Access) -> str:
    if access is Access.ACT:
        return "only root and members of group edgeguard-admin may do this"
    return "only root and members of group edgeguard or edgeguard-admin may ask"


def _last_word(connection: socket.socket, error: ControlError) -> None:
    with contextlib.suppress(OSError):
        connection.send(dump({"error": error.name, "parameters": {"message": str(error)}}))
    connection.close()
