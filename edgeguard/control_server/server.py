"""Clients that may be slow, many, rude or not allowed: connections are taken, and each line becomes a request.

What a verb does is a handler of the daemon's; this file checks access and parameters by control.VERBS and calls it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgeguard.control import VERBS, dump
from edgeguard.control_server.client import Client, Request, Timer, Watcher
from edgeguard.control_server.parameters import check_parameters, parse
from edgeguard.control_server.peers import Peer, Rights, listen, peer_of, who_may
from edgeguard.errors import ControlError, DecodeError, EdgeGuardError, NotPermitted

CLIENTS_MAX = 16  # connections at a time; more are told "busy". A person has one or two
STREAMS_MAX = 12  # clients with a request under way (log --follow, scan); the rest is for short questions
ACCEPTS = 32  # connections taken in one callback, so that a flood of them cannot hold the loop
CHECK_S = 1.0  # between looks at the clocks of `client`, only while somebody is connected

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
        self._clients: dict[int, Client] = {}
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
        client = Client(self, connection, peer)
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

    def dispatch(self, client: Client, line: bytes) -> Request:
        """A line becomes a request, and the request is handled or refused."""
        request = Request(client, "", {})
        client.request = request
        try:
            request.verb, given = parse(line)
            verb = VERBS.get(request.verb)
            handler = self.handlers.get(request.verb)
            if verb is None or handler is None:
                raise ControlError("MethodNotFound", f"no verb {request.verb[:80]!r}")
            if not self.rights.allows(request.peer, verb.access):
                self.denied += 1
                raise NotPermitted(who_may(verb.access))
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


def _last_word(connection: socket.socket, error: ControlError) -> None:
    with contextlib.suppress(OSError):
        connection.send(dump({"error": error.name, "parameters": {"message": str(error)}}))
    connection.close()
