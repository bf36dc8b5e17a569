"""What a TPM hands out: golden bytes of swtpm by tpm2-tools 5.4, every cut of them, and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.codec import tpm
from edgeguard.errors import DecodeError

SIGNATURE = bytes.fromhex(
    "0018000b00207ddbcfb6da6f035a7e4cfadb746d93acbaaadba82f23b6cd8f02f64f48775faa"
    "00208e7a3f4d40542100c2d01a0d90715ae9df8d7bfb37d0a2b07632b9e45a0b5c4e"
)
PUBLIC = bytes.fromhex(
    "00580023000b000404720000001000180"
    "00b0003001000208e372609f7f15cb36e31968fd3eb6243dc49634191b66186f1d03a4e11ee12ac"
    "0020c85ab3cf0bc64e51c64ce6d643f05c33718109cc6b0190deae6cb50dff0bcbda"
)


def test_golden_bytes():
    raw = tpm.signature(SIGNATURE)
    assert (len(raw), raw[:2].hex(), raw[32:34].hex()) == (64, "7ddb", "8e7a")
    found = tpm.public(PUBLIC)
    assert found.key.hex() == "028e372609f7f15cb36e31968fd3eb6243dc49634191b66186f1d03a4e11ee12ac"
    assert found.objection() == ""


def test_leading_zeros_may_be_left_out():
    short = b"\x00\x18\x00\x0b" + b"\x00\x01\x07" + b"\x00\x20" + b"\x01" * 32
    assert tpm.signature(short) == bytes(31) + b"\x07" + b"\x01" * 32


@pytest.mark.parametrize(("read", "whole"), [(tpm.signature, SIGNATURE), (tpm.public, PUBLIC)])
def test_every_cut_and_every_addition_is_refused(read, whole):
    for size in range(len(whole)):
        with pytest.raises(DecodeError):
            read(whole[:size])
    with pytest.raises(DecodeError):
        read(whole + b"\0")
    with pytest.raises(DecodeError, match="more than"):
        read(whole + bytes(tpm.SIZE_MAX))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (3, 0x01, "type"),  # RSA
        (13, 0x06, "symmetric"),
        (15, 0x14, "scheme"),  # RSASSA
        (17, 0x0C, "hash"),  # SHA-384
        (19, 0x04, "curve"),  # P-384
        (21, 0x20, "derivation"),
        (23, 0x30, "x of 48 bytes"),
        (1, 0x57, "too many"),
        (1, 0x59, "ends early"),
    ],
)
def test_another_kind_of_key_is_named(place, value, words):
    changed = bytearray(PUBLIC)
    changed[place] = value
    with pytest.raises(DecodeError, match=words):
        tpm.public(bytes(changed))


def test_a_key_without_a_scheme_of_its_own_is_read():
    """The caller says ecdsa and sha256 each time it signs."""
    at = PUBLIC.index(b"\x00\x18\x00\x0b")
    without = PUBLIC[:at] + b"\x00\x10" + PUBLIC[at + 4 :]
    assert tpm.public(b"\x00\x56" + without[2:]).key == tpm.public(PUBLIC).key


@pytest.mark.parametrize(
    ("bit", "words"),
    [
        (tpm.FIXED_TPM, "another TPM"),
        (tpm.FIXED_PARENT, "another parent"),
        (tpm.SENSITIVE_DATA_ORIGIN, "not made by this TPM"),
        (tpm.USER_WITH_AUTH, "policy"),
        (tpm.SIGN, "not for signing"),
        (tpm.RESTRICTED, "hashed"),
    ],
)
def test_a_key_that_could_leave_is_no_identity(bit, words):
    found = tpm.public(PUBLIC)
    assert words in found._replace(attributes=found.attributes ^ bit).objection()


@given(
    st.binary(max_size=120) | st.tuples(st.sampled_from([SIGNATURE, PUBLIC]), st.integers(0, 89), st.integers(0, 255))
)
def test_any_bytes_give_a_value_or_our_error(data):
    if isinstance(data, tuple):
        whole, place, value = data
        data = whole[:place] + bytes([value]) + whole[place + 1 :]
    for read in (tpm.signature, tpm.public):
        try:
            read(data)
        except DecodeError:
            continue
