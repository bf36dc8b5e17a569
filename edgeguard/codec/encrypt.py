"""COSE_Encrypt (RFC 9052) for one reader: what is carried by hand can be read by whoever holds one private key.

    96([<< {1: 24} >>, {5: nonce}, ciphertext,
        [[<< {1: -25} >>, {-1: {1: 1, -1: 4, -2: ephemeral}, 4: kid}, h'']]])

ChaCha20/Poly1305 with a key by ECDH-ES over X25519 and HKDF-SHA-256 (RFC 9053, 5.2 and 6.3.1). One shape only. It
hides, it does not vouch: what is inside is signed on its own. Cryptography is imported only when something is
encrypted or decrypted, as in `cose`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, UnknownSigner

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

EXPORT_AAD = b"EGEXP1"
CHACHA20_POLY1305 = 24  # IANA COSE Algorithms
TAG = b"\xd8\x60"  # 96
PUBLIC_SIZE = 32
SIZE_MAX = 8 * 1024 * 1024  # bytes of a message
_NONCE = 12
# Everything but nonce, text, kid and key is always the same, so it is compared and not interpreted.
_PROTECTED, _HEADER = b"\xa1\x01\x18\x18", b"\xa1\x01\x38\x18"  # {1: 24}, {1: -25}
_START = TAG + b"\x84\x44" + _PROTECTED + b"\xa1\x05\x4c"  # [<< {1: 24} >>, {5: nonce
_RECIPIENT = b"\x81\x83\x44" + _HEADER + b"\xa2\x04\x48"  # [[<< {1: -25} >>, {4: kid
_SENDER = b"\x20\xa3\x01\x01\x20\x04\x21\x58\x20"  # -1: {1: 1 (OKP), -1: 4 (X25519), -2: key
_END = b"\x40"  # h'']]]
_TAIL = len(_RECIPIENT) + cose.KID_SIZE + len(_SENDER) + PUBLIC_SIZE + len(_END)


def public_of(seed: bytes) -> bytes:
    """The X25519 public key of a private one of 32 bytes."""
    return _raw(_private(seed).public_key())


def encrypt(plain: bytes, public: bytes, aad: bytes) -> bytes:
    """`plain` for the holder of the private key of `public`. Raises DecodeError for a key that is none."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    ephemeral = _private(os.urandom(PUBLIC_SIZE))
    nonce = os.urandom(_NONCE)
    text = ChaCha20Poly1305(_key(ephemeral, public)).encrypt(nonce, plain, _structure(aad))
    kid, sender = cose.kid_of(public), _raw(ephemeral.public_key())
    return b"".join((_START, nonce, cbor.encode(text), _RECIPIENT, kid, _SENDER, sender, _END))


def decrypt(data: bytes, seed: bytes, aad: bytes) -> bytes:
    """What was encrypted for us. DecodeError: damaged or something else; UnknownSigner: for another key."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce, text, kid, sender = parse(data)
    private = _private(seed)
    if kid != cose.kid_of(_raw(private.public_key())):
        raise UnknownSigner(f"encrypted for key {kid.hex()}, which is not ours")
    try:
        return ChaCha20Poly1305(_key(private, sender)).decrypt(nonce, text, _structure(aad))
    except InvalidTag as error:
        raise DecodeError("COSE_Encrypt: damaged, or not made for this purpose") from error


def parse(data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """(nonce, ciphertext, kid, ephemeral public key) of the one shape. Raises DecodeError."""
    if not data.startswith(TAG):
        raise DecodeError("not a COSE_Encrypt (tag 96)")
    end = len(data) - _TAIL
    start = len(_START) + _NONCE
    if len(data) > SIZE_MAX or not data.startswith(_START) or end <= start:
        raise DecodeError("COSE_Encrypt: of another shape than ours, or too large")
    text = cbor.decode(data[start:end], depth=1, size=SIZE_MAX)
    if not isinstance(text, bytes):
        raise DecodeError("COSE_Encrypt: no ciphertext")
    kid_at = end + len(_RECIPIENT)
    sender_at = kid_at + cose.KID_SIZE + len(_SENDER)
    kid, sender = data[kid_at : kid_at + cose.KID_SIZE], data[sender_at : sender_at + PUBLIC_SIZE]
    if data[end:] != b"".join((_RECIPIENT, kid, _SENDER, sender, _END)):
        raise DecodeError("COSE_Encrypt: the recipient is of another shape than ours")
    return data[len(_START) : start], text, kid, sender


def _structure(aad: bytes) -> bytes:
    return cbor.encode(["Encrypt", _PROTECTED, aad])


def _key(private: X25519PrivateKey, public: bytes) -> bytes:
    """The content key: both ends make the same of their own private and the other's public key."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    nobody = [None, None, None]
    context = cbor.encode([CHACHA20_POLY1305, nobody, nobody, [256, _HEADER]])  # RFC 9053, 5.2: COSE_KDF_Context
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # a point of low order: everybody would know the secret
        raise DecodeError(f"COSE_Encrypt: a public key that is none: {error}") from error
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=context).derive(shared)


def _private(seed: bytes) -> X25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(seed)


def _raw(public: X25519PublicKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return public.public_bytes(Encoding.Raw, PublicFormat.Raw)
