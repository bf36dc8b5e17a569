"""Rows and segments: round trips, and nothing but SegmentRefused or DecodeError for any other bytes."""

import contextlib
import zlib

import pytest
from cbor2 import dumps
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeguard.codec import cose
from edgeguard.errors import DecodeError, EdgeGuardError, SegmentRefused
from edgeguard.records import registry, wire
from edgeguard.records.registry import ACTOR_FIELDS, Kind
from edgeguard.records.wire import Entry, Header, Record

SEED = b"\x05" * 32
TEXT = st.one_of(
    st.text(max_size=40, alphabet=st.characters(blacklist_categories=("Cs",))),
    st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)
UINT = st.integers(0, 2**64 - 1)
INT = st.integers(-(2**63), 2**63 - 1)
VALUE = st.one_of(
    st.none(), st.booleans(), INT, TEXT, st.binary(max_size=40),
    st.lists(TEXT, max_size=3).map(tuple), st.lists(INT, max_size=3).map(tuple),
)  # fmt: skip
COLUMNS = st.dictionaries(st.sampled_from([*registry.COLUMN_NAMES, "unheard of", "x"]), VALUE, max_size=5)


def _of(kind):
    return {
        Kind.REF: TEXT,
        Kind.REFS: st.lists(TEXT, max_size=4).map(tuple),
        Kind.UINT: UINT,
        Kind.INT: INT,
        Kind.BOOL: st.booleans(),
        Kind.DIGEST: st.binary(max_size=64),
        Kind.ENUM: st.integers(0, 30),
        Kind.COLUMNS: COLUMNS,
        Kind.ACTOR: ACTOR,
        Kind.COUNTER: st.integers(0, 2**62),
        Kind.BYTES: st.binary(max_size=80),
    }[kind]


ACTOR = st.deferred(
    lambda: st.tuples(
        *[st.none() | _of(field.kind) for field in ACTOR_FIELDS[:-1]],
        st.lists(st.tuples(UINT, TEXT), max_size=3).map(tuple),
    )
)


@st.composite
def records(draw):
    kind = draw(st.sampled_from(list(registry.TYPES.values())))
    fields = [draw(st.none() | _of(field.kind)) for field in kind.fields]
    while fields and fields[-1] is None:
        fields.pop()
    return Record(kind.number, 1, 0, None, 2, draw(st.integers(0, 5)), draw(st.booleans()), tuple(fields))


def header(**changes):
    given_ = Header(bytes(16), 1, 7, 1, 3, 100, 0, bytes(32), 0, None, 0, bytes(8), 0)
    return given_._replace(**changes)


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), min_size=1, max_size=6), st.integers(0, 10**6), st.none() | st.integers(0, 2**45))
def test_a_segment_gives_back_what_went_in(batch, mono, wall):
    batch = [
        record._replace(mono=mono + 10 * place, wall=None if wall is None else wall + 10 * place)
        for place, record in enumerate(batch)
    ]
    segment = wire.decode_segment(wire.encode_segment(header(), batch))
    assert list(segment.records) == batch
    assert segment.header == header(n=len(batch), mono=mono, wall=wall, clock=2)


@settings(max_examples=60, deadline=None)
@given(records(), INT.filter(lambda n: n >= 0), st.none() | INT)
def test_a_record_alone_gives_back_what_went_in(record, mono, wall):
    record = record._replace(mono=mono % 2**61, wall=wall)
    assert wire.decode_record(wire.encode_record(record)) == record


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
@example(b"\x9f" * 200)
@example(b"\x81" * 200)
def test_any_bytes_are_a_value_or_our_error(data):
    for read in (wire.decode_record, wire.decode_segment, wire.decode_header, wire.split, cose.parse1):
        with contextlib.suppress(DecodeError, SegmentRefused):
            read(data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=8))
def test_a_payload_with_foreign_bytes_in_it_is_a_value_or_our_error(where, foreign):
    payload = wire.encode_segment(header(), SAMPLE)
    where %= len(payload)
    with contextlib.suppress(SegmentRefused):
        wire.decode_segment(payload[:where] + foreign + payload[where + len(foreign) :])


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | UINT | INT | TEXT.map(lambda t: t.encode("utf-8", "replace").decode()),
                    lambda inner: st.lists(inner, max_size=4), max_leaves=12))  # fmt: skip
def test_a_body_of_any_values_is_a_value_or_our_error(rows):
    body = dumps([["a"], rows if isinstance(rows, list) else [rows]])
    with contextlib.suppress(SegmentRefused):
        wire.decode_segment(_payload(body, n=len(rows) if isinstance(rows, list) else 1))


SAMPLE = [
    Record(2, 1, 5000, 1_000_000, 2, 4, True, (0, "/usr/sbin/sshd", {"sha256": bytes(32), "size": 5})),
    Record(2, 1, 5010, 1_000_010, 2, 4, True, (0, "/usr/sbin/sshd\n\x1b[2J", {"mode": 0o4755})),
    Record(1, 1, 5020, 1_000_020, 2, 0, False, ("/tmp/\udcff", ("a", "/usr/sbin/sshd"), 7)),
]


def _payload(body, codec=0, n=1, **changes):
    parts = {
        "ver": 1, "dev": bytes(16), "stream": 1, "seq": 1, "epoch": 1, "boot": 1, "first": 1, "n": n, "prev": bytes(32),
        "mono": 0, "wall": None, "clk": 0, "base": bytes(8), "dict": 0, "cod": codec, "body": body,
    }  # fmt: skip
    return dumps(list((parts | changes).values()))


def test_every_one_bit_change_of_a_signed_segment_is_refused():
    sealed = cose.sign1(wire.encode_segment(header(), SAMPLE), SEED, cose.SEGMENT_AAD)
    public = cose.public_of(SEED)
    wire.decode_segment(cose.verify1(sealed, [public], cose.SEGMENT_AAD))
    for place in range(len(sealed)):
        for bit in (0x01, 0x80):
            damaged = bytearray(sealed)
            damaged[place] ^= bit
            with pytest.raises(EdgeGuardError):
                cose.verify1(bytes(damaged), [public], cose.SEGMENT_AAD)


def test_a_bomb_is_refused_before_it_is_whole():
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = squeezer.compress(bytes(100 * 1024 * 1024)) + squeezer.flush()
    with pytest.raises(SegmentRefused, match="of more than 262144 bytes"):
        wire.decode_segment(_payload(bomb, codec=1))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ver": 2}, "version"),
        ({"dev": bytes(15)}, "device"),
        ({"stream": 4}, "stream"),
        ({"seq": 0}, "seq"),
        ({"epoch": 0}, "epoch"),
        ({"seq": -1}, "seq"),
        ({"prev": b""}, "hash"),
        ({"wall": "x"}, "wall0"),
        ({"clk": 4}, "clock"),
        ({"base": b""}, "baseline"),
        ({"dict": 1}, "dictionary"),
        ({"cod": 2}, "codec"),
        ({"n": 0}, "number"),
        ({"n": 2}, "announced"),
        ({"boot": True}, "boot"),
    ],
)
def test_a_wrong_header_is_refused_by_name(changes, word):
    body = dumps([[], [[0, 15 << 4, "x"]]])
    with pytest.raises(SegmentRefused, match=word):
        wire.decode_segment(_payload(body, **changes))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([[], [[0, 2 << 4, "seen", "/x"]]], "enum"),
        ([[], [[0, 2 << 4, 0, 3]]], "string 3 of 0"),
        ([[], [[0, 2 << 4, 0, True]]], "reference"),
        ([[], [[0, 1 << 4, "/x", [1]]]], "string 1 of 0"),
        ([[], [[0, 1 << 4, "/x", "y"]]], "list"),
        ([[], [[-1, 2 << 4]]], "row"),
        ([[], [[0]]], "row"),
        ([[1], [[0, 15 << 4]]], "strings"),
        ([[], [[0, 2 << 4, 0, "/x", {"a": {1: b""}}]]], "column value"),
        ([[], [[0, 2 << 4, 0, "/x", {1: 2, "sha256": 3}]]], "twice"),
        ([[], [[0, 15 << 4]], [[2, 1, 0, 0]]], "drops"),
        ([[], [[0, 15 << 4]], [], []], "two or three"),
    ],
)
def test_a_wrong_body_is_refused_by_name(content, word):
    with pytest.raises(SegmentRefused, match=word):
        wire.decode_segment(_payload(dumps(content)))


def test_types_and_fields_of_tomorrow_are_kept():
    segment = wire.decode_segment(_payload(dumps([["s"], [[0, 77 << 4 | 3, 0, ["x"]]]])))
    assert segment.records[0] == Record(77, 1, 0, None, 0, 3, False, (0, ["x"]))
    segment = wire.decode_segment(_payload(dumps([["s"], [[0, 15 << 4, 0, None, {"new": 1}]]])))
    assert segment.records[0].fields == ("s", None, {"new": 1})


def test_the_baselines_paths_are_one_negative_number_and_resolve_again():
    known = ["/usr/sbin/sshd", "/bin/sh"]
    payload = wire.encode_segment(header(), SAMPLE, lambda text: known.index(text) if text in known else None)
    assert b"sshd\n" not in payload
    resolved = wire.decode_segment(payload, known.__getitem__)
    assert [record.fields[:2] for record in resolved.records] == [record.fields[:2] for record in SAMPLE]
    unresolved = wire.decode_segment(payload)
    assert unresolved.records[0].fields[1] == Entry(0)
    assert unresolved.records[2].fields[1] == ("a", Entry(0))


def test_counters_travel_as_differences():
    names = registry.field_names(7)
    rows = [Record(7, 1, t, None, 0, 0, False, (1000 + t, None if t == 1 else 9000, 10**12 + t)) for t in range(3)]
    segment = wire.decode_segment(wire.encode_segment(header(), rows))
    assert [record.fields for record in segment.records] == [record.fields for record in rows]
    assert names[0] == "cpu_ms"
    body = wire._inflate(*wire._opened(wire.encode_segment(header(), rows))[1:])
    assert len(body) < 40


def test_what_is_too_large_is_cut_and_says_so():
    long = Record(15, 3, 0, None, 0, 0, False, ("x" * 5000,))
    assert wire.shrink(long).fields[0].endswith("[3976 more]")
    many = Record(1, 3, 0, None, 0, 0, False, ("/x", tuple("abcdefghij" * 20)))
    assert wire.shrink(many).fields[1][-1] == "[136 more]"
    huge = Record(2, 1, 0, None, 0, 4, True, (0, "/x", {f"c{n}": "y" * 1000 for n in range(60)}))
    cut = wire.shrink(huge)
    assert (cut.type, cut.severity, cut.stream) == (10, 4, 1)
    assert cut.fields[:5] == (1, None, None, wire.TOO_LARGE, 1)
    assert "type file was too large: /x" in cut.fields[5]
    assert len(wire.encode_record(cut)) <= wire.RECORD_MAX


def test_a_sequence_is_split_into_its_segments():
    one = cose.sign1(wire.encode_segment(header(), SAMPLE), SEED, cose.SEGMENT_AAD)
    two = cose.sign1(wire.encode_segment(header(sequence=8), SAMPLE[:1]), SEED, cose.SEGMENT_AAD)
    assert wire.split(one + two + one) == [one, two, one]
    for cut in range(1, len(two)):
        with pytest.raises(SegmentRefused):
            wire.split(one + two[:cut])
