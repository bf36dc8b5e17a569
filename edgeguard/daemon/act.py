"""edgeguard-act: root, started by systemd when somebody writes to its socket, gone when it is idle.

One connection, one request, one reply, each one line of JSON:

    {"verb": "restore-file", "finding": "F-7K2M", "nonce": 17}
    {"ok": true, "state": "done", "detail": "restored from the protected copy", "retry_s": 0, "nonce": 17}

Besides the verbs of `edgeguard.remediations.TABLE` there are "undo" (take back the last act for a finding) and
"recover" (finish what a crash left, which every start does anyway; its finding is ""). Nothing else can be said:
no command, no path, no value. What they come from is in `authority`.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import stat
import struct
import sys
import time
from typing import NamedTuple

from edgeguard.daemon.authority import (
    Authority,
    act_directory,
    allowed_uids,
    manifest_lookup,
    verified_baseline,
    world,
)
from edgeguard.errors import EdgeGuardError, RemediationRefused
from edgeguard.remediations import TABLE, ActRequest, Reply, World, preflight
from edgeguard.remediations.carry import carry_out, recover, take_back
from edgeguard.remediations.client import LINE_MAX
from edgeguard.remediations.undo import INTENDED, REVERTING, UndoStore
from edgeguard.settings import DEFAULT_FILE, Settings, load

IDLE_S = 10.0  # without a request the process ends; starting it again costs about 150 ms of CPU
PEER_S = 2.0  # a peer that has connected says its line within this time
BUSY_RETRY_S = 60  # dpkg is at work: ask again
FIRST_FD = 3  # sd_listen_fds(3): SD_LISTEN_FDS_START
FINDING = re.compile(r"F-[0-9A-HJKMNP-TV-Z]{4,10}")  # Crockford's alphabet
NONCE_MAX = 2**53
PEERCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid

EXTRA_VERBS = ("undo", "recover")


class Options(NamedTuple):
    settings_file: str = DEFAULT_FILE
    socket: str = ""  # listen here ourselves; "": systemd hands the socket over
    idle_s: float = IDLE_S  # 0: never end


def main(arguments: list[str]) -> int:
    """Serve until idle. Exit code 0, or 64 for a wrong command line."""
    options = parse_options(arguments)
    if options is None:
        say("usage: edgeguard-act [--settings FILE] [--socket PATH] [--idle SECONDS]")
        return 64
    try:
        settings = load(options.settings_file)
        listener = inherited() if not options.socket else listen(options.socket)
        os.umask(0o077)
        act = Act(settings)
        act.recover()
    except EdgeGuardError as error:
        say(str(error))
        return 1
    serve(listener, act, options.idle_s)
    return 0


def parse_options(arguments: list[str]) -> Options | None:
    options = {"--settings": DEFAULT_FILE, "--socket": "", "--idle": str(IDLE_S)}
    if len(arguments) % 2:
        return None
    for name, value in zip(arguments[::2], arguments[1::2], strict=True):
        if name not in options:
            return None
        options[name] = value
    try:
        return Options(options["--settings"], options["--socket"], float(options["--idle"]))
    except ValueError:
        return None


def inherited() -> socket.socket:
    """The listening socket that systemd passes, checked to be one."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        raise RemediationRefused("no socket from systemd; start it with --socket PATH")
    listener = socket.socket(fileno=FIRST_FD)
    if listener.family != socket.AF_UNIX or listener.type & 0xF != socket.SOCK_STREAM:
        raise RemediationRefused("what systemd passed is not a stream socket of this machine")
    os.set_inheritable(FIRST_FD, False)
    return listener


def listen(path: str) -> socket.socket:
    """A socket of our own, where there is no systemd."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass  # the usual case
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen(8)
    return listener


def serve(listener: socket.socket, act: Act, idle_s: float) -> None:
    """One connection after the other; acts never run side by side."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    listener.setblocking(False)
    while poll.poll(idle_s * 1000 if idle_s else None):
        try:
            peer, _ = listener.accept()
        except OSError:
            continue  # the peer went away between poll and accept
        with peer:
            peer.settimeout(PEER_S)
            try:
                converse(peer, act)
            except OSError as error:
                say(f"a peer hung up: {error}")


def converse(peer: socket.socket, act: Act) -> None:
    """One request, one reply. A peer that may not ask gets no answer."""
    _, uid, _ = PEERCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEERCRED.size))
    if uid not in allowed_uids():
        say(f"uid {uid} may not ask for remediations")
        return
    line = read_line(peer)
    nonce = 0
    try:
        request = parse_request(line)
        nonce = request.nonce
        reply = act.answer(request)
    except EdgeGuardError as error:
        reply = Reply(ok=False, state="refused", detail=str(error))
    peer.sendall(json.dumps(reply._asdict() | {"nonce": nonce}).encode() + b"\n")


def read_line(peer: socket.socket) -> bytes:
    """Until a newline, the end, or the bound; the whole line within PEER_S."""
    data = b""
    deadline = time.monotonic() + PEER_S
    while b"\n" not in data and len(data) <= LINE_MAX:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("took too long to ask")
        peer.settimeout(left)
        chunk = peer.recv(LINE_MAX)
        if not chunk:
            break
        data += chunk
    peer.settimeout(PEER_S)
    return data


def parse_request(line: bytes) -> ActRequest:
    """A request that is exactly one. Raises RemediationRefused."""
    if len(line) > LINE_MAX or not line.endswith(b"\n"):
        raise RemediationRefused("the request is not one line in bounds")
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RemediationRefused("the request is not JSON") from error
    if not isinstance(document, dict) or set(document) != {"verb", "finding", "nonce"}:
        raise RemediationRefused("a request has verb, finding and nonce")
    verb, finding, nonce = document["verb"], document["finding"], document["nonce"]
    if not isinstance(verb, str) or (verb not in TABLE and verb not in EXTRA_VERBS):
        raise RemediationRefused("there is no such verb")
    named = isinstance(finding, str) and bool(FINDING.fullmatch(finding))
    if not named and not (verb == "recover" and finding == ""):
        raise RemediationRefused("that is not the id of a finding")
    if type(nonce) is not int or not 0 <= nonce <= NONCE_MAX:
        raise RemediationRefused("the nonce is not a number in bounds")
    return ActRequest(verb, finding, nonce)


class Act:
    """Answers requests by the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = UndoStore(os.path.join(act_directory(settings), "undo"))

    def recover(self) -> int:
        """Finish what a crash left; how many acts that were."""
        if not any(record.state in (INTENDED, REVERTING) for record in self._store.all()):
            return 0  # the usual case: do not load and verify a baseline for nothing
        found = recover(self._world(milliseconds()), self._store, milliseconds())
        for record, reply in found:
            say(f"{record.verb} {record.finding}: {reply.detail}")
        return len(found)

    def _world(self, now: int) -> World:
        """For taking back: what was done is in our own records. The baseline only tells which symlinks are known."""
        try:
            lookup = manifest_lookup(self._settings, verified_baseline(self._settings, now))
        except RemediationRefused as error:
            say(f"undo without a baseline: {error}")
            return world(self._settings)
        return world(self._settings, lookup)

    def answer(self, request: ActRequest) -> Reply:
        """Do what is asked, if the baseline, the finding and the moment allow it."""
        now = milliseconds()
        if request.verb == "recover":
            return Reply(ok=True, state="done", detail=f"{self.recover()} interrupted acts were finished")
        busy = preflight.dpkg_running("/proc", self._settings.paths.root)
        if busy:
            return Reply(ok=False, state="refused", detail=busy, retry_s=BUSY_RETRY_S)
        if request.verb == "undo":
            reply = take_back(request.finding, self._world(now), self._store, now)
        else:
            order, place = Authority(self._settings, now).order(request.verb, request.finding)
            reply = carry_out(order, place, self._store, now)
        say(f"{request.verb} {request.finding}: {reply.state}: {reply.detail}")
        return reply


def milliseconds() -> int:
    return time.time_ns() // 1_000_000


def say(text: str) -> None:
    """One line to the journal (our standard error), without control characters."""
    clean = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    print(clean, file=sys.stderr, flush=True)  # noqa: T201 - standard error is this process's log
