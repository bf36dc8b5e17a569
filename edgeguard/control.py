"""The control socket as both sides see it: the verb table, the shape of messages, the limits; and the client's half.

JSON lines over a Unix stream socket, shaped like Varlink so that anybody with socat can talk to it:

    -> {"method": "org.edgeguard.Findings", "parameters": {"all": true}}
    <- {"parameters": {"finding": {...}}, "continues": true}
    <- {"parameters": {"open": 1, ...}}
    <- {"error": "org.edgeguard.NotPermitted", "parameters": {"message": "..."}}      (instead of the last reply)

A verb is one line in VERBS: who may use it, which parameters it takes, what it answers. The server (control_server)
checks access and parameters against this table before a handler sees anything, the CLI writes its requests by it.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

from edgeguard.errors import ControlError, DaemonSilent, DecodeError, NotPermitted

PREFIX = "org.edgeguard."
REQUEST_MAX = 64 * 1024  # bytes of a request line; the longest real one, `accept` with 64 ids, has 2 KiB
ANSWER_MAX = 4 * 1024 * 1024  # bytes of one answer line that a client takes; the daemon's own bound is 1 MiB
TIMEOUT_S = 2.0  # a daemon that has not begun to answer by then is silent: screens.md says UNKNOWN
HELPED_S = 120.0  # what a helper does (sign, verify, act) takes a slow device some seconds; then the act is in doubt
PATIENCE: Mapping[str, float | None] = {
    "Log": None,  # with follow, the first record may come tomorrow
    "Scan": None,
    "BaselineLearn": None,
    **dict.fromkeys(("Accept", "Undo", "BaselineInstall", "BaselineDiff", "BaselineHistory", "Reload"), HELPED_S),
}
"""Verb -> seconds until its first reply, None without end; all others answer from memory, within TIMEOUT_S."""
SO_SNDTIMEO_OLD = 21  # asm-generic/socket.h; takes two longs, whatever time_t is
FINDING_SHOWN = "finding document: see edgeguard.cli.jsonform.finding_document"


class Access(Enum):
    READ = "read"  # root, the daemon's own user, members of the reader or admin group
    ACT = "act"  # root, the daemon's own user, members of the admin group


class Parameter(NamedTuple):
    """One parameter of a verb. `default` None with `required` False means: may be left out and is None then."""

    type: str  # "str" "int" "bool" "strs" (list of texts)
    description: str
    default: Any = None
    required: bool = False
    low: int = 0  # for int
    high: int = 2**53  # for int: what JSON numbers carry exactly; for str: characters; for strs: items


class Verb(NamedTuple):
    access: Access
    parameters: Mapping[str, Parameter]
    answer: str  # the shape of the reply, precisely
    streams: bool = False  # several replies; all but the last have "continues": true


_FORMAT = Parameter("str", '"text" for a screen, "json" for the status document', "text", high=8)
_PROGRESS = (
    '{"progress": {"phase": str ("files", "packages", ...), "done": int, "total": int|null, "bytes": int, '
    '"eta_s": int|null}} at most twice a second, then '
)

VERBS: Mapping[str, Verb] = {
    "Status": Verb(
        Access.READ,
        {
            "width": Parameter("int", "columns of the terminal", 80, low=20, high=500),
            "height": Parameter("int", "rows of the terminal", 24, low=5, high=1000),
            "color": Parameter("bool", "use ANSI colours", False),
            "unicode": Parameter("bool", "the terminal shows UTF-8", False),
            "format": _FORMAT,
        },
        '{"code": 0|1|2|3, "text": str}: exit code and what to print as it is (render.status, or the status document '
        'as one line of JSON). "code" comes first, "text" last: the fast path of the CLI reads it without a parser.',
    ),
    "Findings": Verb(
        Access.READ,
        {"all": Parameter("bool", "also suppressed and resolved ones", False)},
        '{"finding": DOC} each, worst first, then {"open": int, "suppressed": int, "resolved": int, '
        '"overflow": {code: int}, "verdict": "OK|WARN|CRIT|UNKNOWN|LEARNING"}. DOC is a ' + FINDING_SHOWN,
        streams=True,
    ),
    "Explain": Verb(
        Access.READ,
        {"id": Parameter("str", "a finding's id or the beginning of one", required=True, high=40)},
        '{"finding": DOC, "near": [DOC, ...] (at most 5, within 5 minutes or of the same session, oldest first), '
        '"rule": {"id", "title", "source", "mode", "remediation"}|null}. Errors: NoSuchFinding, Ambiguous.',
    ),
    "Why": Verb(
        Access.READ,
        {
            "subject": Parameter(
                "str",
                "as typed: an absolute path; :PORT or PORT/tcp; a process id in digits; else a subject of any kind",
                required=True,
                high=4096,
            )
        },
        '{"answers": [WHY, ...]}: one for each kind and subject that it names (a port: every listener on it), with WHY '
        'as edgeguard.cli.jsonform.why_document makes it; for a file also "watch", see watch_document there. '
        "Error: NoSuchSubject.",
    ),
    "Log": Verb(
        Access.READ,
        {
            "lines": Parameter("int", "newest records to begin with", 50, low=0, high=10_000),
            "follow": Parameter("bool", "keep the connection and send records as they are made", False),
        },
        '{"record": {"at": ms, "stream": str, "sequence": int|null, "type": str, "severity": str|null, "text": str, '
        '"sent": bool|null, "finding": id|null}} each, oldest first, then (not with follow) {"count": int}',
        streams=True,
    ),
    "Scan": Verb(
        Access.ACT,
        {
            "quick": Parameter("bool", "do not read files again that look unchanged", False),
            "cached": Parameter(
                "bool", "read files as programs get them, past the page cache only what differs", False
            ),
        },
        _PROGRESS + '{"verdict": "OK|WARN|CRIT|UNKNOWN", "open": int, "files": int, "seconds": int}. The scan goes on '
        "in the daemon when the client leaves. Error: Busy (one is running).",
        streams=True,
    ),
    "Accept": Verb(
        Access.ACT,
        {
            "ids": Parameter("strs", "findings", required=True, high=64),
            "marks": Parameter("strs", "`mark` of each finding as it was shown; another mark: error Moved", high=64),
            "reason": Parameter("str", "why this is right; recorded with the person's name", required=True, high=500),
            "until": Parameter("int", "end in ms since the epoch; left out: no end"),
        },
        '{"accepted": [DOC, ...], "revision": int|null (of the local baseline that holds it now; null: it stands in '
        'the ledger until the next signed baseline), "undo": str (the command that takes it back)}. All or nothing. '
        "Errors: NoSuchFinding, Ambiguous, Moved, Full, InvalidParameter.",
    ),
    "Undo": Verb(
        Access.ACT,
        {
            "id": Parameter("str", "finding whose acceptance or remediation is taken back", required=True, high=40),
            "reason": Parameter("str", "recorded with the person's name", "", high=500),
        },
        '{"undone": [str, ...] (what was put back, one line each), "finding": DOC|null}. '
        "Errors: NoSuchFinding, Ambiguous, NothingToUndo, RemediationRefused, RemediationFailed.",
    ),
    "BaselineShow": Verb(
        Access.READ,
        {},
        '{"baseline": {"revision": int, "trust": "local|fleet", "signer": str, "name": str, "mode": "audit|enforce", '
        '"not_before": ms, "expires": ms|null, "rules": int, "waivers": int, "files": int, '
        '"references": {kind: int}, "digest": hex, "image": str|null (that runs, where the baseline is for it)}|null}',
    ),
    "BaselineDiff": Verb(
        Access.READ,
        {"against": Parameter("str", "a revision in digits; left out: the one before", "", high=20)},
        '{"change": {"what": "added|removed|changed", "kind": str, "subject": str, "before": {}, "after": {}}} each, '
        'then {"added": int, "removed": int, "changed": int, "from": int, "to": int}. Error: NoSuchRevision.',
        streams=True,
    ),
    "BaselineHistory": Verb(
        Access.READ,
        {},
        '{"revisions": [{"revision": int, "at": ms, "trust": str, "signer": str, "mode": str, "in_force": bool, '
        '"files": int, "note": str, "image": str|null, "waits": bool (for that image to run)}, ...] newest first, '
        '"floor": int}',
    ),
    "BaselineLearn": Verb(
        Access.ACT,
        {"reason": Parameter("str", "why; recorded with the person's name", required=True, high=500)},
        _PROGRESS
        + '{"revision": int, "files": int, "seconds": int, "trust": "local"}. Errors: Busy, NotLocal (a fleet '
        "signs for this device).",
        streams=True,
    ),
    "BaselineInstall": Verb(
        Access.ACT,
        {
            "path": Parameter("str", "absolute path of a signed baseline on this device", required=True, high=4096),
            "manifest": Parameter("str", "absolute path of its file manifest, if it has one", "", high=4096),
        },
        '{"revision": int, "previous": int|null, "signer": str, "image": str|null (that it is for), "waits": bool (it '
        'comes into force when that image runs), "again": bool (it lay here already)}. Errors: the class name of '
        "the BaselineRefused (BadSignature, OlderRevision, WrongDevice, Expired, Truncated, Corrupt, NotYetValid).",
    ),
    "Doctor": Verb(
        Access.READ,
        {},
        '{"checks": [{"level": "OK|WARN|FAIL|OFF", "name": str, "text": str, "fix": str}, ...]} in the order to show',
    ),
    "Reload": Verb(
        Access.ACT,
        {},
        '{"revision": int, "rules": int, "waivers": int}. Error: PolicyError with every problem, a line each.',
    ),
    "Version": Verb(Access.READ, {}, '{"version": str, "pid": int, "started": ms, "python": str}'),
}
"""Every verb. Times are milliseconds since the epoch, UTC. Texts from outside are escaped already (cli.text.escape)."""


# -- messages


def dump(message: Mapping[str, Any]) -> bytes:
    """One line. ASCII, so that no byte of a hostile name can end it."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def load(line: bytes) -> dict[str, Any]:
    """A JSON object, strictly: no key twice, no NaN, no depth that hurts. Raises DecodeError."""
    try:
        message = json.loads(line, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise DecodeError("expected a JSON object")
    return message


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key twice")
    return table


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


# -- the client's half


def call(
    path: str, method: str, parameters: Mapping[str, Any] | None = None, timeout: float = TIMEOUT_S
) -> Iterator[dict[str, Any]]:
    """Ask, and yield the parameters of each reply.

    `timeout` bounds connecting and the wait for the first reply (but see PATIENCE); a stream may then take as long as
    it takes.
    Raises DaemonSilent (nobody listens, or no answer in time, or it broke off), NotPermitted, ControlError.
    """
    connection = _connect(path, timeout)
    with connection:
        _send(connection, dump({"method": PREFIX + method, "parameters": dict(parameters or {})}))
        reader = _Lines(connection, PATIENCE.get(method, timeout))
        while True:
            message = _checked(reader.next())
            yield message["parameters"]
            if not message.get("continues"):
                return
            connection.settimeout(None)
            reader.deadline = None


def _connect(path: str, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # A descriptor that does not block is refused with EAGAIN as soon as the queue of the listener is full; one that
    # blocks waits its turn, and this option bounds the wait.
    wait = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, SO_SNDTIMEO_OLD, wait)
    try:
        connection.connect(path)
    except PermissionError as error:
        connection.close()
        raise NotPermitted(f"{path}: permission denied") from error
    except OSError as error:
        connection.close()
        raise DaemonSilent(f"{path}: {error.strerror or 'no answer'}") from error
    connection.settimeout(timeout)
    return connection


def _send(connection: socket.socket, line: bytes) -> None:
    try:
        connection.sendall(line)
    except TimeoutError as error:
        raise DaemonSilent("the daemon does not take the question") from error
    except OSError:
        pass  # it hung up; what it said before ("busy") is still to be read


class _Lines:
    """Lines from a socket, each with a bound, all of them within the deadline."""

    def __init__(self, connection: socket.socket, patience: float | None) -> None:
        self._connection = connection
        self._buffer = bytearray()
        self.deadline = None if patience is None else time.monotonic() + patience
        if patience is None:
            connection.settimeout(None)

    def next(self) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            if len(self._buffer) > ANSWER_MAX:
                raise DaemonSilent(f"an answer of more than {ANSWER_MAX} bytes")
            searched = len(self._buffer)
            self._buffer += self._receive()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _receive(self) -> bytes:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise DaemonSilent("no answer in time")
            self._connection.settimeout(left)
        try:
            data = self._connection.recv(65536)
        except TimeoutError as error:
            raise DaemonSilent("no answer in time") from error
        except OSError as error:
            raise DaemonSilent(f"the connection broke: {error.strerror}") from error
        if not data:
            raise DaemonSilent("the daemon hung up")
        return data


def _checked(line: bytes) -> dict[str, Any]:
    """A reply with its parameters, or the error that it is."""
    try:
        message = load(line)
    except DecodeError as error:
        raise DaemonSilent(f"an answer that is {error}") from error
    parameters = message.get("parameters", {})
    if not isinstance(parameters, dict):
        raise DaemonSilent("an answer without parameters")
    message["parameters"] = parameters
    if "error" in message:
        name = str(message["error"]).removeprefix(PREFIX)
        text = str(parameters.get("message", name))
        raise NotPermitted(text) if name == "NotPermitted" else ControlError(name, text)
    return message
