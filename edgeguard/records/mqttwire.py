"""Records by MQTT: names of topics, the reply that carries a receipt, and where each packet of a stream ends. Pure.

    eg/1/<device>/up      to the collector: a CBOR sequence of segments, as the body of a POST
    eg/1/<device>/renew   to the collector: the certificate in DER that is to be renewed
    eg/1/<device>/rx      to the device: CBOR [1, of, status, retry, body]

A reply names what it answers by the first 16 bytes of its SHA-256, because MQTT 3.1.1 has nothing for that; `status`
and `retry` (seconds, 0: nothing is said) are those of HTTP, `body` is the receipt or the new certificate.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError

ROOT = "eg/1"
UP, RENEW, RX = "up", "renew", "rx"
VERSION = 1
OF_SIZE = 16
BODY_MAX = 4096  # bytes: receipts.SIZE_MAX, and a certificate has 800
REPLY_MAX = BODY_MAX + 64
RETRY_MAX = 24 * 3600  # seconds
TOPIC_MAX = 64  # letters of one of ours

_PUBACK = 0x40
_REFUSED = 0x80  # reason codes from here on are failures (MQTT 5, 2.4)
NOBODY = 0x10  # "no matching subscribers" (3.4.2.1)
_LENGTH_BYTES = 4  # of the remaining length (2.2.3 in 3.1.1, 1.5.5 in 5)


class Answer(NamedTuple):
    of: bytes  # `mark` of what is answered
    status: int
    retry_after: int | None
    body: bytes


def mark(payload: bytes) -> bytes:
    """How a reply names this payload."""
    return sha256(payload).digest()[:OF_SIZE]


def topic(device: bytes, kind: str) -> str:
    return f"{ROOT}/{device.hex()}/{kind}"


def parse_topic(text: str) -> tuple[bytes, str]:
    """Device and kind (UP or RENEW) of what came to a collector. Raises DecodeError."""
    parts = text.split("/") if len(text) <= TOPIC_MAX else []
    if len(parts) != 4 or "/".join(parts[:2]) != ROOT or parts[3] not in {UP, RENEW}:
        raise DecodeError("a topic that is none of ours")
    return device_id(parts[2]), parts[3]


def device_id(text: str) -> bytes:
    """A device's id in the one spelling that it has: 32 small hex digits. Raises DecodeError."""
    try:
        identity = bytes.fromhex(text)
    except ValueError:
        identity = b""
    if len(identity) != cose.DEVICE_ID_SIZE or identity.hex() != text:
        raise DecodeError("not a device id: expected 32 hex digits")
    return identity


def encode(answer: Answer) -> bytes:
    return cbor.encode([VERSION, answer.of, answer.status, answer.retry_after or 0, answer.body])


def decode(payload: bytes) -> Answer:
    """The reply in a payload. Raises DecodeError."""
    parts = cbor.decode(payload, depth=1, size=REPLY_MAX)
    if not isinstance(parts, list) or len(parts) != 5 or type(parts[0]) is not int or parts[0] != VERSION:
        raise DecodeError("reply: not an array of five of version 1")
    _, of, status, retry, body = parts
    if not isinstance(of, bytes) or len(of) != OF_SIZE or not isinstance(body, bytes) or len(body) > BODY_MAX:
        raise DecodeError("reply: what it answers, or its body")
    if type(status) is not int or not 100 <= status <= 599 or type(retry) is not int or retry < 0:
        raise DecodeError("reply: status or time to wait")
    return Answer(of, status, min(retry, RETRY_MAX) or None, body)


class Frames:
    """Follows a stream of MQTT packets by their lengths alone, before anybody keeps a byte of them.

    `packet_max`: bytes of one packet; `total_max`: bytes of all since `grant`. `refusal`: the reason code of the last
    PUBACK since `grant` that said no, or NOBODY (MQTT 5), else 0; a client of paho 1.6 is not told.
    """

    def __init__(self, packet_max: int, total_max: int | None = None) -> None:
        self._packet_max = packet_max
        self._total_max = total_max
        self._left = total_max or 0
        self._type = 0  # of the packet that we are in, 0: the next byte is a type
        self._length = self._digits = 0
        self._at = -1  # bytes of this packet's content that came, -1: its length is not complete
        self.refusal = 0

    def grant(self) -> None:
        """The next exchange begins: what came so far is forgotten."""
        self._left = self._total_max or 0
        self.refusal = 0

    def feed(self, data: bytes) -> None:
        """Raises DecodeError where a packet, or all of them, are larger than they may be."""
        if self._total_max is not None:
            self._left -= len(data)
            if self._left < 0:
                raise DecodeError(f"more than {self._total_max} bytes for one answer")
        at = 0
        while at < len(data):
            at += self._content(data, at) if self._at >= 0 else self._head(data[at])

    def _head(self, byte: int) -> int:
        if not self._type:
            self._type = byte or 0x100  # 0 is no packet; whoever parses it says so
            self._length = self._digits = 0
            return 1
        self._length |= (byte & 0x7F) << (7 * self._digits)
        self._digits += 1
        if self._length > self._packet_max:
            raise DecodeError(f"a packet of more than {self._packet_max} bytes")
        if byte & 0x80:
            if self._digits == _LENGTH_BYTES:
                raise DecodeError("a packet whose length does not end")
            return 1
        self._at = 0
        self._ended()
        return 1

    def _content(self, data: bytes, at: int) -> int:
        count = min(len(data) - at, self._length - self._at)
        reason = 2 - self._at  # the third byte of a PUBACK
        if self._type & 0xF0 == _PUBACK and 0 <= reason < count:
            code = data[at + reason]
            self.refusal = code if code >= _REFUSED or code == NOBODY else self.refusal
        self._at += count
        self._ended()
        return count

    def _ended(self) -> None:
        if self._at == self._length:
            self._type, self._at = 0, -1
