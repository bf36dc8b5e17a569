"""ECDSA on P-256, deterministic (RFC 6979) and in plain numbers: a TPM on paper, for vectors that stay the same.

Slow, not constant in time, and of no use for real keys. It shares nothing with what it is to check.
"""

from __future__ import annotations

import hmac

P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
SECRET = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721  # of RFC 6979, A.2.5


def public(secret: int = SECRET) -> bytes:
    """Compressed, as device.pub has it."""
    x, y = _times(secret, G)
    return bytes([2 + y % 2]) + x.to_bytes(32, "big")


def sign(digest: bytes, secret: int = SECRET) -> bytes:
    """r and s over a SHA-256; s as it comes, which is the larger one half of the time."""
    number = int.from_bytes(digest, "big")
    for k in _candidates(secret, digest):
        r = _times(k, G)[0] % N
        s = pow(k, -1, N) * (number + r * secret) % N
        if r and s:
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    raise AssertionError


def _candidates(secret, digest):
    """RFC 6979, 3.2."""
    seed = secret.to_bytes(32, "big") + (int.from_bytes(digest, "big") % N).to_bytes(32, "big")
    value, key = b"\x01" * 32, bytes(32)
    for byte in (b"\0", b"\1"):
        key = hmac.digest(key, value + byte + seed, "sha256")
        value = hmac.digest(key, value, "sha256")
    while True:
        value = hmac.digest(key, value, "sha256")
        k = int.from_bytes(value, "big")
        if 0 < k < N:
            yield k
        key = hmac.digest(key, value + b"\0", "sha256")
        value = hmac.digest(key, value, "sha256")


def _times(number, point):
    total = None
    for bit in f"{number:b}":
        total = _plus(total, total)
        if bit == "1":
            total = _plus(total, point)
    return total


def _plus(one, other):
    if one is None or other is None:
        return one or other
    (x, y), (u, v) = one, other
    if x == u and (y + v) % P == 0:
        return None
    slope = (3 * x * x - 3) * pow(2 * y, -1, P) if one == other else (v - y) * pow(u - x, -1, P)
    z = (slope * slope - x - u) % P
    return z, (slope * (x - z) - y) % P
