"""One collector over HTTPS with mutual TLS: send a body, get a reply, or UplinkError, whatever the other side does.

Bounded in every direction: bytes of a reply with all its headers, seconds of an exchange however it drips. No redirect
is followed, no proxy is asked, nothing is tried twice. What a connection cost on the wire is counted, for budgets.
Only this module imports ssl on the device; `Line` is the TLS connection as such, which `mqttlink` uses, too.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from types import FrameType
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from edgeguard import __version__
from edgeguard.codec import certificates
from edgeguard.errors import DecodeError, EdgeGuardError
from edgeguard.records import receipts
from edgeguard.records.clock import judged_at

POST_PATH = "/v1/segments"
CONNECT_S = 10
READ_S = 30  # between two bytes
EXCHANGE_S = 120  # for one POST and its whole reply, however it drips
RETRY_AFTER_MAX = 24 * 3600
HEADERS_MAX = 8 * 1024  # bytes of status line, headers and interim replies; the collector sends 200

_X509_EXPIRED, _X509_NOT_YET = 10, 9  # openssl x509_vfy.h
_X509_HOSTNAME, _X509_IP = 62, 64
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; we do it, see _check_times
_TCP_INFO = struct.Struct("=120xQQII")  # linux/tcp.h: tcpi_bytes_acked, _bytes_received, _segs_out, _segs_in
_PACKET = 52  # bytes of IPv4 and TCP headers with time stamps


class UplinkError(EdgeGuardError):
    """Sending failed. `name` is one word for machines, the message is for people."""

    code = "EG-HLTH-008"

    def __init__(self, name: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.retry_after = retry_after


class Target(NamedTuple):
    """Where a collector is, and what we show it."""

    url: str
    ca: str
    certificate: str  # "": nothing is shown
    key: str
    renewed: str = ""  # see `renewal`
    heard: int = 0  # ms since 1970: a moment that has passed, whatever the clock says


class Reply(NamedTuple):
    status: int
    body: bytes
    retry_after: int | None


class Line:
    """A TLS connection to a collector, or to a broker, and what it has cost on the wire."""

    def __init__(self, target: Target, host: str, port: int) -> None:
        self.place = (host, port)
        self.peer = f"{host}:{port}"
        self._target = target
        now = time.time_ns() // 1_000_000
        self.judged_at = judged_at(now, target.heard, _begins(target.ca), _begins(target.certificate))
        self._behind = self.judged_at > now
        self.context = _context(target, check_time=not self._behind)
        self._socket: ssl.SSLSocket | None = None
        self._counted = 0  # bytes of this connection that `spent` has told already
        self._closed = 0  # bytes of connections that are closed, not told yet

    def open(self) -> ssl.SSLSocket:
        """In two steps, so that a handshake that fails is counted, too. Raises UplinkError, OSError or ValueError."""
        plain = socket.create_connection(self.place, CONNECT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = self.context.wrap_socket(plain, server_hostname=self.place[0], do_handshake_on_connect=False)
        self._socket = line
        line.do_handshake()
        if self._behind and self.context.verify_mode == ssl.CERT_REQUIRED:
            self._check_times(line)
        line.settimeout(READ_S)
        return line

    def close(self) -> None:
        if self._socket is not None:
            self._closed += self._wire() - self._counted
            self._counted = 0
            self._socket.close()
            self._socket = None

    def spent(self) -> int:
        """Bytes on the wire since this was last asked, in both directions, headers of packets and of TLS included."""
        now = self._wire()
        used = self._closed + now - self._counted
        self._closed, self._counted = 0, now
        return used

    def _wire(self) -> int:
        """What the open connection has cost so far, as the kernel counts it."""
        if self._socket is None:
            return self._counted
        try:
            counted = _TCP_INFO.unpack(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
        except (OSError, struct.error):
            return self._counted
        acknowledged, received, out, came = counted
        return int(acknowledged + received + _PACKET * (out + came))

    def _check_times(self, line: ssl.SSLSocket) -> None:
        """What OpenSSL was told to leave out, at a moment that makes more sense than the clock's."""
        try:
            shown = certificates.validity(line.getpeercert(binary_form=True) or b"")
            authority = certificates.validity(certificates.der(certificates.read(self._target.ca)))
        except DecodeError as error:
            raise UplinkError("untrusted", f"{self.peer}: {error}") from error
        for valid in (shown, authority):
            if self.judged_at > valid.ends:
                raise UplinkError("certificate-expired", f"{self.peer}: its certificate has expired")
            if self.judged_at < valid.begins:
                raise UplinkError(
                    "certificate-not-yet-valid",
                    f"{self.peer}: its certificate is not valid yet; is the clock set?",
                )


class Link:
    """One connection to a collector, kept while there is something to send."""

    relayed = False  # who answers is the collector itself: TLS says so

    def __init__(self, target: Target) -> None:
        self._line = Line(target, *address(target.url))
        self.judged_at = self._line.judged_at
        self._connection: http.client.HTTPSConnection | None = None

    def room(self, most: int) -> tuple[int, int]:
        """Bytes of a body that are well sent at once, and that may be sent at all, of `most` that a collector takes."""
        return most, most

    def post(self, body: bytes | None, path: str = POST_PATH) -> Reply:
        """Send and read the reply, bounded in size and time. Raises UplinkError, whatever the other side does."""
        try:
            with deadline(EXCHANGE_S, self._line.peer):
                return self._exchange(path, body)
        except UplinkError:
            self.close()
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise named(error, self._line.peer) from error

    def get(self, path: str) -> Reply:
        """As `post`, without a body."""
        return self.post(None, path)

    def close(self) -> None:
        self._line.close()  # first: it counts what the connection cost
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def spent(self) -> int:
        """Bytes on the wire since this was last asked: see Line."""
        return self._line.spent()

    def _connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(*self._line.place, context=self._line.context)
        connection.response_class = Response
        connection.sock = self._line.open()
        self._connection = connection
        return connection

    def _exchange(self, path: str, body: bytes | None) -> Reply:
        connection = self._connection or self._connect()
        headers = {"User-Agent": f"edgeguard/{__version__}"}
        if body is None:
            connection.request("GET", path, headers=headers)
        else:
            connection.request("POST", path, body, {"Content-Type": "application/cbor-seq", **headers})
        response = connection.getresponse()
        reply = taken(response)
        if response.will_close:
            self.close()
        return reply


class _Bounded:
    """A reply's bytes, not without end: http.client alone takes 100 headers of 64 KiB, and interim replies for ever."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = HEADERS_MAX + receipts.SIZE_MAX + 1

    def readline(self, limit: int = -1) -> bytes:
        return self._count(self._file.readline(self._allowed(limit)))

    def read(self, size: int = -1) -> bytes:
        return self._count(self._file.read(self._allowed(size)))

    def close(self) -> None:
        self._file.close()

    def flush(self) -> None:
        """Nothing is written here; http.client asks when it closes a reply."""

    def _allowed(self, size: int) -> int:
        if self._left <= 0:
            raise UplinkError("oversized-reply", f"the collector's headers are larger than {HEADERS_MAX} bytes")
        return self._left if size < 0 else min(size, self._left)

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


class Response(http.client.HTTPResponse):
    """As http.client reads it, from a bounded number of bytes."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.fp = cast("Any", _Bounded(self.fp))


def taken(response: http.client.HTTPResponse) -> Reply:
    """The rest of a reply whose headers were read. Raises UplinkError, HTTPException, OSError or ValueError."""
    data = response.read(receipts.SIZE_MAX + 1)
    if len(data) > receipts.SIZE_MAX:
        raise UplinkError("oversized-reply", f"the collector's reply is larger than {receipts.SIZE_MAX} bytes")
    if response.length:  # http.client tells of an early end only when asked for everything
        raise UplinkError("bad-reply", "the collector's reply ends early")
    return Reply(response.status, data, _retry_after(response.getheader("Retry-After")))


def address(url: str, scheme: str = "https", usual: int = 443) -> tuple[str, int]:
    """Host and port of a collector's url, or of a broker's. Raises UplinkError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UplinkError("settings", f"uplink url {url!r}: {error}") from error
    if parts.scheme != scheme:
        raise UplinkError("plain-http", f"uplink url {url!r}: only https and mqtts are spoken")
    if not host or parts.path not in {"", "/"} or parts.query or parts.username:
        raise UplinkError("settings", f"uplink url {url!r}: expected {scheme}://HOST[:PORT]")
    return host, port or usual


def refusal(reply: Reply) -> UplinkError:
    """What a reply other than 200 means."""
    words = reply.body[:200].decode("ascii", "replace")
    words = "".join(letter if letter.isprintable() else "?" for letter in words).strip()
    name = "busy" if reply.status in {429, 503} else "refused"
    return UplinkError(name, f"the collector answers {reply.status}: {words}", reply.retry_after)


def fits(certificate: str, key: str) -> bool:
    """Do these two files belong together?"""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key)
    except OSError:  # SSLError among them
        return False
    return True


def _begins(path: str) -> int:
    """From when a certificate of ours is valid: that day has come, whatever the clock says. 0 where there is none."""
    try:
        return certificates.validity(certificates.der(certificates.read(path))).begins if path else 0
    except (OSError, DecodeError):
        return 0


def unverified(url: str) -> Link:
    """A connection to whoever answers there. Only for what is compared with something that came another way."""
    return Link(Target(url, "", "", ""))


def _context(target: Target, *, check_time: bool) -> ssl.SSLContext:
    """TLS 1.2 or newer, the one CA that we were given, the host's name checked, our certificate shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not target.ca:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if not check_time:
        context.verify_flags |= _NO_CHECK_TIME
    try:
        context.load_verify_locations(target.ca)
    except (OSError, ssl.SSLError) as error:
        raise UplinkError("settings", f"{target.ca}: {error}") from error
    if not target.certificate:
        return context
    try:
        context.load_cert_chain(target.certificate, target.key)
    except (OSError, ssl.SSLError) as error:
        raise UplinkError("settings", f"{target.certificate}, {target.key}: {error}") from error
    return context


def would_block(error: OSError) -> bool:
    """Is it only that there is nothing to read, or no room to write, at this moment?"""
    return isinstance(error, (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError))


def named(error: Exception, peer: str) -> UplinkError:
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
def deadline(seconds: int, peer: str) -> Iterator[None]:
    """UplinkError in this block after so long, whatever it waits for. Not an OSError: the library tries the next
    address of a name after one, and a name may have hundreds."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise UplinkError("timeout", f"{peer}: no answer in time")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
