"""COSE_Encrypt for one reader: what goes in comes out for its key alone, and no other byte passes."""

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.codec import cose, encrypt
from edgeguard.errors import DecodeError, UnknownSigner

SEED, OTHER = b"\x42" * 32, b"\x43" * 32
PUBLIC = encrypt.public_of(SEED)
AAD = encrypt.EXPORT_AAD


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=2000), st.binary(min_size=32, max_size=32))
def test_only_the_reader_reads_it(plain, seed):
    data = encrypt.encrypt(plain, encrypt.public_of(seed), AAD)
    assert encrypt.decrypt(data, seed, AAD) == plain
    with pytest.raises((UnknownSigner, DecodeError)):
        encrypt.decrypt(data, OTHER, AAD)


def test_every_flipped_bit_is_refused():
    data = encrypt.encrypt(b"what was seen", PUBLIC, AAD)
    for place in range(len(data) * 8):
        altered = bytearray(data)
        altered[place // 8] ^= 1 << place % 8
        try:
            found = encrypt.decrypt(bytes(altered), SEED, AAD)
        except (DecodeError, UnknownSigner):
            continue
        # the highest bit of an X25519 coordinate is ignored by definition (RFC 7748, 5)
        assert found == b"what was seen"
        at = data.index(encrypt.parse(data)[3])
        assert place == (at + 31) * 8 + 7


def test_another_purpose_is_another_message():
    with pytest.raises(DecodeError, match="purpose"):
        encrypt.decrypt(encrypt.encrypt(b"x", PUBLIC, b"EGOTHER"), SEED, AAD)


def test_two_of_the_same_differ():
    assert encrypt.encrypt(b"x", PUBLIC, AAD) != encrypt.encrypt(b"x", PUBLIC, AAD)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_a_public_key_that_everybody_could_follow_is_refused(point):
    with pytest.raises(DecodeError, match="public key"):
        encrypt.encrypt(b"x", point, AAD)
    good = encrypt.encrypt(b"x", PUBLIC, AAD)
    with pytest.raises(DecodeError, match="public key"):
        encrypt.decrypt(good.replace(encrypt.parse(good)[3], point), SEED, AAD)


def test_it_is_what_rfc_9052_says():
    """Taken apart by hand: structure, header, and the key by RFC 9053."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    data = encrypt.encrypt(b"plain", PUBLIC, AAD)
    assert data[:2] == b"\xd8\x60"
    protected, unprotected, text, ((header, sender, wrapped),) = cbor2.loads(data).value
    assert (cbor2.loads(protected), cbor2.loads(header), wrapped) == ({1: 24}, {1: -25}, b"")
    assert sender[4] == cose.kid_of(PUBLIC)
    shared = X25519PrivateKey.from_private_bytes(SEED).exchange(X25519PublicKey.from_public_bytes(sender[-1][-2]))
    info = b"\x84\x18\x18\x83\xf6\xf6\xf6\x83\xf6\xf6\xf6\x82\x19\x01\x00\x44\xa1\x01\x38\x18"
    key = HKDF(hashes.SHA256(), 32, None, info).derive(shared)
    structure = b"\x83\x67Encrypt\x44\xa1\x01\x18\x18\x46EGEXP1"
    assert ChaCha20Poly1305(key).decrypt(unprotected[5], text, structure) == b"plain"


def test_read_by_somebody_elses_library():
    cwt = pytest.importorskip("cwt", reason="make test-interop brings it")
    data = encrypt.encrypt(b"carried by hand", PUBLIC, AAD)
    key = cwt.COSEKey.new({1: 1, -1: 4, -2: PUBLIC, -4: SEED, 2: cose.kid_of(PUBLIC), 3: -25})
    context = [24, [None, None, None], [None, None, None], [256, bytes.fromhex("a1013818")]]
    assert cwt.COSE.new().decode(data, key, context, external_aad=AAD) == b"carried by hand"
