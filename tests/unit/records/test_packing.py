"""Packed rows and preset dictionaries: the same records again, and a named error for what a sealer does not write."""

import contextlib
import gc
import hashlib
import os
import sys
import zlib
from pathlib import Path

import pytest
from cbor2 import dumps
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_world import EPOCH_SEED, Device, finding, moment, state, statement
from test_seal import COLLECTOR, opened
from test_wire import SAMPLE, header, records

from edgeguard.codec import cbor, cose
from edgeguard.codec.heads import encoded, integer
from edgeguard.collector import store
from edgeguard.collector.ingest import Ingest
from edgeguard.errors import DecodeError, SegmentRefused, UnknownDictionary
from edgeguard.records import compose, dictionaries, differences, packing, receipts, seal, unpacking, wire
from edgeguard.records.receipts import Receipt
from edgeguard.records.wire import Record

TOP = Path(__file__).parents[3]
NUMBERS = dictionaries.numbers()
PATHS = ["/usr/sbin/sshd", "/bin/sh", "/etc/passwd"]
DIGESTS = [hashlib.sha256(path.encode()).digest() for path in PATHS]


def known(text):
    return PATHS.index(text) if text in PATHS else None


def packed(content, dictionary=1, codec=2, n=1, **changes):
    """A payload around a packed body, whatever is in it."""
    parts = {
        "ver": 1, "dev": bytes(16), "stream": 1, "seq": 1, "epoch": 1, "boot": 1, "first": 1, "n": n, "prev": bytes(32),
        "mono": 0, "wall": None, "clk": 0, "base": bytes(8), "dict": dictionary, "cod": codec,
        "body": content if isinstance(content, bytes) else dumps(content),
    }  # fmt: skip
    return dumps(list((parts | changes).values()))


# --- the same again


@settings(max_examples=120, deadline=None)
@given(
    st.lists(records(), min_size=1, max_size=6),
    st.integers(0, 10**6),
    st.none() | st.integers(0, 2**45),
    st.sampled_from(NUMBERS),
    st.booleans(),
    st.booleans(),
)
def test_any_records_come_back_with_every_dictionary_and_codec(batch, mono, wall, number, referring, raw):
    batch = [
        record._replace(mono=mono + 10 * place, wall=None if wall is None else wall + 10 * place)
        for place, record in enumerate(batch)
    ]
    wanted = header(dictionary=number)
    payload = wire.encode_segment(
        wanted,
        batch,
        known if referring else None,
        (wire.Drop(1, 2, 1, 0),),
        DIGESTS.__getitem__ if referring else None,
    )
    if raw and number:  # what a sealer writes where DEFLATE does not help
        body = wire._inflate(*wire._opened(payload)[1:], number)
        parts = cbor.decode(payload, depth=1, size=wire.SEGMENT_MAX)
        payload = dumps([*parts[:14], wire.CODEC_PACKED, body])
    segment = wire.decode_segment(payload, PATHS.__getitem__, DIGESTS.__getitem__)
    assert list(segment.records) == batch
    assert segment.drops == (wire.Drop(1, 2, 1, 0),)
    assert segment.header == wanted._replace(n=len(batch), mono=mono, wall=wall, clock=2)


def test_clocks_that_run_apart_and_steps_back_within_a_segment():
    """The reader restores wall time from the first row's; differences to it must be made in the same way."""
    batch = [
        Record(
            1, 3, mono, 10**12 + mono + drift, 2, 0, False, ("/x", None, 40_000 + n, 39_000, *[None] * 10, 10**12 + n)
        )
        for n, (mono, drift) in enumerate([(100, 0), (90, 900), (5000, -900), (5001, 0)])
    ]
    again = wire.decode_segment(wire.encode_segment(header(dictionary=1), batch)).records
    assert [record.fields for record in again] == [record.fields for record in batch]


def test_a_digest_that_the_baseline_holds_is_no_bytes_and_another_is_there_once():
    other = b"\x55" * 32
    batch = [
        Record(2, 1, 5, None, 2, 0, False, (0, PATHS[0], {"sha256": DIGESTS[0]})),
        Record(2, 1, 6, None, 2, 0, False, (0, PATHS[1], {"sha256": other, "xattrs": DIGESTS[0]})),
        Record(2, 1, 7, None, 2, 0, False, (0, PATHS[1], {"sha256": other})),
    ]
    plain = packing.packed_body(batch, known, DIGESTS.__getitem__)
    assert plain.count(other) == 1
    assert plain.count(DIGESTS[0]) == 1  # of the second row's path it is not
    payload = wire.encode_segment(header(dictionary=1), batch, known, (), DIGESTS.__getitem__)
    assert list(wire.decode_segment(payload, PATHS.__getitem__, DIGESTS.__getitem__).records) == batch
    unresolved = wire.decode_segment(payload, PATHS.__getitem__).records[0].fields[2]
    assert unresolved == {"sha256": wire.Entry(0)}


@pytest.mark.parametrize("columns", [{"pid": 5}, {"pid": 5, "uid": 0}, {"ppid": 5}, {"start": 5}, {"pid": -5}])
def test_a_number_in_columns_is_the_one_before_the_next(columns):
    """However few columns there are: what is written after it counts from it, and not from what was before."""
    batch = [
        Record(1, 1, 5, 10**12, 2, 0, False, ("/bin/sh", None, 400, 401, *[None] * 10, 10**12)),
        Record(2, 1, 6, 10**12 + 1, 2, 0, False, (0, "/etc/x", columns)),
        Record(1, 1, 7, 10**12 + 2, 2, 0, False, ("/bin/sh", None, 402, 403, *[None] * 10, 10**12)),
        Record(2, 1, 8, 10**12 + 3, 2, 0, False, (0, "/etc/x", columns)),
        Record(2, 1, 9, 10**12 + 4, 2, 0, False, (0, "/etc/x", {"pid": 404})),
    ]
    assert list(wire.decode_segment(wire.encode_segment(header(dictionary=1), batch)).records) == batch


def test_without_a_clock_a_start_is_told_from_nothing():
    rows = ((100, 50), (400, 310))
    batch = [Record(1, 1, mono, None, 2, 0, False, ("/bin/sh", *[None] * 13, start)) for mono, start in rows]
    assert list(wire.decode_segment(wire.encode_segment(header(dictionary=1), batch)).records) == batch


@pytest.mark.parametrize("number", [1, 2, 14])
def test_nulls_at_the_end_are_not_written(number):
    record = Record(number, 1, 5, None, 2, 0, False, (0, None, None, None, 1) if number == 14 else ())
    longer = record._replace(fields=record.fields + (None,) * 30)
    assert packing.packed_body([longer]) == packing.packed_body([record])


@pytest.mark.parametrize(
    "value",
    [True, False, 1, 0, 255, 256, -1, 2**64 - 1, "", "x" * 300, "\udcff", b"", bytes(32), None, (), ("a",), (1, 0)],
)
@pytest.mark.parametrize("name", ["value", "exit", "pid", "start", "of tomorrow"])
def test_a_column_is_the_same_alone_and_beside_another(name, value):
    batch = [
        Record(2, 1, 5 + n, None, 2, 0, False, (0, "/etc/x", columns))
        for n, columns in enumerate([{name: value}, {name: value, "uid": 1}, {name: value}, {}])
    ]
    again = wire.decode_segment(wire.encode_segment(header(dictionary=1), batch)).records
    assert list(again) == batch
    assert [type(record.fields[2].get(name)) for record in again[:3]] == [type(value)] * 3


def test_a_written_segment_is_no_garbage():
    """What refers to itself would stay until it is looked for, and the next segment would be written beside it."""
    batch = [compose.finding(finding("/etc/x"), moment()), *SAMPLE]
    wire.encode_segment(header(dictionary=1), batch, known, (), DIGESTS.__getitem__)
    gc.collect()
    gc.disable()
    try:
        wire.encode_segment(header(dictionary=1), batch, known, (), DIGESTS.__getitem__)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_rows_own_path_stands_before_the_digest():
    """The note comes after the columns: a reader does not know it yet."""
    batch = [Record(2, 1, 5, None, 2, 0, False, (0, "/unknown", {"sha256": DIGESTS[0]}, None, None, PATHS[0]))]
    payload = wire.encode_segment(header(dictionary=1), batch, known, (), DIGESTS.__getitem__)
    assert list(wire.decode_segment(payload, PATHS.__getitem__, DIGESTS.__getitem__).records) == batch


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@example(24, 0)
@example(2**64 - 1, 2**64 - 1)
@example(0, 2**64 - 1)
def test_a_number_and_its_difference(value, before):
    sent = differences.moved(value, before)
    reader = unpacking.Unpacker(b"", None, None, (0, None))
    reader._before["count"] = before
    number = cbor.decode(sent)
    assert number == value or (number < 0 and reader._undone("count", number, "") == value)
    assert len(sent) <= len(integer(value))


LEAVES = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=300)


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        LEAVES | st.text(alphabet="a\u00e9\u20ac", max_size=300),
        lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.integers(0, 70_000), inner),
    )
)
def test_cbor_by_hand_is_cbor(value):
    ordered = cbor.decode(cbor.encode(value), size=1 << 20, depth=64)
    assert encoded(ordered) == cbor.encode(value)


# --- nothing else


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([[], [[0, 2 << 4, 0, "/x"]]], "four"),
        ([[], [[0, 2 << 4, 0, "/x"]], []], "four"),
        ([[], [[0, 2 << 4, 0, "/x"]], [], b"x"], "digests"),
        ([[], [[0, 2 << 4, 0, "/x"]], [], bytes(32)], "0 are used"),
        ([[], [[0, 2 << 4, 0, 3]], [], b""], "string 3 of 0"),
        ([["a"], [[0, 2 << 4, 0, 1]], [], b""], "string 1 of 1"),
        ([[], [[0, 1 << 4, "/x", None, -2]], [], b""], "leads to -1"),  # a difference over the segment's border
        ([[], [[0, 1 << 4, "/x", None, True]], [], b""], "uint"),
        ([[], [[0, 2 << 4, 0, "/x", {1: {1: 0}}]], [], b""], "digest 0 of 0"),
        ([[], [[0, 2 << 4, 0, "/x", {1: {1: 1}}]], [], bytes(32)], "digest 1, and 0 were used"),
        ([[], [[0, 2 << 4, 0, "/x", {1: {1: -1}}]], [], b""], "does not name"),
        ([[], [[0, 2 << 4, 0, -1, {1: {1: -2}}]], [], b""], "digest -2"),
        ([[], [[0, 2 << 4, 0, "/x", {1: {1: None}}]], [], b""], "digest None"),
        ([[], [[0, 2 << 4, 0, "/x", {1: {2: 5}}]], [], b""], "column value"),
        ([[], [[0, 2 << 4, 0, "/x", None, None, [5, *[None] * 9, [["x", "/y"]]]]], [], b""], "parent"),
    ],
)
def test_a_wrong_packed_body_is_refused_by_name(content, word):
    with pytest.raises(SegmentRefused, match=word):
        wire.decode_segment(packed(content))


@pytest.mark.parametrize("changes", [{"dictionary": 0}, {"codec": 0}, {"codec": 1}, {"codec": 4}, {"dictionary": -1}])
def test_codec_and_dictionary_go_together(changes):
    with pytest.raises(SegmentRefused, match=r"codec|dictionary"):
        wire.decode_segment(packed([[], [[0, 2 << 4]], [], b""], **changes))


def test_another_dictionary_than_the_writers_is_noticed(monkeypatch):
    """Some bytes of it are others: never other records without an error, unless the strict decoder still sees sense."""
    payload = wire.encode_segment(header(dictionary=1), [compose.finding(finding("/etc/x"), moment())])
    right = wire.decode_segment(payload)
    wrong = bytes(byte ^ 0x55 for byte in dictionaries.read(1))
    monkeypatch.setattr(wire, "_dictionary", lambda number: wrong)
    with pytest.raises(SegmentRefused):
        wire.decode_segment(payload)
    monkeypatch.undo()
    assert wire.decode_segment(payload) == right


def test_a_bomb_with_a_dictionary_is_refused_before_it_is_whole():
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, 0, dictionaries.read(1))
    bomb = squeezer.compress(dictionaries.read(1) + bytes(50 << 20)) + squeezer.flush()
    assert len(bomb) < wire.SEGMENT_MAX / 2
    with pytest.raises(SegmentRefused, match="of more than 262144 bytes"):
        wire.decode_segment(packed(bomb, codec=3))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=8))
def test_a_packed_payload_with_foreign_bytes_in_it_is_a_value_or_our_error(where, foreign):
    body = packing.packed_body(SAMPLE, known, DIGESTS.__getitem__)
    where %= len(body)
    with contextlib.suppress(SegmentRefused):
        wire.decode_segment(packed(body[:where] + foreign + body[where + len(foreign) :], n=len(SAMPLE)))


# --- dictionaries, and who uses which


def test_each_dictionary_is_the_one_that_was_given_out():
    for number in NUMBERS[1:]:
        assert 0 < len(dictionaries.read(number)) <= dictionaries.SIZE_MAX
    files = {f"{number}.dict" for number in NUMBERS[1:]}
    assert {path.name for path in Path(dictionaries.DIRECTORY).glob("*.dict")} == files
    words = (TOP / "docs/dictionaries.md").read_text()
    assert all(dictionaries.SHA256[number] in words for number in NUMBERS[1:])


def test_both_packages_carry_them():
    """Whole directories are installed, so the files are in both as long as they lie there."""
    for package in ("edgeguard", "edgeguard-collector"):
        installed = (TOP / f"packaging/debian/{package}.install").read_text().split()
        assert "edgeguard/records" in installed
    assert Path(dictionaries.DIRECTORY).parent == TOP / "edgeguard/records"


def test_a_damaged_or_unknown_one_is_not_used(tmp_path, monkeypatch):
    with pytest.raises(UnknownDictionary, match="dictionary 9 is not here"):
        dictionaries.read(9)
    data = dictionaries.read(1)
    (tmp_path / "1.dict").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(dictionaries, "DIRECTORY", str(tmp_path))
    dictionaries.read.cache_clear()
    try:
        with pytest.raises(DecodeError, match="damaged"):
            dictionaries.read(1)
        os.unlink(tmp_path / "1.dict")
        with pytest.raises(DecodeError, match="No such file"):
            dictionaries.read(1)
    finally:
        dictionaries.read.cache_clear()


def test_the_newest_that_both_have():
    assert dictionaries.best(()) == dictionaries.best((0,)) == dictionaries.best((77, -1)) == 0
    assert dictionaries.best((0, 1, 77)) == 1


def offer(device, numbers):
    receipt = Receipt(device.id, 1, dictionaries=tuple(numbers))
    Path(device.inbox, "receipt.egr").write_bytes(cose.sign1(receipts.encode(receipt), COLLECTOR, cose.RECEIPT_AAD))


def used(device):
    return [segment.header.dictionary for segment, _ in opened(device)]


def test_a_device_uses_one_from_the_receipt_on_that_offers_it_and_stops_when_it_does_not(device, monkeypatch):
    device.with_collector(cose.public_of(COLLECTOR))
    device.record_and_seal(state("first contact"))
    offer(device, (0, 1, 5))
    device.record_and_seal(state("offered"))
    offer(device, (0,))
    device.record_and_seal(state("withdrawn"))
    offer(device, (0, 1))
    device.record_and_seal(state("again"))
    assert used(device) == [0, 1, 0, 1]
    monkeypatch.setattr(seal.dictionaries, "read", refuse)
    result = device.record_and_seal(state("damaged here"))
    assert "dictionary 1: damaged" in result["problems"]
    monkeypatch.undo()
    assert used(device)[-1] == 0


def refuse(number):
    raise DecodeError(f"dictionary {number}: damaged")


def test_the_collector_offers_its_own_and_refuses_others_by_name(tmp_path):
    device = Device(str(tmp_path))
    ingest = Ingest(store.connect(":memory:"), COLLECTOR, lambda: 5)
    owner = ingest.add_device("d", device.public)
    mine = wire.encode_segment(header(device=device.id, sequence=1, dictionary=1), SAMPLE)
    later = packed([[], [[0, 15 << 4, "x"]], [], b""], dictionary=9, codec=3, dev=device.id, seq=2)
    signed = [cose.sign1(payload, EPOCH_SEED, cose.SEGMENT_AAD) for payload in (mine, later)]
    verdicts, data = ingest.take(statement(device.seed, boot=9) + b"".join(signed), owner)
    assert [verdict.name for verdict in verdicts[1:]] == ["stored", "unknown dictionary"]
    assert "dictionary 9 is not here" in verdicts[2].detail
    receipt = receipts.verified(data, [cose.public_of(COLLECTOR)], device.id)
    assert receipt.dictionaries == NUMBERS
    assert [refusal.reason for refusal in receipt.refused] == ["unknown dictionary"]


def test_training_takes_what_most_texts_have_and_is_the_same_each_time():
    sys.path.insert(0, str(TOP / "packaging/tools"))
    from train_dictionary import train

    common = b"this stands in every one of these texts, word for word, and is longer than one piece by far"
    texts = [bytes([n]) * 40 + common + os.urandom(200) for n in range(60)]
    made = train(texts, 1024)
    assert made == train(texts, 1024)
    assert len(made) <= 1024
    assert common[:50] in made + made
    assert made.count(common[:30]) <= 1
