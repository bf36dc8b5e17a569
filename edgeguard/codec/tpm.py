"""What a TPM 2.0 gives as bytes (TCG's Trusted Platform Module Library, Part 2: Structures): a signature, a public key.

tpm2-tools hand these structures on as they are (`-f tss`), in every release alike; what they call "plain" has changed
between releases. Only what an identity key needs is read: ECDSA with SHA-256 on P-256. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, Incomplete

SIZE_MAX = 1024  # bytes; a signature has 72, a public key 90

_ALG_NULL, _ALG_ECDSA, _ALG_SHA256, _ALG_ECC = 0x0010, 0x0018, 0x000B, 0x0023  # TPM_ALG_ID
_P256 = 0x0003  # TPM_ECC_CURVE
_SCALAR = 32  # bytes
_POLICY_MAX = 64

# TPMA_OBJECT
FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN, USER_WITH_AUTH = 1 << 1, 1 << 4, 1 << 5, 1 << 6
RESTRICTED, SIGN = 1 << 16, 1 << 18
_NEEDED = {
    FIXED_TPM: "could be moved to another TPM",
    FIXED_PARENT: "could be moved below another parent",
    SENSITIVE_DATA_ORIGIN: "was not made by this TPM",
    USER_WITH_AUTH: "signs under a policy only",
    SIGN: "is not for signing",
}


class Public(NamedTuple):
    attributes: int
    key: bytes  # as `cose` has it

    def objection(self) -> str:
        """Why it is no key for an identity; "" where it is one."""
        if self.attributes & RESTRICTED:
            return "signs only what the TPM itself has hashed"
        return next((words for bit, words in _NEEDED.items() if not self.attributes & bit), "")


def signature(data: bytes) -> bytes:
    """r and s, 32 bytes each, of a TPMT_SIGNATURE. Raises DecodeError."""
    parts = _Parts(data)
    parts.expect(_ALG_ECDSA, "the signature's scheme")
    parts.expect(_ALG_SHA256, "the signature's hash")
    r, s = parts.scalar("r"), parts.scalar("s")
    parts.end()
    return r + s


def public(data: bytes) -> Public:
    """A TPM2B_PUBLIC. Raises DecodeError where it is no ECDSA key on P-256 with SHA-256."""
    outer = _Parts(data)
    parts = _Parts(outer.sized("public area", SIZE_MAX))
    outer.end()
    parts.expect(_ALG_ECC, "the key's type")
    parts.number(2)  # nameAlg: how the TPM names the object; says nothing about signatures
    attributes = parts.number(4)
    parts.sized("policy", _POLICY_MAX)
    parts.expect(_ALG_NULL, "the key's symmetric algorithm")
    if parts.expect(_ALG_ECDSA, "the key's scheme", _ALG_NULL) == _ALG_ECDSA:
        parts.expect(_ALG_SHA256, "the key's hash")
    parts.expect(_P256, "the key's curve")
    parts.expect(_ALG_NULL, "the key's derivation")
    x, y = parts.scalar("x"), parts.scalar("y")
    parts.end()
    return Public(attributes, cose.compressed(x, y))


class _Parts:
    """Big-endian fields, one after the other."""

    def __init__(self, data: bytes) -> None:
        if len(data) > SIZE_MAX:
            raise DecodeError(f"from the TPM: more than {SIZE_MAX} bytes")
        self._data = data
        self._at = 0

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def sized(self, what: str, most: int) -> bytes:
        """A TPM2B: its size, then so many bytes."""
        size = self.number(2)
        if size > most:
            raise DecodeError(f"from the TPM: {what} of {size} bytes")
        return self._take(size)

    def scalar(self, what: str) -> bytes:
        """A number of at most 32 bytes, filled up to 32: a TPM may leave leading zeros out."""
        return self.sized(what, _SCALAR).rjust(_SCALAR, b"\0")

    def expect(self, value: int, what: str, *others: int) -> int:
        found = self.number(2)
        if found != value and found not in others:
            raise DecodeError(f"from the TPM: {what} is {found:#06x}, not {value:#06x}")
        return found

    def end(self) -> None:
        if self._at != len(self._data):
            raise DecodeError(f"from the TPM: {len(self._data) - self._at} bytes too many")

    def _take(self, size: int) -> bytes:
        self._at += size
        if self._at > len(self._data):
            raise Incomplete("from the TPM: it ends early")
        return self._data[self._at - size : self._at]
