"""COSE_Sign1: golden bytes, every cut and every flipped bit, and another implementation's opinion."""

import os

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.codec import cbor, cose
from edgeguard.errors import DecodeError, EdgeGuardError, Incomplete, SignatureMismatch, UnknownSigner

SEED = bytes(range(32))
PUBLIC = cose.public_of(SEED)
SIGNED = cose.sign1(b"payload", SEED, b"aad")


def signed_with(protected, unprotected=None, payload=b"payload", aad=b"aad"):
    """A COSE_Sign1 of any header, truly signed: what is refused is refused for its form."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    signature = Ed25519PrivateKey.from_private_bytes(SEED).sign(cbor2.dumps(["Signature1", protected, aad, payload]))
    return cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected or {}, payload, signature]))


def test_golden_bytes():
    """Ed25519 is deterministic: same seed, same payload, same bytes on every release."""
    assert PUBLIC.hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert SIGNED.hex() == (
        "d2844da20127044856475aa75463474ca0477061796c6f616458402dfb0d8e"
        "4cdded1d46640a7065964232050407625f3d91e8d9297f3f45a19719aeeb91f42e8348"
        "9a058e60b47f0f0ecae8bd43893d0669007e292e274c31e709"
    )
    assert cose.kid_of(PUBLIC).hex() == "56475aa75463474c"
    assert cose.device_id(PUBLIC).hex() == "56475aa75463474c0285df5dbf2bcab7"


def test_verify_gives_the_payload():
    assert cose.verify1(SIGNED, [bytes(32), PUBLIC], b"aad") == b"payload"
    parts = cose.parse1(SIGNED)
    assert (parts.algorithm, parts.kid, parts.payload) == (cose.EDDSA, cose.kid_of(PUBLIC), b"payload")


def test_purpose_is_part_of_the_signature():
    with pytest.raises(SignatureMismatch):
        cose.verify1(SIGNED, [PUBLIC], cose.SEGMENT_AAD)


def test_unknown_signer():
    with pytest.raises(UnknownSigner, match=cose.kid_of(PUBLIC).hex()):
        cose.verify1(SIGNED, [bytes(32)], b"aad")
    with pytest.raises(UnknownSigner):
        cose.verify1(SIGNED, [], b"aad")


def test_the_older_algorithm_name_is_read():
    old = signed_with(cbor.encode({1: cose.ED25519, 4: cose.kid_of(PUBLIC)}))
    assert cose.verify1(old, [PUBLIC], b"aad") == b"payload"


KID = cose.kid_of(PUBLIC)
BAD_HEADERS = {
    "ES256": cbor.encode({1: -7, 4: KID}),
    "no kid": cbor.encode({1: -19}),
    "no algorithm": cbor.encode({4: KID}),
    "empty": b"",
    "crit": cbor.encode({1: -19, 2: [4], 4: KID}),
    "short kid": cbor.encode({1: -19, 4: KID[:7]}),
    "text kid": cbor.encode({1: -19, 4: "abcdefgh"}),
    "true": cbor.encode({1: True, 4: KID}),
    "unsorted": bytes.fromhex("a20448") + KID + bytes.fromhex("0132"),
    "array": cbor.encode([1, 2]),
    "cut": cbor.encode({1: -19, 4: KID})[:-1],
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_other_headers_are_refused(name):
    with pytest.raises(DecodeError) as caught:
        cose.verify1(signed_with(BAD_HEADERS[name]), [PUBLIC], b"aad")
    assert not isinstance(caught.value, Incomplete)


def test_unprotected_header_is_refused():
    with pytest.raises(DecodeError, match="unprotected"):
        cose.parse1(signed_with(cose.parse1(SIGNED).protected, {4: b"x"}))


def test_other_shapes_are_refused():
    parts = cbor2.loads(SIGNED).value
    for shape in (
        parts,  # no tag
        cbor2.CBORTag(98, parts),
        cbor2.CBORTag(18, parts[:3]),
        cbor2.CBORTag(18, [parts[0], [], parts[2], parts[3]]),
        cbor2.CBORTag(18, [parts[0], {}, None, parts[3]]),
        cbor2.CBORTag(18, [parts[0], {}, parts[2], parts[3][:63]]),
        cbor2.CBORTag(18, {}),
    ):
        with pytest.raises(DecodeError):
            cose.parse1(cbor2.dumps(shape))


def test_every_cut_is_incomplete_and_every_flip_is_refused():
    for cut in range(len(SIGNED)):
        with pytest.raises(Incomplete):
            cose.parse1(SIGNED[:cut])
    for bit in range(len(SIGNED) * 8):
        flipped = bytearray(SIGNED)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EdgeGuardError):
            cose.verify1(bytes(flipped), [PUBLIC], b"aad")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes(data):
    with pytest.raises(DecodeError):
        cose.parse1(data)
    with pytest.raises(DecodeError):
        cose.parse1(b"\xd2" + data)


def test_load_seed(tmp_path):
    good, bad, absent = tmp_path / "good", tmp_path / "bad", tmp_path / "absent"
    good.write_bytes(SEED)
    bad.write_bytes(SEED + b"\n")
    assert cose.load_seed([str(absent), str(good)]) == SEED
    with pytest.raises(DecodeError, match="bad"):
        cose.load_seed([str(bad), str(good)])
    with pytest.raises(FileNotFoundError):
        cose.load_seed([str(absent)])


def test_generate_seed():
    assert len({cose.generate_seed() for _ in range(3)}) == 3


def test_another_implementation_verifies():
    """cwt is in the development environment, not on devices."""
    cwt = pytest.importorskip("cwt")
    key = cwt.COSEKey.new({1: 1, 3: "EdDSA", -1: 6, -2: PUBLIC, 2: cose.kid_of(PUBLIC)})
    assert cwt.COSE.new().decode(SIGNED, key, external_aad=b"aad") == b"payload"


def test_parse_does_not_load_cryptography():
    import subprocess
    import sys

    program = (
        "import sys; from edgeguard.codec import cose\n"
        f"cose.parse1(bytes.fromhex('{SIGNED.hex()}'))\n"
        "sys.exit('cryptography' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=os.getcwd()).returncode == 0
