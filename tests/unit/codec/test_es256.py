"""ES256, for an identity key in a TPM: one spelling of a key, one of a signature, no other algorithm with that key."""

import hashlib
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, EdgeGuardError, SignatureError, SignatureMismatch

sys.path.insert(0, str(Path(__file__).parents[2] / "vectors"))
import p256

PUBLIC = p256.public()
SIGNER = cose.Elsewhere(PUBLIC, p256.sign)
SEED = bytes(range(32))


def with_signature(data, signature):
    return data[: -cose.SIGNATURE_SIZE] + signature


def mirrored(data):
    """The other s that ECDSA accepts: whoever has a signature can write it down."""
    r, s = data[-64:-32], int.from_bytes(data[-32:], "big")
    return with_signature(data, r + (p256.N - s).to_bytes(32, "big"))


def with_the_larger_s():
    """A message to which the signer's own arithmetic gives the larger s."""
    for number in range(64):
        protected = cbor.encode({1: cose.ES256, 4: cose.kid_of(PUBLIC)})
        signed = cbor.encode(["Signature1", protected, b"aad", b"%d" % number])
        if int.from_bytes(p256.sign(hashlib.sha256(signed).digest())[32:], "big") > p256.N // 2:
            return b"%d" % number
    raise AssertionError


def test_the_paper_key_is_that_of_rfc_6979():
    assert PUBLIC.hex() == "0360fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
    assert p256.sign(hashlib.sha256(b"sample").digest()).hex() == (
        "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
        "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
    )


@given(st.binary(max_size=200), st.integers(1, p256.N - 1))
def test_signed_is_verified_and_s_is_the_smaller(payload, secret):
    public = p256.public(secret)
    data = cose.Elsewhere(public, lambda digest: p256.sign(digest, secret)).sign1(payload, b"aad")
    assert cose.verify1(data, [cose.public_of(SEED), public], b"aad") == payload
    assert int.from_bytes(data[-32:], "big") <= p256.N // 2
    assert cose.parse1(data).algorithm == cose.ES256


def test_a_signer_with_the_larger_s_is_put_right():
    payload = with_the_larger_s()
    assert cose.verify1(SIGNER.sign1(payload, b"aad"), [PUBLIC], b"aad") == payload


def test_the_mirrored_signature_is_refused():
    """Good for every library: but then there would be two statements of one epoch, and nobody made the second."""
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.hashes import SHA256

    data = mirrored(SIGNER.sign1(b"payload", b"aad"))
    r, s = (int.from_bytes(part, "big") for part in (data[-64:-32], data[-32:]))
    signed = cbor.encode(["Signature1", cose.parse1(data).protected, b"aad", b"payload"])
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), PUBLIC)
    key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    with pytest.raises(SignatureMismatch):
        cose.verify1(data, [PUBLIC], b"aad")


def test_purpose_and_key_are_part_of_it():
    data = SIGNER.sign1(b"payload", cose.EPOCH_AAD)
    with pytest.raises(SignatureMismatch):
        cose.verify1(data, [PUBLIC], cose.LOSSES_AAD)
    with pytest.raises(SignatureError):
        cose.verify1(data, [p256.public(7)], cose.EPOCH_AAD)


def test_no_changed_bit_goes_unseen():
    data = SIGNER.sign1(b"payload", b"aad")
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        with pytest.raises(EdgeGuardError):
            cose.verify1(bytes(changed), [PUBLIC], b"aad")


@pytest.mark.parametrize(
    "signature", [bytes(64), bytes(32) + b"\1" * 32, b"\1" * 32 + bytes(32), p256.N.to_bytes(32, "big") + b"\1" * 32]
)
def test_numbers_that_no_signature_has(signature):
    with pytest.raises(SignatureMismatch):
        cose.verify1(with_signature(SIGNER.sign1(b"payload", b"aad"), signature), [PUBLIC], b"aad")


@pytest.mark.parametrize(("algorithm", "public"), [(cose.EDDSA, PUBLIC), (cose.ED25519, PUBLIC), (cose.ES256, None)])
def test_a_key_takes_the_algorithm_of_its_kind_only(algorithm, public):
    public = public or cose.public_of(SEED)
    protected = cbor.encode({1: algorithm, 4: cose.kid_of(public)})
    data = b"\xd2" + cbor.encode([protected, {}, b"payload", bytes(64)])
    with pytest.raises(DecodeError, match="is not that of key"):
        cose.verify1(data, [public], b"aad")


@pytest.mark.parametrize("public", [b"\x04" + bytes(32), b"\x02" + b"\xff" * 32, b"\x03" + bytes(31) + b"\x01"])
def test_a_key_that_is_no_point_verifies_nothing(public):
    """The last: x = 1 is the x of no point."""
    data = with_signature(SIGNER.sign1(b"payload", b"aad"), b"\1" * 64)
    data = data.replace(cose.kid_of(PUBLIC), cose.kid_of(public))
    with pytest.raises(SignatureMismatch):
        cose.verify1(data, [public], b"aad")
    with pytest.raises(DecodeError, match="not a point"):
        cose.check_point(public)
    cose.check_point(PUBLIC)


def test_what_signs_with_another_key_is_found_out_at_once():
    with pytest.raises(SignatureMismatch):
        cose.Elsewhere(PUBLIC, lambda digest: p256.sign(digest, 7)).sign1(b"payload", b"aad")
    for nonsense in (b"", bytes(64), b"\xff" * 64, bytes(65)):
        with pytest.raises(EdgeGuardError):
            cose.Elsewhere(PUBLIC, lambda digest, made=nonsense: made).sign1(b"payload", b"aad")


def test_a_public_key_has_one_spelling():
    x, y = bytes.fromhex(PUBLIC[1:].hex()), bytes(31) + b"\x01"
    assert cose.compressed(x, y) == PUBLIC
    assert cose.compressed(x, bytes(32))[0] == 2
    with pytest.raises(DecodeError):
        cose.compressed(x, y[1:])
    assert cose.is_identity(PUBLIC)
    assert cose.is_identity(bytes(32))
    assert not any(map(cose.is_identity, (b"", bytes(33), b"\x04" + bytes(64), b"\x04" + bytes(32), bytes(31))))


@pytest.mark.parametrize("text", [PUBLIC.hex(), PUBLIC.hex().upper() + "\n", bytes(32).hex()])
def test_a_public_key_in_a_file(tmp_path, text):
    (tmp_path / "device.pub").write_text(text)
    assert cose.load_public(str(tmp_path / "device.pub")).hex() == text.strip().lower()


@pytest.mark.parametrize(
    "data", [b"", b"zz", PUBLIC.hex().encode()[:-4], b"04" + b"00" * 32, b"\xff" * 66, b"0" * 9999]
)
def test_no_public_key_in_a_file(tmp_path, data):
    (tmp_path / "device.pub").write_bytes(data)
    with pytest.raises(DecodeError, match="not a public key"):
        cose.load_public(str(tmp_path / "device.pub"))
