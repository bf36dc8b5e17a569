"""Which digest a baseline has of its files' contents, and what computes it.

SHA-256 is what all tools give, and quick where the processor has instructions for it. BLAKE2b (RFC 7693, 32 bytes,
without a key) is quicker where it has none, and needs no OpenSSL. A baseline has one of them for life: its manifest
says which, and what is seen carries its name as a column. What names a document or a package, or stands for extended
attributes, is SHA-256 always (`codec/sha`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import cache, partial
from typing import NamedTuple

from edgeguard.codec import sha
from edgeguard.errors import DecodeError

SIZE = 32  # bytes of either


class Algorithm(Enum):
    """The value is the name of the column that holds such a digest."""

    SHA256 = "sha256"
    BLAKE2B = "blake2b"

    @property
    def label(self) -> str:
        """As people write it."""
        return "SHA-256" if self is Algorithm.SHA256 else "BLAKE2b"


NUMBERS = (Algorithm.SHA256, Algorithm.BLAKE2B)
"""By their number in a manifest. Append only."""


class Digester(NamedTuple):
    """What computes digests: one implementation of one algorithm."""

    algorithm: Algorithm
    new: sha.NewHash

    def digest(self, data: bytes) -> bytes:
        return self.new(data).digest()

    def direct(self) -> sha.NewHash:
        """`new` without detours, for a loop that begins now."""
        return _openssl_sha256() if self.new is openssl else self.new


def openssl(data: bytes = b"") -> sha.Hash:
    """SHA-256, twice to five times as fast as what the daemon has; loaded when something is read, by helpers only."""
    return _openssl_sha256()(data)


@cache
def _openssl_sha256() -> sha.NewHash:
    from hashlib import sha256

    return sha256


@cache
def slim(algorithm: Algorithm) -> Digester:
    """For the resident daemon: nothing that has to be loaded."""
    return Digester(algorithm, sha.new if algorithm is Algorithm.SHA256 else _blake2b())


@cache
def swift(algorithm: Algorithm) -> Digester:
    """For helpers that read gigabytes."""
    return Digester(algorithm, openssl if algorithm is Algorithm.SHA256 else _blake2b())


def _blake2b() -> sha.NewHash:
    """The interpreter's own, as `hashlib.blake2b` gives it: OpenSSL's had 64 bytes only for long."""
    return partial(sha.new_blake2b(), digest_size=SIZE)


def numbered(number: int) -> Algorithm:
    """Raises DecodeError for one that is not known here."""
    if number >= len(NUMBERS):
        raise DecodeError(f"manifest: its digests are of a kind that is not known here (number {number})")
    return NUMBERS[number]


def named(name: object) -> Algorithm:
    """Raises DecodeError for one that is not known here."""
    try:
        return Algorithm(name)
    except ValueError:
        raise DecodeError(f"no digest is called {name!r} here") from None


def held(columns: Mapping[str, object]) -> tuple[Algorithm, bytes]:
    """The digest that an observation or a reference value of a file has; b"" where there is none."""
    for algorithm in NUMBERS:
        value = columns.get(algorithm.value)
        if isinstance(value, bytes) and value:
            return algorithm, value
    return Algorithm.SHA256, b""
