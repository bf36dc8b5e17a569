"""CBOR: golden bytes, what is refused, and cbor2 as the other implementation."""

import sys

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeguard.codec import cbor
from edgeguard.errors import DecodeError, Incomplete

GOLDEN = [
    # RFC 8949, appendix A, the part that we speak
    (0, "00"),
    (23, "17"),
    (24, "1818"),
    (1000, "1903e8"),
    (1000000000000, "1b000000e8d4a51000"),
    (2**64 - 1, "1bffffffffffffffff"),
    (-(2**64), "3bffffffffffffffff"),
    (-1, "20"),
    (-1000, "3903e7"),
    (False, "f4"),
    (True, "f5"),
    (None, "f6"),
    (b"", "40"),
    (b"\x01\x02\x03\x04", "4401020304"),
    ("", "60"),
    ("IETF", "6449455446"),
    ("\u6c34", "63e6b0b4"),
    ([1, [2, 3], [4, 5]], "8301820203820405"),
    ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
    # order of RFC 8949 (bytewise), which differs from RFC 7049's "shorter first" exactly here
    ({"": 1, 24: 2}, "a21818026001"),
    ({"aa": 1, "b": 2, 10: 3}, "a30a03616202626161" + "01"),
]

REFUSED = {
    "": "nothing",
    "1817": "longer form than needed",
    "190017": "longer form than needed",
    "1a0000ffff": "longer form than needed",
    "5800": "longer form than needed (length)",
    "9fff": "indefinite array",
    "5f4100ff": "indefinite bytes",
    "bf00ff": "indefinite map",
    "1c": "reserved length",
    "c100": "tag",
    "d81c00": "shared reference tag",
    "f90000": "half float",
    "fa00000000": "float",
    "fb0000000000000000": "double",
    "f7": "undefined",
    "f0": "simple value",
    "f814": "false in two bytes",
    "ff": "break",
    "0000": "trailing byte",
    "a2010101": "map ends early",
    "a201010101": "key twice",
    "a202000100": "keys out of order",
    "a2616100" + "0100": "text before integer",
    "a12001": "negative key",
    "a1410001": "bytes as key",
    "a1f501": "true as key",
    "61ff": "not UTF-8",
    "63eda080": "a surrogate in UTF-8",
    "9b7fffffffffffffff": "an array of 2**63",
    "bb7fffffffffffffff": "a map of 2**63",
    "5bffffffffffffffff": "bytes of 2**64",
    "81" * 9 + "00": "deeper than 8",
    "81" * 60000 + "00": "much deeper",
}

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.binary(max_size=300)
    | st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)
)
keys = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30) | st.integers(0, 2**64 - 1)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=25)


@pytest.mark.parametrize(("value", "golden"), GOLDEN)
def test_golden_bytes_both_ways(value, golden):
    assert cbor.encode(value).hex() == golden
    decoded = cbor.decode(bytes.fromhex(golden))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("data", REFUSED, ids=lambda data: REFUSED[data])
def test_refused(data):
    with pytest.raises(DecodeError):
        cbor.decode(bytes.fromhex(data))


@settings(max_examples=120, deadline=None)
@given(values)
def test_round_trip_and_cbor2_agrees(value):
    data = cbor.encode(value)
    assert cbor.decode(data, depth=64) == value
    assert cbor2.loads(data) == value


@settings(max_examples=120, deadline=None)
@given(values)
def test_reads_what_cbor2_writes_canonically(value):
    """Where both orders agree (no map mixes integers and text), our bytes are cbor2's canonical bytes."""
    data = cbor2.dumps(value, canonical=True)
    if cbor.encode(value) == data:
        assert cbor.decode(data, depth=64) == value
    else:
        with pytest.raises(DecodeError, match="out of order"):
            cbor.decode(data, depth=64)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=80) | st.lists(st.sampled_from(range(256)), max_size=12).map(bytes))
def test_any_bytes_give_a_value_or_decode_error(data):
    try:
        value = cbor.decode(data)
    except DecodeError:
        return
    assert cbor.encode(value) == data  # one value, one encoding


@settings(max_examples=60, deadline=None)
@given(values, st.data())
def test_any_damage_gives_a_value_or_decode_error(value, data):
    raw = bytearray(cbor.encode(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = cbor.decode(bytes(raw), depth=64)
    except DecodeError:
        return
    assert cbor.encode(decoded) == bytes(raw)


@settings(max_examples=60, deadline=None)
@given(values)
def test_every_truncation_is_incomplete(value):
    data = cbor.encode(value)
    for cut in range(len(data)):
        with pytest.raises(Incomplete):
            cbor.decode(data[:cut], depth=64)


@settings(max_examples=60, deadline=None)
@given(st.lists(values, max_size=5))
def test_sequence(items):
    data = b"".join(cbor.encode(item) for item in items)
    at, seen = 0, []
    while at < len(data):
        value, at = cbor.decode_prefix(data, at, depth=64)
        seen.append(value)
    assert seen == items


def test_prefix_bounds():
    data = b"\x00" + cbor.encode(b"x" * 100)
    assert cbor.decode_prefix(data, 1) == (b"x" * 100, len(data))
    with pytest.raises(DecodeError, match="more than 50") as caught:
        cbor.decode_prefix(data, 1, size=50)
    assert not isinstance(caught.value, Incomplete)
    with pytest.raises(Incomplete):
        cbor.decode_prefix(data[:-1], 1)
    with pytest.raises(Incomplete):
        cbor.decode_prefix(data, len(data))


def test_depth_and_size_are_bounds():
    assert cbor.decode(b"\x81" * 8 + b"\x00") == [[[[[[[[0]]]]]]]]
    with pytest.raises(DecodeError, match="deeply"):
        cbor.decode(b"\x81" * 1000 + b"\x00", depth=10**6)  # no caller may ask for the interpreter's limit
    with pytest.raises(DecodeError, match="at most 10"):
        cbor.decode(b"\x00" * 11, size=10)


@pytest.mark.parametrize("value", [1.5, {1, 2}, object(), {b"x": 1}, {True: 1}, {-1: 1}, {None: 1}, 1j, {1.0: 1}])
def test_encoder_refuses_other_types(value):
    with pytest.raises(TypeError):
        cbor.encode(value)


def test_encoder_refuses_what_has_no_encoding():
    deep = []
    for _ in range(100):
        deep = [deep]
    for value in (2**64, -(2**64) - 1, "\udc80", {"\udc80": 1}, deep):
        with pytest.raises(ValueError, match=r"64 bits|surrogates|deeply"):
            cbor.encode(value)


def test_decoder_does_not_load_cbor2():
    """The decoder stands alone: readers pay for no library."""
    import subprocess

    program = "import sys; from edgeguard.codec import cbor; cbor.decode(b'\\x80'); sys.exit('cbor2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
