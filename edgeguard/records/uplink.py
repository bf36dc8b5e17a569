"""`edgeguard-uplink`: sends sealed segments, brings back receipts, and exits when nothing waits.

Its own user, no capability, no key that signs anything: it reads the outbox and writes the inbox. It cannot verify a
receipt; the sealer does, before anything is deleted. What it needs to tell the daemon is in inbox/status.json: how it
went, what was refused, when a retry makes sense. When to try again is the daemon's decision.
Only this module imports ssl on the device.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import sys
import time
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from hashlib import sha256
from types import FrameType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from edgeguard import __version__
from edgeguard.codec import cose
from edgeguard.errors import DecodeError, EdgeGuardError, SegmentRefused, SettingsError
from edgeguard.records import outbox, receipts, registry, wire
from edgeguard.records.outbox import Name
from edgeguard.records.receipts import Receipt
from edgeguard.settings import DEFAULT_FILE, Settings, load

POST_PATH = "/v1/segments"
BODY_MAX = 256 * 1024  # bytes of one POST; the collector takes no more
CONNECT_S = 10
READ_S = 30  # between two bytes
EXCHANGE_S = 120  # for one POST and its whole reply, however it drips
RETRY_AFTER_MAX = 24 * 3600
ROUNDS_MAX = 10_000  # POSTs in one run: 2.5 GB, far beyond any quota; a loop that never ends would be our bug
STATUS_MAX = 4096  # bytes of status.json: the daemon reads no more
REFUSED_SHOWN = 16
ERROR_MAX = 300  # letters

EX_TEMPFAIL = 75  # sysexits.h: something waits and could not be sent

_X509_EXPIRED, _X509_NOT_YET = 10, 9  # openssl x509_vfy.h
_X509_HOSTNAME, _X509_IP = 62, 64


class UplinkError(EdgeGuardError):
    """Sending failed. `name` is one word for machines, the message is for people."""

    code = "EG-HLTH-008"

    def __init__(self, name: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.retry_after = retry_after


class Reply(NamedTuple):
    status: int
    body: bytes
    retry_after: int | None


class Collector:
    """One connection to the collector, kept while there is something to send."""

    def __init__(self, settings: Settings) -> None:
        self._host, self._port = _address(settings.uplink.url)
        self._context = _context(settings)
        self._connection: http.client.HTTPSConnection | None = None

    def post(self, body: bytes) -> Reply:
        """Send and read the reply, bounded in size and time. Raises UplinkError, whatever the other side does."""
        with _deadline(EXCHANGE_S):
            try:
                return self._exchange(body)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.close()
                raise _named(error, f"{self._host}:{self._port}") from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(self, body: bytes) -> Reply:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_S, context=self._context
            )
            self._connection.connect()
            self._connection.sock.settimeout(READ_S)
        headers = {"Content-Type": "application/cbor-seq", "User-Agent": f"edgeguard/{__version__}"}
        self._connection.request("POST", POST_PATH, body, headers)
        response = self._connection.getresponse()
        data = response.read(receipts.SIZE_MAX + 1)
        if len(data) > receipts.SIZE_MAX:
            self.close()
            raise UplinkError("oversized-reply", f"the collector's reply is larger than {receipts.SIZE_MAX} bytes")
        if response.will_close:
            self.close()
        return Reply(response.status, data, _retry_after(response.getheader("Retry-After")))


class Uplink:
    """One run over outbox and inbox."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._outbox = os.path.join(settings.paths.exchange, "outbox")
        self._inbox = os.path.join(settings.paths.exchange, "inbox")
        self._done: set[Name] = set()  # taken or refused in this run: not sent again in it
        self._told: set[int] = set()  # epochs whose statements were sent in this run
        self._refused: dict[str, str] = {}
        self._sent = 0
        self._last_sent = self._last_time()

    def run(self) -> int:
        """Send until nothing waits. Exit code: 0, or EX_TEMPFAIL when something does."""
        try:
            self._drain()
        except UplinkError as error:
            self._report(error)
            return EX_TEMPFAIL
        self._report(None)
        return 0

    def _drain(self) -> None:
        if not self._waiting():
            return
        collector = Collector(self._settings)
        try:
            for _ in range(ROUNDS_MAX):
                batch = self._batch(self._waiting())
                if not batch:
                    return
                self._send(collector, batch)
        finally:
            collector.close()

    def _send(self, collector: Collector, batch: dict[Name, bytes]) -> None:
        # The sealer may have named a segment a moment ago. If a power cut took that name after it was sent, another
        # segment would be sealed under the same number, and the collector would see a device with two histories.
        _settle(self._outbox)
        statements = self._statements(batch)
        reply = collector.post(b"".join([*statements.values(), *batch.values()]))
        if reply.status != 200:
            raise _refusal(reply)
        try:
            receipt = receipts.unverified(reply.body)
        except DecodeError as error:
            raise UplinkError("bad-reply", f"the collector's reply is no receipt: {error}") from error
        _replace(os.path.join(self._inbox, "receipt.egr"), reply.body)
        reasons = {refusal.hash: refusal.reason for refusal in receipt.refused}
        self._told.update(statements)
        for name, data in batch.items():
            self._done.add(name)
            reason = reasons.get(sha256(data).digest())
            if reason is None:
                self._sent += 1
            else:
                self._refused[name.file] = reason
        self._last_sent = time.time_ns() // 1_000_000

    def _waiting(self) -> list[Name]:
        """What is to be sent, in the order in which it is."""
        receipt = self._receipt()
        names = [
            name
            for name in outbox.listing(self._outbox)
            if name not in self._done and not (receipt is not None and receipt.holds(name))
        ]
        return in_order(names)

    def _batch(self, names: Iterable[Name]) -> dict[Name, bytes]:
        batch: dict[Name, bytes] = {}
        epochs: set[int] = set()
        size = outbox.EPOCH_MAX  # the statement of the newest epoch, which every batch may carry
        for name in names:
            try:
                data = outbox.read(self._outbox, name)
            except FileNotFoundError:  # the sealer has just deleted or set it aside
                continue
            except (OSError, SegmentRefused) as error:
                self._done.add(name)
                self._refused[name.file] = f"cannot be read: {error}"
                continue
            number = _epoch(data)
            size += len(data) + (outbox.EPOCH_MAX if number not in epochs else 0)
            if batch and size > BODY_MAX:
                break
            if not data.startswith(b"\xd2"):  # would spoil the whole sequence; the sealer looks at it
                self._done.add(name)
                self._refused[name.file] = "not a segment"
                continue
            batch[name] = data
            epochs.add(number)
        return batch

    def _statements(self, batch: dict[Name, bytes]) -> dict[int, bytes]:
        """Who vouches for the keys of these segments, and for the key that comes next: it names where they end."""
        receipt = self._receipt()
        known = self._told.union(receipt.epochs if receipt is not None else ())
        wanted = {*outbox.epochs(self._outbox)[-1:], *map(_epoch, batch.values())}
        statements = {}
        for number in sorted(wanted - known):
            try:
                data = outbox.read_epoch(self._outbox, number)
            except (OSError, SegmentRefused):  # gone with its segments, or damaged: the sealer looks at it
                continue
            if data.startswith(b"\xd2"):
                statements[number] = data
        return statements

    def _receipt(self) -> Receipt | None:
        try:
            return receipts.unverified(receipts.read(os.path.join(self._inbox, "receipt.egr")))
        except (OSError, DecodeError):
            return None

    def _last_time(self) -> int | None:
        try:
            status = json.loads(receipts.read(os.path.join(self._inbox, "status.json"), STATUS_MAX))
        except (OSError, ValueError, RecursionError, DecodeError):
            return None
        last = status.get("last_sent") if isinstance(status, dict) else None
        return last if type(last) is int else None

    def _report(self, error: UplinkError | None) -> None:
        status: dict[str, Any] = {
            "v": 1,
            "ok": error is None,
            "name": error.name if error else "",
            "error": str(error)[:ERROR_MAX] if error else "",
            "retry_after": error.retry_after if error else None,
            "waiting": len(self._waiting()),
            "sent": self._sent,
            "last_sent": self._last_sent,
            "refused": [
                {"name": name, "reason": reason[: receipts.REASON_MAX]}
                for name, reason in sorted(self._refused.items())[:REFUSED_SHOWN]
            ],
            "at": time.time_ns() // 1_000_000,
        }
        _replace(os.path.join(self._inbox, "status.json"), json.dumps(status).encode())


def _epoch(data: bytes) -> int:
    """In which epoch a segment says that it was sealed; 0: it does not say."""
    try:
        return wire.decode_header(cose.parse1(data).payload).epoch
    except (DecodeError, SegmentRefused):
        return 0


def in_order(names: list[Name]) -> list[Name]:
    """Findings, oldest first; then the newest of security, for that is what an attack in progress looks like; then
    the backlog, oldest first, security before metrics before verbose at the same age of number."""
    findings = [name for name in names if name.stream == registry.Stream.FINDINGS]
    security = [name for name in names if name.stream == registry.Stream.SECURITY]
    newest = security[-1:]
    backlog = [name for name in names if name.stream != registry.Stream.FINDINGS and name not in newest]
    return [*findings, *newest, *sorted(backlog, key=lambda name: (name.stream, name.sequence))]


def main(argv: list[str]) -> int:
    """`edgeguard-uplink [uplink] [--settings FILE]`; the daemon, where it starts us itself, names the verb."""
    path = DEFAULT_FILE
    argv = argv[1:] if argv[:1] == ["uplink"] else argv
    if argv[:1] == ["--settings"] and len(argv) == 2:
        path = argv[1]
    elif argv:
        sys.stderr.write("usage: edgeguard-uplink [--settings FILE]\n")
        return 64
    try:
        settings = load(path)
    except SettingsError as error:
        sys.stderr.write(f"edgeguard-uplink: {error!s}\n")
        return 64
    if not settings.uplink.url:
        sys.stderr.write("edgeguard-uplink: no [uplink] url in the settings: records stay on this device\n")
        return 0
    try:
        return Uplink(settings).run()
    except OSError as error:  # outbox or inbox: nothing was lost, but somebody must look at the permissions
        sys.stderr.write(f"edgeguard-uplink: {error.filename or ''}: {error.strerror or error}\n")
        return EX_TEMPFAIL


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UplinkError("settings", f"uplink url {url!r}: {error}") from error
    if parts.scheme != "https":
        raise UplinkError("plain-http", f"uplink url {url!r}: only https is spoken")
    if not host or parts.path not in {"", "/"} or parts.query or parts.username:
        raise UplinkError("settings", f"uplink url {url!r}: expected https://HOST[:PORT]")
    return host, port or 443


def _context(settings: Settings) -> ssl.SSLContext:
    """TLS 1.2 or newer, the one CA that we were given, the host's name checked, our certificate shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    uplink = settings.uplink
    try:
        context.load_verify_locations(uplink.ca)
    except (OSError, ssl.SSLError) as error:
        raise UplinkError("settings", f"{uplink.ca}: {error}") from error
    try:
        context.load_cert_chain(uplink.certificate, uplink.key)
    except (OSError, ssl.SSLError) as error:
        raise UplinkError("settings", f"{uplink.certificate}, {uplink.key}: {error}") from error
    return context


def _named(error: Exception, peer: str) -> UplinkError:
    """What went wrong between us and the collector, under a name that a person can act on."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _X509_EXPIRED:
            return UplinkError("certificate-expired", f"{peer}: its certificate has expired")
        if error.verify_code == _X509_NOT_YET:
            return UplinkError(
                "certificate-not-yet-valid", f"{peer}: its certificate is not valid yet; is the clock set?"
            )
        if error.verify_code in {_X509_HOSTNAME, _X509_IP}:
            return UplinkError("wrong-name", f"{peer}: its certificate is for another name")
        return UplinkError("untrusted", f"{peer}: its certificate is not signed by our CA ({error.verify_message})")
    if isinstance(error, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(error.reason):
        return UplinkError("plain-http", f"{peer}: does not speak TLS")
    if isinstance(error, ssl.SSLError):
        return UplinkError("tls", f"{peer}: TLS: {error.reason or error}")
    if isinstance(error, TimeoutError):
        return UplinkError("timeout", f"{peer}: no answer in time")
    if isinstance(error, OSError):
        return UplinkError("unreachable", f"{peer}: {error.strerror or error}")
    return UplinkError("bad-reply", f"{peer}: not an HTTP reply: {type(error).__name__}")


def _refusal(reply: Reply) -> UplinkError:
    words = reply.body[:200].decode("ascii", "replace")
    words = "".join(letter if letter.isprintable() else "?" for letter in words).strip()
    name = "busy" if reply.status in {429, 503} else "refused"
    return UplinkError(name, f"the collector answers {reply.status}: {words}", reply.retry_after)


def _retry_after(value: str | None) -> int | None:
    """Seconds, from either form of the header (RFC 9110, 10.2.3); nonsense is as if it were not there."""
    if value is None or len(value) > 64:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(int(value), RETRY_AFTER_MAX)
    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0, int(seconds)), RETRY_AFTER_MAX)


@contextlib.contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    """TimeoutError in this block after so long, whatever it waits for."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _settle(directory: str) -> None:
    """What is seen in a directory now is there after a power cut, too. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _replace(path: str, data: bytes) -> None:
    """Write a file as a whole, also for who reads it after a power cut: an empty receipt would be a finding. That its
    name is durable nobody needs: the collector only sends a receipt again."""
    directory, _, name = path.rpartition("/")
    temporary = f"{directory}/.{name}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    os.fchmod(fd, 0o644)  # whatever the umask is: the sealer is another user
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    os.replace(temporary, path)
