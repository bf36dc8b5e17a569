"""COSE_Sign1 (RFC 9052) with Ed25519, as baselines, segments and receipts carry it, and the keys that sign it.

    18([protected: << {1: -8, 4: kid} >>, {}, payload, signature])

One shape only: tag 18, no unprotected header, payload inside. Algorithm -8 (EdDSA) is written, because every
COSE library reads it; -19 (Ed25519, its newer name in RFC 9864) is read too. What is signed for one purpose is
worthless for another: every use has its own external data (`*_AAD`).

An identity key may be in a TPM instead, which knows no Ed25519: then it is ECDSA on P-256 with SHA-256 (-7, ES256). Its
public key is the point as SEC 1 compresses it, so that each key has one spelling: 33 bytes, where Ed25519 has 32. The
size tells the kinds apart, and a key takes the algorithm of its kind only. Of the two values that ECDSA accepts for one
signature only the one with the smaller s is good: nobody makes other good bytes of a message that he did not sign.
`parse1` and the key names need no cryptography; only this module imports it on the device, and only when it signs or
verifies (15 MB on Debian 12), which the resident daemon never does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from edgeguard.codec import cbor, sha
from edgeguard.codec.heads import head
from edgeguard.errors import DecodeError, Incomplete, SignatureMismatch, UnknownSigner

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

BASELINE_AAD = b"EGBASE1"
SEGMENT_AAD = b"EGSEG1"
RECEIPT_AAD = b"EGRCPT1"
UPGRADES_AAD = b"EGUPGR1"
LOSSES_AAD = b"EGLOSS1"
ENROL_AAD = b"EGENRL1"
EPOCH_AAD = b"EGEPOC1"  # the identity key's word that an epoch key is this device's
PROBE_AAD = b"EGPROBE1"  # to see whether a key signs: worth nothing
NEXT_AAD = b"EGNEXT1"  # an epoch key's word that another follows it

ED25519 = -19  # IANA COSE Algorithms: EdDSA using the Ed25519 parameter set (RFC 9864, 2.2)
EDDSA = -8  # the polymorphic name, deprecated by RFC 9864; pycose and older libraries know only this one
ES256 = -7  # ECDSA with SHA-256; here always on P-256
ALGORITHMS = frozenset({ED25519, EDDSA, ES256})

SEED_SIZE = 32  # bytes, the private key of RFC 8032
PUBLIC_SIZE = 32
P256_SIZE = 33  # bytes of a point of P-256, compressed (SEC 1, 2.3.3)
SIGNATURE_SIZE = 64  # of both kinds; ES256: r and s, 32 bytes each (RFC 9053, 2.1)
HEX_FILE_MAX = 256  # bytes of a file that holds 64 or 66 hex digits and a newline
KID_SIZE = 8  # bytes: enough to pick a key, the signature proves it
DEVICE_ID_SIZE = 16
SIZE_MAX = 64 * 1024 * 1024  # bytes; the largest that we sign is a baseline, bounded again by its reader

_TAG = 0xD2  # tag 18
_BEGIN = b"\xd2\x84"  # tag 18, an array of four
_NO_HEADER = b"\xa0"  # an empty map
_SIGNED = b"\x84\x6aSignature1"  # an array of four, the first of Sig_structure
_LABEL_ALGORITHM, _LABEL_KID = 1, 4
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # n of FIPS 186-5
_COORDINATE = 32  # bytes


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


def is_identity(public: bytes) -> bool:
    """Has it the form of an identity key, of either kind? `check_point` says whether it can be one."""
    return len(public) == PUBLIC_SIZE or (len(public) == P256_SIZE and public[0] in {2, 3})


def compressed(x: bytes, y: bytes) -> bytes:
    """A point of P-256 as a public key. Raises DecodeError for what cannot be one."""
    if len(x) != _COORDINATE or len(y) != _COORDINATE:
        raise DecodeError("a point of P-256 has two coordinates of 32 bytes")
    return bytes([2 + (y[-1] & 1)]) + x


def check_point(public: bytes) -> None:
    """Raises DecodeError for a P-256 key that is no point of the curve: nothing could ever be signed with it."""
    if len(public) == P256_SIZE:
        try:
            _point(public)
        except ValueError as error:
            raise DecodeError("not a point of P-256") from error


def sign1(payload: bytes, key: bytes | Signer, aad: bytes) -> bytes:
    """`payload` with a signature by `key` (a seed of Ed25519, or what signs), for the purpose `aad`."""
    return (Signer(key) if isinstance(key, bytes) else key).sign1(payload, aad)


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
        return b"".join((_BEGIN, *_strings(self._protected), _NO_HEADER, *_strings(payload, signature)))


class Elsewhere(Signer):
    """A P-256 key that is not in this process. `sign` makes r and s, 32 bytes each, of a SHA-256."""

    def __init__(self, public: bytes, sign: Callable[[bytes], bytes]) -> None:
        self.public = public
        self._protected = cbor.encode({_LABEL_ALGORITHM: ES256, _LABEL_KID: kid_of(public)})
        self._sign = sign

    def sign1(self, payload: bytes, aad: bytes) -> bytes:
        """As above. SignatureMismatch: what signs has another key; and what `sign` raises."""
        raw = self._sign(sha.digest(_to_be_signed(self._protected, aad, payload)))
        s = int.from_bytes(raw[_COORDINATE:], "big")
        if _P256_ORDER // 2 < s < _P256_ORDER:
            raw = raw[:_COORDINATE] + (_P256_ORDER - s).to_bytes(_COORDINATE, "big")
        data = bytes([_TAG]) + cbor.encode([self._protected, {}, payload, raw])
        verify1(data, [self.public], aad)
        return data


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


def load_public(path: str) -> bytes:
    """A public key of either kind, in hex digits. Raises OSError or DecodeError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        raw = file.read(HEX_FILE_MAX)
    try:
        public = bytes.fromhex(raw.decode("ascii"))
    except ValueError:  # UnicodeDecodeError among them
        public = b""
    if not is_identity(public):
        raise DecodeError("not a public key of 64 or 66 hex digits")
    return public


def _header(protected: bytes) -> tuple[int, bytes]:
    try:
        header = cbor.decode(protected, depth=1, size=64)
    except Incomplete as error:  # the outer bytes are all there, so nothing was cut off
        raise DecodeError(f"COSE_Sign1: protected header: {error}") from error
    if not isinstance(header, dict) or set(header) != {_LABEL_ALGORITHM, _LABEL_KID}:
        raise DecodeError("COSE_Sign1: the protected header is not exactly algorithm and key id")
    algorithm, kid = header[_LABEL_ALGORITHM], header[_LABEL_KID]
    if type(algorithm) is not int or algorithm not in ALGORITHMS:
        raise DecodeError(f"COSE_Sign1: algorithm {algorithm!r} is neither Ed25519 nor ES256")
    if not isinstance(kid, bytes) or len(kid) != KID_SIZE:
        raise DecodeError(f"COSE_Sign1: the key id is not {KID_SIZE} bytes")
    return algorithm, kid


def _verify(parts: Sign1, public: bytes, aad: bytes) -> None:
    from cryptography.exceptions import InvalidSignature

    if (parts.algorithm == ES256) != (len(public) == P256_SIZE):
        raise DecodeError(f"COSE_Sign1: algorithm {parts.algorithm} is not that of key {parts.kid.hex()}")
    signed = _to_be_signed(parts.protected, aad, parts.payload)
    try:
        if parts.algorithm == ES256:
            _verify_es256(parts.signature, signed, public)
        else:
            _public_key(public).verify(parts.signature, signed)
    except (InvalidSignature, ValueError) as error:  # ValueError: the trusted bytes are no key at all
        raise SignatureMismatch(f"the signature of key {parts.kid.hex()} does not match") from error


@lru_cache(maxsize=256)
def _public_key(public: bytes) -> Ed25519PublicKey:
    """The key of these bytes, unpacked: that takes longer than to verify with it. Raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(public)


def _verify_es256(signature: bytes, signed: bytes, public: bytes) -> None:
    """Raises InvalidSignature, or ValueError for an s that has a smaller twin."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256

    r, s = (int.from_bytes(part, "big") for part in (signature[:_COORDINATE], signature[_COORDINATE:]))
    if s > _P256_ORDER // 2:
        raise ValueError("the larger s")
    _point(public).verify(encode_dss_signature(r, s), signed, ECDSA(SHA256()))


@lru_cache(maxsize=256)
def _point(public: bytes) -> EllipticCurvePublicKey:
    """Raises ValueError."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

    return EllipticCurvePublicKey.from_encoded_point(SECP256R1(), public)


def _to_be_signed(protected: bytes, aad: bytes, payload: bytes) -> bytes:
    """Sig_structure of RFC 9052, 4.4."""
    return b"".join((_SIGNED, *_strings(protected, aad, payload)))


def _strings(*strings: bytes) -> list[bytes]:
    """Byte strings as CBOR, in pieces."""
    return [piece for string in strings for piece in (head(2, len(string)), string)]
