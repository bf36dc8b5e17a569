"""Who may become a device of ours, and who is none any more: one-time tokens and revocations, in enrolment.db.

A token is kept as its SHA-256 only. It is good once, for one name, until it expires. A revocation is a moment: what was
certified for the device before it is refused from then on, at once, on connections that stand as well; a device that
gets a new token and enrols again has a certificate from after it.
"""

from __future__ import annotations

import base64
import os
import sqlite3
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from edgeguard.codec import cbor, cose
from edgeguard.collector import store
from edgeguard.collector.ingest import Device, Ingest
from edgeguard.errors import DecodeError, EdgeGuardError

FILE = "enrolment.db"
TOKEN_BYTES = 16
TOKEN_MAX = 64  # letters
BODY_MAX = 8 * 1024  # bytes of a request
SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
    hash BLOB PRIMARY KEY, name TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL,
    used INTEGER, device BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revoked (device BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
"""


class EnrolmentRefused(EdgeGuardError):
    """This token, or this device, may not enrol. The message is for the operator's log, not for who asked."""


class Request(NamedTuple):
    public: bytes
    token: str
    csr: bytes


class Enrolment:
    """`now` gives milliseconds since the epoch. Used by one thread at a time."""

    def __init__(self, directory: str, now: Callable[[], int], *, threads: bool = False) -> None:
        path = os.path.join(directory, FILE)
        self._db = sqlite3.connect(
            path, timeout=store.BUSY_S, isolation_level=None, check_same_thread=not threads, factory=store.Sqlite
        )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)
        self._now = now

    def close(self) -> None:
        self._db.close()

    def token(self, name: str, life_s: int) -> str:
        """A new token for the device that is to be called `name`: 26 letters and digits in groups, said once."""
        text = base64.b32encode(os.urandom(TOKEN_BYTES)).decode("ascii").rstrip("=")
        now = self._now()
        self._db.execute(
            "INSERT INTO tokens (hash, name, created, expires) VALUES (?, ?, ?, ?)",
            (_hash(text), name, now, now + life_s * 1000),
        )
        return "-".join(text[place : place + 4] for place in range(0, len(text), 4))

    def redeem(self, text: str, public: bytes, ingest: Ingest) -> Device:
        """The device, known from now on. Raises EnrolmentRefused; the token is then as good as before.

        Used up first and for good: two who come with one token at the same moment are not both let in.
        """
        now = self._now()
        with store.transaction(self._db):
            row = self._db.execute("SELECT name, expires, used FROM tokens WHERE hash = ?", (_hash(text),)).fetchone()
            if row is None:
                raise EnrolmentRefused("a token that is none")
            name, expires, used = row
            if used is not None:
                raise EnrolmentRefused(f"the token for {name} was used already")
            if now > expires:
                raise EnrolmentRefused(f"the token for {name} has expired")
            device = _known(ingest, name, public)
            self._db.execute("UPDATE tokens SET used = ?, device = ? WHERE hash = ?", (now, device.id, _hash(text)))
        return device

    def revoke(self, device: bytes) -> None:
        self._db.execute(
            "INSERT INTO revoked (device, at) VALUES (?, ?) ON CONFLICT (device) DO UPDATE SET at = excluded.at",
            (device, self._now()),
        )

    def revoked(self, device: bytes, issued: int) -> bool:
        """Is a certificate of this device, issued then (ms), void?"""
        row = self._db.execute("SELECT at FROM revoked WHERE device = ?", (device,)).fetchone()
        return row is not None and issued <= row[0]

    def barred(self, device: bytes) -> bool:
        """Was it revoked, and has not enrolled since? For where nobody sees the certificate."""
        row = self._db.execute(
            "SELECT 1 FROM revoked WHERE device = ? AND NOT EXISTS"
            " (SELECT 1 FROM tokens WHERE tokens.device = revoked.device AND tokens.used > revoked.at)",
            (device,),
        ).fetchone()
        return row is not None


def parse(body: bytes) -> Request:
    """A request whose signature proves that who asks has the device's key. Raises DecodeError or SignatureError."""
    payload = cbor.decode(cose.parse1(body).payload, depth=2, size=BODY_MAX)
    if not isinstance(payload, list) or len(payload) != 4 or payload[0] != 1:
        raise DecodeError("enrolment: not an array of four of version 1")
    _, public, token, csr = payload
    if not isinstance(public, bytes) or not cose.is_identity(public):
        raise DecodeError("enrolment: no public key")
    if not isinstance(token, str) or len(token) > TOKEN_MAX or not isinstance(csr, bytes):
        raise DecodeError("enrolment: token or certificate request")
    cose.verify1(body, [public], cose.ENROL_AAD)
    return Request(public, token, csr)


def _known(ingest: Ingest, name: str, public: bytes) -> Device:
    """A device with this key, made known under this name if it is not. Raises EnrolmentRefused for another's name."""
    device = ingest.device_of(public)
    if device is not None and device.name != name:
        raise EnrolmentRefused(f"the device is known as {device.name}, and the token is for {name}")
    if device is not None:
        return device
    try:
        return ingest.add_device(name, public)
    except ValueError as error:
        raise EnrolmentRefused(str(error)) from error


def _hash(text: str) -> bytes:
    plain = "".join(letter for letter in text.upper() if letter.isalnum())
    return sha256(b"EGTOKEN1" + plain.encode("utf-8", "replace")).digest()
