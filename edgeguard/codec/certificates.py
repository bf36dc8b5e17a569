"""X.509, as little as a device needs: a request for a certificate, from when until when one is valid, whose it is.

The times and the name are read by a small DER reader: the uplink, which has to know when to renew and who it is, does
without cryptography.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import NamedTuple

from edgeguard.errors import DecodeError

PEM_MAX = 16 * 1024  # bytes; one of ours has 800
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_SET, _OID = 0x31, 0x06
_COMMON_NAME = b"\x55\x04\x03"  # 2.5.4.3
_TEXTS = (0x0C, 0x13)  # UTF8String, PrintableString


class Validity(NamedTuple):
    """Milliseconds since 1970."""

    begins: int
    ends: int

    def holds(self, now: int) -> bool:
        return self.begins <= now <= self.ends

    def due(self, now: int) -> bool:
        """Is it time to renew: is less than a third of its life left?"""
        return now > self.ends - (self.ends - self.begins) // 3


def der(pem: bytes) -> bytes:
    """The first certificate of a PEM text. Raises DecodeError."""
    _, begin, rest = pem[:PEM_MAX].partition(_BEGIN)
    body, end, _ = rest.partition(_END)
    if not begin or not end:
        raise DecodeError("no certificate in PEM form")
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error as error:
        raise DecodeError("a certificate that is not base64") from error


def read(path: str) -> bytes:
    """A certificate's file; it may be a link, as /etc likes them. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(PEM_MAX)


def validity(encoded: bytes) -> Validity:
    """When a certificate in DER is valid. Raises DecodeError."""
    signed, at = _after_issuer(encoded)
    period = _value(signed, at, _SEQUENCE)[0]
    begins, at = _time(period, 0)
    ends, _ = _time(period, at)
    return Validity(begins, ends)


def common_name(encoded: bytes) -> str:
    """The one common name of the subject of a certificate in DER. Raises DecodeError."""
    signed, at = _after_issuer(encoded)
    subject = _value(signed, _value(signed, at, _SEQUENCE)[1], _SEQUENCE)[0]
    found: list[str] = []
    at = 0
    while at < len(subject):
        part, at = _value(subject, at, _SET)
        pair = _value(part, 0, _SEQUENCE)[0]
        kind, begins = _value(pair, 0, _OID)
        if kind == _COMMON_NAME:
            text = _value(pair, begins, None)[0]
            if pair[begins] not in _TEXTS or not text.isascii():
                raise DecodeError("certificate: a common name in another form than expected")
            found.append(text.decode("ascii"))
    if len(found) != 1:
        raise DecodeError(f"certificate: {len(found)} common names")
    return found[0]


def _after_issuer(encoded: bytes) -> tuple[bytes, int]:
    """What is signed of a certificate, and where in it the validity begins."""
    certificate = _value(encoded, 0, _SEQUENCE)[0]
    signed = _value(certificate, 0, _SEQUENCE)[0]
    at = 0
    if signed[:1] == bytes([_VERSION]):
        at = _value(signed, at, _VERSION)[1]
    for _ in range(3):  # serial number, algorithm, issuer
        at = _value(signed, at, None)[1]
    return signed, at


def request(name: str) -> tuple[bytes, bytes]:
    """A new P-256 key in PEM and a request for a certificate for it in DER."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, made.public_bytes(serialization.Encoding.DER)


def _value(data: bytes, at: int, tag: int | None) -> tuple[bytes, int]:
    """The content at `at`, and where it ends."""
    if at + 2 > len(data) or (tag is not None and data[at] != tag):
        raise DecodeError("certificate: another shape than expected")
    size, start = data[at + 1], at + 2
    if size > 0x80:
        count = size - 0x80
        if count > 3 or start + count > len(data):
            raise DecodeError("certificate: a length of too many bytes")
        size, start = int.from_bytes(data[start : start + count], "big"), start + count
    elif size == 0x80:
        raise DecodeError("certificate: a length that is not given")
    if start + size > len(data):
        raise DecodeError("certificate: it ends early")
    return data[start : start + size], start + size


def _time(data: bytes, at: int) -> tuple[int, int]:
    """RFC 5280, 4.1.2.5: YYMMDDHHMMSSZ until 2049, YYYYMMDDHHMMSSZ after."""
    if data[at : at + 1] == bytes([_UTC_TIME]):
        content, end = _value(data, at, _UTC_TIME)
        century = b"19" if content[:1] >= b"5" else b"20"
        content = century + content
    else:
        content, end = _value(data, at, _GENERALIZED_TIME)
    digits = content[:-1]
    if len(digits) != 14 or not digits.isdigit() or content[-1:] != b"Z":
        raise DecodeError("certificate: a time in another form than expected")
    text = digits.decode("ascii")
    parts = [int(text[:4]), *(int(text[place : place + 2]) for place in range(4, 14, 2))]
    try:
        moment = datetime(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], tzinfo=UTC)
    except ValueError as error:
        raise DecodeError("certificate: a time that is none") from error
    return int(moment.timestamp()) * 1000, end
