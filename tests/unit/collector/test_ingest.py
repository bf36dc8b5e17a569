"""What the collector makes of segments that come late, twice, in any order, damaged, cut, or from somebody else."""

import contextlib
import itertools
import json
import random
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import EPOCH_SEED, finding, moment, state, statement

from edgeguard.codec import cose
from edgeguard.collector import bulk, events, store
from edgeguard.collector.ingest import Ingest
from edgeguard.errors import SegmentRefused
from edgeguard.records import compose, receipts, wire
from edgeguard.records.outbox import Name
from edgeguard.records.wire import Drop, Header

COLLECTOR = b"\x09" * 32
SEED = b"\x01" * 32
OTHER = b"\x02" * 32
PUBLIC = cose.public_of(SEED)
DEVICE = cose.device_id(PUBLIC)


def segment(
    sequence, previous, *, stream=0, seed=EPOCH_SEED, device=DEVICE, first=None, records=None, drops=(), boot=1, epoch=1
):
    records = records or [
        compose.finding(finding(f"/{sequence}"), moment(sequence % 2**40 * 1000)),
        state(f"s{sequence}"),
    ]
    header = Header(
        device, stream, sequence, epoch, boot, first or sequence * 2 - 1, 0, previous, 0, None, 0, bytes(8), 0
    )
    return cose.sign1(wire.encode_segment(header, records, None, drops), seed, cose.SEGMENT_AAD)


def chain(length, **keywords):
    from hashlib import sha256

    made, previous = [], wire.NO_PREVIOUS
    for sequence in range(1, length + 1):
        made.append(segment(sequence, previous, **keywords))
        previous = sha256(made[-1]).digest()
    return made


class Collector:
    def __init__(self, path):
        self.db = store.connect(path)
        self.time = 1_000_000
        self.ingest = Ingest(self.db, COLLECTOR, lambda: self.time)
        self.device = self.ingest.add_device("pump-07", PUBLIC)
        self.ingest.take(statement(boot=3), self.device)
        self.db.execute("UPDATE devices SET seen = NULL, pace = NULL")  # as if it had not been heard yet

    def take(self, *parts):
        self.time += 1
        verdicts, receipt = self.ingest.take(b"".join(parts), self.device)
        return [verdict.name for verdict in verdicts], receipts.verified(receipt, [cose.public_of(COLLECTOR)], DEVICE)

    def incidents(self, *, resolved=False):
        return [
            (name, stream, seq)
            for name, stream, seq, done in self.db.execute(
                "SELECT name, stream, seq, resolved FROM incidents ORDER BY id"
            )
            if resolved or done is None
        ]

    def content(self):
        """Everything that must be the same, however the segments came."""
        tables = {
            "segments": "SELECT device, stream, seq, hash, bytes FROM segments ORDER BY 1, 2, 3",
            "records": "SELECT device, stream, seq, type, body, wall FROM records ORDER BY 1, 2, 3",
            "heads": "SELECT * FROM heads ORDER BY 1, 2",
            "drops": "SELECT * FROM drops ORDER BY 1, 2, 3",
            "boots": "SELECT * FROM boots ORDER BY 1, 2",
        }
        return {name: self.db.execute(query).fetchall() for name, query in tables.items()}

    def events(self):
        return [event for _, event in events.page(self.db, 0)]


@pytest.fixture
def collector(tmp_path):
    made = Collector(str(tmp_path / "collector.db"))
    yield made
    made.db.close()


def test_a_chain_in_order_is_stored_and_confirmed(collector):
    made = chain(3)
    names, receipt = collector.take(*made)
    assert names == ["stored"] * 3
    head = receipt.head(0)
    from hashlib import sha256

    assert (head.sequence, head.hash) == (3, sha256(made[2]).digest())
    assert receipt.covers(Name(0, 3))
    assert not receipt.covers(Name(0, 4))
    assert collector.incidents() == []
    assert [event["seq"] for event in collector.events()] == [1, 2, 3, 4, 5, 6]


def test_any_order_any_repetition_the_same_database(tmp_path):
    made = chain(4)
    expected = Collector(str(tmp_path / "straight.db"))
    expected.take(*made)
    dice = random.Random(7)
    for number, order in enumerate(itertools.permutations(made)):
        if dice.random() > 0.5:
            continue
        collector = Collector(str(tmp_path / f"{number}.db"))
        for part in [*order, *order, *(dice.choices(made, k=6))]:
            collector.take(part)
        assert collector.content() == expected.content()
        assert collector.incidents() == []
        collector.db.close()


def test_newest_first_is_held_and_confirmed_when_the_gap_closes(collector):
    one, two, three = chain(3)
    names, receipt = collector.take(three)
    assert names == ["stored"]
    assert receipt.heads == ()
    assert receipt.holds(Name(0, 3))
    assert not receipt.holds(Name(0, 1))
    assert collector.incidents() == [("gap", 0, 1)]
    _, receipt = collector.take(one)
    assert receipt.head(0).sequence == 1
    assert [tuple(part) for part in receipt.held] == [(0, 3, 3)]
    _, receipt = collector.take(two)
    assert (receipt.head(0).sequence, receipt.held) == (3, ())
    assert collector.incidents() == []


def test_streams_do_not_wait_for_each_other(collector):
    _, receipt = collector.take(chain(2)[0], *chain(2, stream=2), chain(3, stream=3)[2])
    assert [(head.stream, head.sequence) for head in receipt.heads] == [(0, 1), (2, 2)]


def test_the_same_number_with_other_content_is_equivocation(collector):
    one, two = chain(2)
    collector.take(one, two)
    clone = segment(2, wire.NO_PREVIOUS, records=[state("forged")])
    names, receipt = collector.take(clone)
    assert names == ["equivocation"]
    assert receipt.refused[0].reason == "equivocation"
    assert ("equivocation", 0, 2) in collector.incidents()
    assert collector.db.execute("SELECT evidence FROM incidents WHERE name = 'equivocation'").fetchone()[0] == clone
    assert "forged" not in json.dumps(collector.events())


def test_one_device_cannot_fill_the_table_of_incidents(collector, monkeypatch):
    """Neither for the others nor in front of what else is wrong with itself."""
    monkeypatch.setattr(store, "INCIDENTS_EACH", 20)
    monkeypatch.setattr(store, "INCIDENTS_MAX", 100)
    flood = [segment(number, wire.NO_PREVIOUS, seed=b"\x66" * 32) for number in range(1000, 1150)]
    collector.take(*flood)
    assert len(collector.incidents()) <= 40
    one, two = chain(2)
    collector.take(one, two)
    collector.take(segment(2, wire.NO_PREVIOUS, records=[state("forged")]))
    assert ("equivocation", 0, 2) in collector.incidents()


def test_what_is_over_makes_room_for_what_is_new(collector, monkeypatch):
    """A fleet that lives for years has more gaps that closed than the table has rows."""
    monkeypatch.setattr(store, "INCIDENTS_EACH", 3)
    made = chain(20)
    for at in range(0, 18, 2):
        collector.take(made[at + 1])
        collector.take(made[at])
    collector.take(made[19])
    assert ("gap", 0, 19) in collector.incidents()
    monkeypatch.setattr(store, "INCIDENTS_MAX", 3)
    collector.take(segment(30, wire.NO_PREVIOUS, stream=1))
    assert ("gap", 1, 1) in collector.incidents()
    collector.db.execute("UPDATE incidents SET noted = 1")  # somebody was told, and will be that it is over
    collector.take(segment(30, wire.NO_PREVIOUS, stream=2))
    assert ("gap", 2, 1) not in collector.incidents()


def test_a_full_disk_is_called_one(tmp_path):
    db = store.connect(str(tmp_path / "full.db"))
    db.execute("CREATE TABLE t (x)")
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(sqlite3.OperationalError, match="disk is full"), db.transaction():
        db.executemany("INSERT INTO t VALUES (zeroblob(?))", [(5000,)] * 100)
    with db.transaction():
        pass


def test_a_cut_and_rejoined_chain_is_named(collector):
    one, _, _ = chain(3)
    rejoined = segment(2, b"\x66" * 32)
    names, receipt = collector.take(one, rejoined)
    assert names == ["stored", "stored"]
    assert ("spliced", 0, 2) in collector.incidents()
    assert receipt.head(0).sequence == 2


def test_records_that_are_in_no_segment_are_named(collector):
    from hashlib import sha256

    one = chain(1)[0]
    collector.take(one, segment(2, sha256(one).digest(), first=7))
    assert collector.incidents() == [("records missing", 0, 2)]
    two = collector.db.execute("SELECT hash FROM segments WHERE seq = 2").fetchone()[0]
    collector.take(segment(3, two, first=8))
    assert ("records twice", 0, 3) in collector.incidents()


def with_a_lost_journal(at: int, last: int = 6):
    """Segments of which the third lacks records before it; the one with number `at` says that a journal was damaged."""
    from hashlib import sha256

    made, previous, first = [], wire.NO_PREVIOUS, 1
    for sequence in range(1, last + 1):
        first += 7 if sequence == 3 else 0
        when = moment(sequence * 1000)
        said = [compose.drop(0, "damaged", when, name="journal.0")] if sequence == at else []
        made.append(segment(sequence, previous, first=first, records=[compose.text("x", when), *said]))
        previous, first = sha256(made[-1]).digest(), first + 1 + len(said)
    return made


@pytest.mark.parametrize("at", [3, 4, 6])
@pytest.mark.parametrize("together", [True, False])
def test_records_of_a_journal_that_the_device_lost_are_no_defect(collector, at, together):
    made = with_a_lost_journal(at)
    for some in [made] if together else [[part] for part in made]:
        collector.take(*some)
    assert collector.incidents() == [("explained loss", 0, at)]


def test_a_journal_that_was_lost_explains_nothing_that_comes_later(collector):
    collector.take(*with_a_lost_journal(1))
    assert ("records missing", 0, 3) in collector.incidents()


def test_a_loss_that_the_device_explains_does_not_stop_the_chain(collector):
    from hashlib import sha256

    one = chain(1)[0]
    after = segment(3, sha256(one).digest(), first=5, drops=[Drop(2, 2, 1, 0)])
    _, receipt = collector.take(one, after)
    assert receipt.head(0).sequence == 3
    assert collector.incidents() == [("explained loss", 0, 2)]


def test_a_loss_explained_by_a_record_counts_for_another_stream(collector):
    from hashlib import sha256

    one = chain(1, stream=1)[0]
    _, receipt = collector.take(one, segment(3, sha256(one).digest(), stream=1, first=5))
    assert receipt.head(1).sequence == 1
    told = compose.drop(1, "damaged", moment(), first=2, last=2, name="1-0000000000000002.egs")
    _, receipt = collector.take(segment(1, wire.NO_PREVIOUS, records=[told], first=1))
    assert receipt.head(1).sequence == 3
    assert "spliced" not in {name for name, _, _ in collector.incidents()}


def test_what_was_damaged_on_the_device_but_arrived_whole_is_kept(collector):
    from hashlib import sha256

    one, two = chain(2)
    after = segment(3, sha256(one).digest(), first=5, drops=[Drop(2, 2, 1, 0)])
    for order in ((one, two, after), (after, two, one), (one, after, two)):
        fresh = Collector(":memory:")
        for part in order:
            fresh.take(part)
        assert fresh.db.execute("SELECT seq FROM heads").fetchall() == [(3,)]
        assert "spliced" not in {name for name, _, _ in fresh.incidents()}


LOST, SPOILED = 2, 1  # reasons of a drop


def spoiled_where_they_lay(*, arrived, named, lost):
    """Four segments; `arrived` came, all others were let go undelivered, and those in 2..3 were damaged on the device
    after that. What the next one, number 5, names as its predecessor: number `named`, 0 for none."""
    from hashlib import sha256

    made = chain(4)
    previous = sha256(made[named - 1]).digest() if named else wire.NO_PREVIOUS
    drops = [Drop(number, number, reason, 0) for number, reason in lost]
    return [made[number - 1] for number in arrived], segment(5, previous, first=9, drops=drops)


@pytest.mark.parametrize(
    ("arrived", "named", "lost"),
    [
        ([4], 0, [(1, LOST), (2, LOST), (3, LOST), (4, SPOILED)]),  # nothing before it is left on the device
        ([2, 4], 0, [(1, LOST), (2, SPOILED), (3, SPOILED), (4, SPOILED)]),
        ([4], 3, [(1, LOST), (2, LOST), (3, LOST), (4, SPOILED)]),  # the good one was let go after it was named
        ([4], 2, [(1, LOST), (2, LOST), (3, SPOILED), (4, SPOILED)]),
        ([1, 2, 4], 2, [(3, SPOILED), (4, SPOILED)]),
        ([1, 2, 3, 4], 2, [(3, SPOILED), (4, SPOILED)]),
    ],
)
def test_going_on_after_damage_is_no_splice(collector, arrived, named, lost):
    before, after = spoiled_where_they_lay(arrived=arrived, named=named, lost=lost)
    collector.take(*before, after)
    assert collector.db.execute("SELECT seq FROM heads").fetchall() == [(5,)]
    assert "spliced" not in {name for name, _, _ in collector.incidents(resolved=True)}


@pytest.mark.parametrize(
    ("arrived", "named", "lost"),
    [
        ([1, 4], 0, [(2, LOST), (3, LOST), (4, SPOILED)]),  # the first is not said to be lost
        ([3, 4], 0, [(1, LOST), (2, LOST), (4, SPOILED)]),
        ([3, 4], 2, [(1, LOST), (2, LOST), (4, SPOILED)]),  # the third is good, and passed over
        ([1, 2, 3, 4], 2, [(3, SPOILED)]),
        ([3, 4], 1, [(1, LOST), (2, LOST), (3, SPOILED)]),
    ],
)
def test_what_passes_over_good_ones_is_a_splice(collector, arrived, named, lost):
    before, after = spoiled_where_they_lay(arrived=arrived, named=named, lost=lost)
    collector.take(*before, after)
    assert ("spliced", 0, 5) in collector.incidents()


def test_an_operator_ends_a_gap(collector):
    _, two, three = chain(3)
    collector.take(two, three)
    collector.ingest.explain(collector.device, 0, 1)
    assert receipts.unverified(collector.ingest.receipt(collector.device)).head(0).sequence == 3


def test_every_flipped_bit_is_refused_and_nothing_is_stored(collector):
    made = chain(1)[0]
    collector.take(made)
    before = collector.content()
    for place in range(0, len(made), 3):
        damaged = bytearray(made)
        damaged[place] ^= 1 << (place % 8)
        try:
            names, receipt = collector.take(bytes(damaged))
        except SegmentRefused:
            continue
        assert names[0] in {"altered", "truncated file"}
        assert receipt.refused
    assert collector.content() == before


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (segment(1, wire.NO_PREVIOUS, seed=OTHER), "re-sealed"),
        (segment(1, wire.NO_PREVIOUS, device=bytes(16)), "replayed"),
        (cose.sign1(b"\x80", EPOCH_SEED, cose.SEGMENT_AAD), "malformed"),
        (cose.sign1(b"\x9f" * 50, EPOCH_SEED, cose.SEGMENT_AAD), "malformed"),
        (cose.sign1(b"\x81" * 5000, EPOCH_SEED, cose.SEGMENT_AAD), "malformed"),
        (cose.sign1(cose.parse1(segment(1, wire.NO_PREVIOUS)).payload, EPOCH_SEED, cose.RECEIPT_AAD), "altered"),
        (segment(1, wire.NO_PREVIOUS, epoch=2), "re-sealed"),
        (segment(1, wire.NO_PREVIOUS, epoch=2, seed=OTHER), "unknown epoch"),
        (segment(1, wire.NO_PREVIOUS, seed=SEED), "re-sealed"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)  # fmt: skip
def test_what_is_not_a_segment_of_this_device_is_refused_by_name(collector, made, name):
    good = chain(1)[0]
    names, receipt = collector.take(made, good, made)
    assert names == [name, "stored", name]
    assert {refusal.reason for refusal in receipt.refused} == {name}
    assert receipt.head(0).sequence == 1
    assert name in {incident for incident, _, _ in collector.incidents()}


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_body_is_an_answer_or_segmentrefused(data):
    collector = Collector(":memory:")
    with contextlib.suppress(SegmentRefused):
        collector.take(data)
    assert collector.content()["segments"] == []


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=150), st.integers(0, 4))
def test_any_signed_payload_is_an_answer(payload, where):
    collector = Collector(":memory:")
    names, _ = collector.take(cose.sign1(payload, EPOCH_SEED, cose.SEGMENT_AAD))
    assert names == ["malformed"]


def test_huge_numbers_do_not_upset_the_database(collector):
    for sequence, first in ((wire.COUNT_MAX - 1, wire.COUNT_MAX - 1), (2**63, 1), (2**64 - 1, 2**64 - 1)):
        collector.take(segment(sequence, bytes(32), first=first))
    bounds = [Drop(1, wire.COUNT_MAX - 1, 60_000, 0)]
    _, receipt = collector.take(segment(5, bytes(32), drops=bounds))
    assert receipt.head(0).sequence == wire.COUNT_MAX - 1
    forged = compose.drop(1, "damaged", moment(), first=2**64 - 2, last=2**64 - 1)
    collector.take(segment(6, bytes(32), records=[forged, compose.drop(0, "damaged", moment(), first=9, last=2)]))


def test_strangers_on_a_stick_are_named(collector):
    stranger = segment(1, wire.NO_PREVIOUS, seed=OTHER, device=cose.device_id(cose.public_of(OTHER)))
    verdicts = collector.ingest.take_files([stranger, chain(1)[0], b"\xd2\x84garbage"])
    assert [verdict.name for verdict in verdicts] == ["unknown device", "stored", "unknown device"]
    assert collector.incidents()[0][0] == "unknown device"


def test_a_device_is_known_once(collector):
    with pytest.raises(ValueError, match="known already"):
        collector.ingest.add_device("pump-07", cose.public_of(OTHER))
    with pytest.raises(ValueError, match="known already"):
        collector.ingest.add_device("other", PUBLIC)


def test_a_failure_in_the_middle_stores_nothing(collector, monkeypatch):
    one, two = chain(2)
    real = bulk.write_records

    def failing(db, segments):
        real(db, itertools.islice(segments, 1))
        raise store.sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(bulk, "write_records", failing)
    with pytest.raises(store.sqlite3.OperationalError):
        collector.take(one, two)
    assert collector.content()["segments"] == []
    monkeypatch.undo()
    names, _ = collector.take(one, two)
    assert names == ["stored", "stored"]


def test_events_carry_names_times_and_nothing_that_moves_a_terminal(collector):
    nasty = "/tmp/\x1b[2J\x7f\u009b\nx\udcff"
    made = [compose.finding(finding(nasty, note=nasty), moment(1000))]
    collector.take(segment(1, wire.NO_PREVIOUS, records=made))
    (event,) = collector.events()
    assert event["type"] == "finding"
    assert event["severity"] == "critical"
    assert event["transition"] == "opened"
    assert event["code"] == "EG-FILE-002"
    assert event["time"] == "2026-11-23T06:42:58.140Z"
    assert event["clock"] == "ntp"
    assert event["subject"] == "/tmp/\x1b[2J\x7f\u009b\nx\\xff"
    assert event["expected"]["sha256"] == "00" * 32
    assert event["actor"]["exe"] == "/usr/bin/cp"
    for shown in (events.line(event), events.sentence(event)):
        assert shown.isascii() or shown.isprintable()
        assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown)
    assert json.loads(events.line(event))["subject"] == event["subject"]


def test_the_time_of_a_boot_is_known_once_one_segment_knows_it(collector):
    blind = [state("early")._replace(mono=1000, wall=5000, clock=0)]
    later = [state("late")._replace(mono=9000, wall=1_795_416_000_000, clock=2)]
    collector.take(segment(1, wire.NO_PREVIOUS, records=blind))
    assert collector.events()[0]["time"] == "1970-01-01T00:00:05.000Z"
    collector.take(segment(1, wire.NO_PREVIOUS, stream=3, records=later))
    event = collector.events()[0]
    assert event["time"] == events.iso(1_795_416_000_000 - 8000)
    assert event["clock"] == "ntp"


def test_types_of_tomorrow_are_kept_and_shown(collector):
    future = wire.Record(99, 0, 1, None, 0, 2, False, (1, ["x", {"y": b"\x01"}]))
    collector.take(segment(1, wire.NO_PREVIOUS, records=[future]))
    (event,) = collector.events()
    assert (event["type"], event["unknown_fields"]) == (99, [1, ["x", {"y": "01"}]])
    events.sentence(event)


@pytest.mark.parametrize("ms", [0, -(2**61), 2**61, 1_795_416_177_140])
def test_any_time_can_be_shown(ms):
    assert events.iso(ms)


def test_a_listing_is_in_the_order_of_the_device_however_it_came(collector):
    made = chain(4)
    assert events.last_row(collector.db) == 0
    collector.take(made[3], made[1])
    collector.take(segment(1, wire.NO_PREVIOUS, stream=3, boot=2, records=[state("later boot", mono=5)]))
    collector.take(made[0], made[2])
    shown = [(event["stream"], event["seq"]) for event in events.listing(collector.db, 10**6)]
    assert shown == [*((0, seq) for seq in range(1, 9)), (3, 1)]
    assert [event["seq"] for event in events.listing(collector.db, 10**6, "nobody")] == []
