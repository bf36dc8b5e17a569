"""COSE_Sign1 (RFC 9052) with Ed25519, as baselines, segments and receipts carry it, and the keys that sign it.

    18([protected: << {1: -8, 4: kid} >>, {}, payload, signature])

One shape only: tag 18, no unprotected header, payload inside. Algorithm -8 (EdDSA) is written, because every
COSE library reads it; -19 (Ed25519, its newer name in RFC 9864) is read too. What is signed for one purpose is
worthless for another: every use has its own external data (`*_AAD`).
`parse1` and the key names need no cryptography; only this module imports it on the device, and only when it signs or
verifies (15 MB on Debian 12), which the resident daemon never does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from edgeguard.codec import cbor, sha
from edgeguard.errors import DecodeError, Incomplete, SignatureMismatch, UnknownSigner

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

BASELINE_AAD = b"EGBASE1"
SEGMENT_AAD = b"EGSEG1"
RECEIPT_AAD = b"EGRCPT1"
UPGRADES_AAD = b"EGUPGR1"
LOSSES_AAD = b"EGLOSS1"
ENROL_AAD = b"EGENRL1"
EPOCH_AAD = b"EGEPOC1"  # the identity key's word that an epoch key is this device's
NEXT_AAD = b"EGNEXT1"  # an epoch key's word that another follows it

ED25519 = -19  # IANA COSE Algorithms: EdDSA using the Ed25519 parameter set (RFC 9864, 2.2)
EDDSA = -8  # the polymorphic name, deprecated by RFC 9864; pycose and older libraries know only this one
ALGORITHMS = frozenset({ED25519, EDDSA})

SEED_SIZE = 32  # bytes, the private key of RFC 8032
PUBLIC_SIZE = 32
SIGNATURE_SIZE = 64
KID_SIZE = 8  # bytes: enough to pick a key, the signature proves it
DEVICE_ID_SIZE = 16
SIZE_MAX = 64 * 1024 * 1024  # bytes; the largest that we sign is a baseline, bounded again by its reader

_TAG = 0xD2  # tag 18
_LABEL_ALGORITHM, _LABEL_KID = 1, 4


class Sign1(NamedTuple):
    """The parts as they stood in the bytes. Nothing is verified yet."""

    protected: bytes
    kid: bytes
    algorithm: int
    payload: bytes
    signature: bytes


def generate_seed() -> bytes:
    """A new private key."""
    return os.urandom(SEED_SIZE)


def public_of(seed: bytes) -> bytes:
    """The public key of a private one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def kid_of(public: bytes) -> bytes:
    """Short name of a key in headers and on screens."""
    return sha.digest(public)[:KID_SIZE]


def device_id(public: bytes) -> bytes:
    """What a device is called, from the key that it made itself."""
    return sha.digest(public)[:DEVICE_ID_SIZE]


def sign1(payload: bytes, seed: bytes, aad: bytes) -> bytes:
    """`payload` with a signature by `seed`, for the purpose `aad`."""
    return Signer(seed).sign1(payload, aad)


class Signer:
    """A private key, ready: who signs more than once makes the public one out of it once, half of the work."""

    def __init__(self, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._protected = cbor.encode({_LABEL_ALGORITHM: EDDSA, _LABEL_KID: kid_of(self.public)})

    def sign1(self, payload: bytes, aad: bytes) -> bytes:
        """`payload` with a signature, for the purpose `aad`."""
        signature = self._key.sign(_to_be_signed(self._protected, aad, payload))
        return bytes([_TAG]) + cbor.encode([self._protected, {}, payload, signature])


def parse1(data: bytes) -> Sign1:
    """The parts of a COSE_Sign1. Incomplete: the bytes end early; DecodeError: they are something else."""
    if not data:
        raise Incomplete("no bytes at all")
    if data[0] != _TAG:
        raise DecodeError("not a COSE_Sign1 (tag 18)")
    parts = cbor.decode(data[1:], depth=2, size=SIZE_MAX)
    if not isinstance(parts, list) or len(parts) != 4:
        raise DecodeError("COSE_Sign1: not an array of four")
    protected, unprotected, payload, signature = parts
    if unprotected != {} or not isinstance(unprotected, dict):
        raise DecodeError("COSE_Sign1: the unprotected header is not empty")
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or not isinstance(signature, bytes):
        raise DecodeError("COSE_Sign1: header, payload and signature are not all byte strings")
    if len(signature) != SIGNATURE_SIZE:
        raise DecodeError(f"COSE_Sign1: a signature of {len(signature)} bytes")
    algorithm, kid = _header(protected)
    return Sign1(protected, kid, algorithm, payload, signature)


def verify1(data: bytes, publics: Sequence[bytes], aad: bytes) -> bytes:
    """The payload, after the key in `publics` that the header names has vouched for it.

    DecodeError (Incomplete among them), UnknownSigner or SignatureMismatch otherwise.
    """
    parts = parse1(data)
    for public in publics:
        if kid_of(public) == parts.kid:
            _verify(parts, public, aad)
            return parts.payload
    raise UnknownSigner(f"signed by key {parts.kid.hex()}, which is not trusted here")


def load_seed(paths: Sequence[str]) -> bytes:
    """The private key in the first of `paths` that exists.

    FileNotFoundError if none does: the caller may make one. A file that is there but is no key is a DecodeError,
    never a reason to look further: silently becoming another device would be worse than stopping.
    """
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with open(fd, "rb") as file:
            seed = file.read(SEED_SIZE + 1)
        if len(seed) != SEED_SIZE:
            raise DecodeError(f"{path}: not a key of {SEED_SIZE} raw bytes")
        return seed
    raise FileNotFoundError(f"no key at {', '.join(paths)}")


def _header(protected: bytes) -> tuple[int, bytes]:
    try:
        header = cbor.decode(protected, depth=1, size=64)
    except Incomplete as error:  # the outer bytes are all there, so nothing was cut off
        raise DecodeError(f"COSE_Sign1: protected header: {error}") from error
    if not isinstance(header, dict) or set(header) != {_LABEL_ALGORITHM, _LABEL_KID}:
        raise DecodeError("COSE_Sign1: the protected header is not exactly algorithm and key id")
    algorithm, kid = header[_LABEL_ALGORITHM], header[_LABEL_KID]
    if type(algorithm) is not int or algorithm not in ALGORITHMS:
        raise DecodeError(f"COSE_Sign1: algorithm {algorithm!r} is not Ed25519")
    if not isinstance(kid, bytes) or len(kid) != KID_SIZE:
        raise DecodeError(f"COSE_Sign1: the key id is not {KID_SIZE} bytes")
    return algorithm, kid


def _verify(parts: Sign1, public: bytes, aad: bytes) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        _public_key(public).verify(parts.signature, _to_be_signed(parts.protected, aad, parts.payload))
    except (InvalidSignature, ValueError) as error:  # ValueError: the trusted bytes are no key at all
        raise SignatureMismatch(f"the signature of key {parts.kid.hex()} does not match") from error


@lru_cache(maxsize=256)
def _public_key(public: bytes) -> Ed25519PublicKey:
    """The key of these bytes, unpacked: that takes longer than to verify with it. Raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(public)


def _to_be_signed(protected: bytes, aad: bytes, payload: bytes) -> bytes:
    """Sig_structure of RFC 9052, 4.4."""
    return cbor.encode(["Signature1", protected, aad, payload])
