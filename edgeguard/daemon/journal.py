"""Findings in the system's journal: structured entries by journald's native protocol.

One datagram to a socket, fields as KEY=value lines (systemd.io/JOURNAL_NATIVE_PROTOCOL). The `systemd.journal` module
does the same, but importing it loads logging (measured: 1.1 MB private memory against 0.3), and it may wait; this
never waits. Where there is no journal (a source tree, a container) the message goes to standard error.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

from edgeguard.cli.text import escape
from edgeguard.codes import message_id
from edgeguard.model import Actor, Change, Severity, Transition

SOCKET = "/run/systemd/journal/socket"
FIELD_MAX = 2048  # bytes of one value; a path has at most 4096, of which the two ends tell enough
IDENTIFIER = "edgeguard"

PRIORITY = {  # syslog levels
    Severity.CRITICAL: 2,
    Severity.HIGH: 3,
    Severity.MEDIUM: 4,
    Severity.LOW: 5,
    Severity.INFORMATIONAL: 6,
}
CLOSED = 5  # notice: a finding that is over or covered by a waiver wakes nobody

WORDS = {
    Transition.OPENED: "",
    Transition.CHANGED: "changed again: ",
    Transition.REPEATED: "again: ",
    Transition.RESOLVED: "resolved: ",
    Transition.SUPPRESSED: "waived: ",
}

Entry = Mapping[str, str]


class Journal:
    """The socket to journald, opened when first needed and again after journald was restarted."""

    def __init__(self, path: str = SOCKET, fallback: int = 2) -> None:
        self._path = path
        self._fallback = fallback
        self._socket: socket.socket | None = None
        self.lost = 0  # entries that the journal had no room for

    def send(self, entry: Entry) -> None:
        """Hand over one entry, or say its message on standard error. Never waits, never raises."""
        data = encode(entry)
        try:
            self._open().sendto(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._path)
        except BlockingIOError:
            self.lost += 1  # journald is behind; the finding itself is in the ledger and in the spool
        except OSError:
            self._say(entry)

    def trouble(self) -> str:
        """Why an entry would not arrive now, "" if it would."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            try:
                probe.connect(self._path)
            except OSError as error:
                return error.strerror or str(error)
        return ""

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        return self._socket

    def _say(self, entry: Entry) -> None:
        # standard error may be a pipe that nobody reads, or gone
        with contextlib.suppress(OSError):
            os.set_blocking(self._fallback, False)
            os.write(self._fallback, f"<{entry['PRIORITY']}>{entry['MESSAGE']}\n".encode())

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def entry(change: Change, sequence: int) -> Entry:
    """What the journal is told of a change; `sequence` is the record's number in the stream of findings."""
    finding = change.finding
    closed = change.transition in (Transition.RESOLVED, Transition.SUPPRESSED)
    subject = escape(finding.subject)
    message = f"{finding.id} {finding.code} {WORDS[change.transition]}{finding.title}: {subject}"
    fields = {
        "MESSAGE": message + ("" if closed else _by(finding.actor)),
        "MESSAGE_ID": message_id(finding.code),
        "PRIORITY": str(CLOSED if closed else PRIORITY[finding.severity]),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "EDGEGUARD_FINDING": finding.id,
        "EDGEGUARD_CODE": finding.code,
        "EDGEGUARD_SUBJECT": subject,
        "EDGEGUARD_STATE": finding.state.value,
        "EDGEGUARD_TRANSITION": change.transition.value,
        "EDGEGUARD_SEQ": str(sequence),
    }
    return fields | _actor(finding.actor)


def _actor(actor: Actor) -> dict[str, str]:
    fields = {}
    if actor.exe:
        fields["EDGEGUARD_ACTOR_EXE"] = escape(actor.exe)
    if actor.pid is not None:
        fields["EDGEGUARD_ACTOR_PID"] = str(actor.pid)
    if actor.login_uid is not None:
        fields["EDGEGUARD_LOGIN_UID"] = str(actor.login_uid)
    return fields


def _by(actor: Actor) -> str:
    if not actor.exe:
        return ""
    person = escape(actor.login_user or actor.user)
    return f" (by {escape(actor.exe)}{', ' + person if person else ''})"


def encode(entry: Entry) -> bytes:
    """The datagram. A value with a newline has its length before it; there is none, because texts are escaped."""
    parts = []
    for key, value in entry.items():
        raw = shorten(value.encode("utf-8", "backslashreplace"))
        if b"\n" in raw:
            parts.append(key.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n")
        else:
            parts.append(key.encode() + b"=" + raw + b"\n")
    return b"".join(parts)


def shorten(raw: bytes) -> bytes:
    """At most FIELD_MAX bytes: the beginning and the end, cut between characters."""
    if len(raw) <= FIELD_MAX:
        return raw
    half = FIELD_MAX // 2 - 8
    head = raw[:half].decode("utf-8", "ignore").encode()
    tail = raw[-half:].decode("utf-8", "ignore").encode()
    return head + b" ... " + tail
