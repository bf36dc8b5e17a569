"""What the collector makes of statements about keys, and of segments that they speak against, in any order."""

import itertools
import json
import os
from hashlib import sha256
from pathlib import Path

import pytest
from small_world import EPOCH_SEED, moment, state, statement
from test_ingest import DEVICE, OTHER, SEED, Collector, chain, segment

from edgeguard.codec import cose
from edgeguard.collector import store, verify
from edgeguard.collector.ingest import Ingest
from edgeguard.collector.main import _device_document, _device_lines
from edgeguard.collector.statements import UNANNOUNCED
from edgeguard.records import compose, epoch, keyring, link, outbox, receipts, transport, uplink, wire
from edgeguard.records.defects import Name
from edgeguard.records.epoch import Before, Head
from edgeguard.records.wire import Drop

SECOND = b"\x08" * 32
PUBLIC = cose.public_of(EPOCH_SEED)


class Wire:
    """In the place of the uplink's connection: a collector, and what went to it."""

    def __init__(self, fresh, *, refuses=False):
        self.fresh, self.bodies, self.refuses = fresh, [], refuses

    def __call__(self, _settings):
        return self

    def post(self, body):
        self.bodies.append(wire.split(body))
        verdicts, receipt = self.fresh.ingest.take(body, self.fresh.device)
        assert self.refuses or all(verdict.taken for verdict in verdicts), verdicts
        return link.Reply(200, receipt, None)

    relayed, judged_at = False, 0

    def room(self, most):
        return most, most

    def spent(self):
        return 0

    def close(self):
        pass


class Fresh(Collector):
    """Without any statement yet."""

    def __init__(self):
        self.db = store.connect(":memory:")
        self.time = 1_000_000
        self.ingest = Ingest(self.db, b"\x09" * 32, lambda: self.time)
        self.device = self.ingest.add_device("pump-07", cose.public_of(SEED))

    def verified(self):
        report = verify.database(self.db)
        return set(report.counts), report


def short(data):
    return sha256(data).digest()[:16]


def world():
    """Two epochs of one start: two segments each, and the statements of both."""
    one, two = chain(2)
    three = segment(3, sha256(two).digest(), seed=SECOND, epoch=2)
    four = segment(4, sha256(three).digest(), seed=SECOND, epoch=2)
    first = statement()
    second = statement(
        number=2, seed=SECOND, heads=(Head(0, 2, short(two)),), before=Before(1, PUBLIC), announced_by=EPOCH_SEED
    )
    return [first, second, one, two, three, four]


def test_any_order_of_statements_and_segments_is_the_same_database(tmp_path):
    parts = world()
    expected = None
    for order in itertools.islice(itertools.permutations(parts), 0, 720, 11):
        fresh = Fresh()
        for part in [*order, *parts]:  # what came too early comes again
            fresh.take(part)
        content = {**fresh.content(), "epochs": fresh.db.execute("SELECT number, kid, bytes FROM epochs").fetchall()}
        content["epochs"].sort()
        expected = expected or content
        assert content == expected
        assert [name for name, _, _ in fresh.incidents() if name != Name.UNCERTIFIED.word] == []
        found, report = fresh.verified()
        assert (found, report.segments) == (set(), 4)
        fresh.db.close()


def test_without_a_statement_a_segment_waits_on_its_device():
    first, _, one, two, *_ = world()
    fresh = Fresh()
    names, receipt = fresh.take(one)
    assert (names, receipt.heads, receipt.epochs) == (["unknown epoch"], (), ())
    assert receipt.refused[0].reason == "unknown epoch"
    names, receipt = fresh.take(one, two, first)
    assert (names, receipt.head(0).sequence, receipt.epochs) == (["stored"] * 3, 2, (1,))
    assert fresh.take(first)[0] == ["duplicate"]


def test_the_next_statement_names_the_key_of_one_that_never_came():
    _, second, one, two, three, _ = world()
    fresh = Fresh()
    names, receipt = fresh.take(second, one, two, three)
    assert (names, receipt.head(0).sequence, receipt.epochs) == (["stored"] * 4, 3, (2,))
    assert fresh.incidents() == []


def misplaced():
    """A segment that the key of the second epoch sealed under a number of the first, and the other way round."""
    first, second, one, two, *_ = world()
    again = segment(2, sha256(one).digest(), seed=SECOND, epoch=2)
    late = segment(3, sha256(two).digest())
    return {
        "sealed later": ([first, second, one, again], ("sealed later", 0, 2)),
        "old epoch": ([first, second, one, two, late], ("old epoch", 0, 3)),
        "after its start": ([first, segment(1, wire.NO_PREVIOUS, boot=2)], ("old epoch", 0, 1)),
        "another than the statement names": (
            [first, second, one, segment(2, sha256(one).digest(), records=[state("x"), state("y")])],
            ("rolled back", 0, 2),
        ),
        "another than the heartbeat names": (
            [first, segment(1, wire.NO_PREVIOUS, stream=1),
             segment(1, wire.NO_PREVIOUS, records=[compose.heartbeat(moment(), [(1, 1, b"\x66" * 8)], 3600)])],
            ("rolled back", 1, 1),
        ),
        "unannounced": ([first, statement(number=2, seed=SECOND)], ("unannounced epoch", -1, 2)),
        "back to an earlier start": (
            [statement(boot=2), statement(number=2, seed=SECOND, boot=1)], ("boot went back", -1, 2)
        ),
        "fewer segments than before": (
            [statement(heads=(Head(0, 9, bytes(16)),)),
             statement(number=2, seed=SECOND, heads=(Head(0, 3, bytes(16)),))],
            ("rolled back", -1, 2),
        ),
        "another epoch before": (
            [first, statement(number=2, seed=SECOND, before=Before(1, cose.public_of(OTHER)), announced_by=OTHER)],
            ("forged epoch", -1, 2),
        ),
        "somebody else's": ([first, _signed_by_another()], ("forged epoch", -1, 0)),
        "two of one number": ([first, statement(seed=SECOND)], ("equivocation", -1, 1)),
    }  # fmt: skip


def _signed_by_another():
    return cose.sign1(cose.parse1(statement(number=2, seed=SECOND)).payload, OTHER, cose.EPOCH_AAD)


@pytest.mark.parametrize("what", misplaced())
def test_each_has_its_name_whatever_came_first(what):
    parts, incident = misplaced()[what]
    for order in itertools.permutations(parts):
        fresh = Fresh()
        for part in [*order, *order]:
            fresh.take(part)
        found = fresh.incidents()
        assert incident[0] in {name for name, _, _ in found}, (what, found)
        if order == tuple(parts):
            assert incident in found
        names = {name.word for name in fresh.verified()[0]}
        refused = what == "somebody else's"  # nothing of it is in the database
        assert refused or incident[0] in names | {UNANNOUNCED}, (what, names)


def test_after_a_start_of_the_device_an_unannounced_epoch_is_ordinary():
    fresh = Fresh()
    fresh.take(statement(), statement(number=2, seed=SECOND, boot=2))
    assert fresh.incidents() == []


def test_a_clone_is_named_by_its_statement_and_by_its_segments():
    first, _, one, two, *_ = world()
    fresh = Fresh()
    fresh.take(first, one, two)
    twin = segment(2, sha256(one).digest(), seed=SECOND, records=[state("elsewhere")])
    names, receipt = fresh.take(statement(seed=SECOND), twin)
    assert names == ["equivocation", "equivocation"]
    assert {item.reason for item in receipt.refused} == {"equivocation"}
    assert fresh.take(statement(seed=SECOND))[0] == ["duplicate"]
    found, _ = fresh.verified()
    assert found == {Name.EQUIVOCATION}


def test_damage_that_the_device_tells_speaks_against_nothing():
    """It had 2, which was damaged before the next epoch began: the statement names the last good one, if any."""
    first, _, one, two, *_ = world()
    second = statement(
        number=2, seed=SECOND, heads=(Head(0, 2, b""),), before=Before(1, PUBLIC), announced_by=EPOCH_SEED
    )
    three = segment(3, sha256(one).digest(), seed=SECOND, epoch=2, first=5, drops=[Drop(2, 2, 1, 0)])
    for order in itertools.permutations([second, one, two, three]):
        fresh = Fresh()
        for part in (first, *order, *order):
            fresh.take(part)
        assert {name for name, _, _ in fresh.incidents()} <= {"explained loss", "late", "unknown epoch"}
        assert fresh.verified()[0] == set()


def test_what_was_announced_and_never_came_is_shown_and_later_named():
    first, _, one, *_ = world()
    fresh = Fresh()
    heartbeat = segment(
        2, sha256(one).digest(), records=[compose.heartbeat(moment(), [(2, 7, b"\x66" * 8)], 3600), state("x")]
    )
    fresh.take(first, one, heartbeat)
    row = fresh.db.execute("SELECT id, name, seen, duplicates FROM devices").fetchone()
    document = _device_document(fresh.db, row)
    assert [(item["stream"], item["announced"], item["newest"]) for item in document["streams"]] == [
        (0, 0, 2),
        (2, 7, 0),
    ]
    assert any("7 announced" in line for line in _device_lines(document))
    found, report = fresh.verified()
    assert found == set()
    assert "named segments 1 to 7 of stream 2" in " ".join(report.notes)
    fresh.time += verify.ANNOUNCED_MS
    assert fresh.verified()[0] == set()  # not heard since
    fresh.take(one)
    assert fresh.verified()[0] == {Name.TAIL}
    json.dumps(document)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("DELETE FROM epochs WHERE number = 2", {Name.UNCERTIFIED}),
        ("DELETE FROM epochs WHERE number = 1", set()),  # the second names its key
        ("UPDATE epochs SET bytes = substr(bytes, 1, 40)", {Name.TRUNCATED, Name.UNCERTIFIED}),
        ("UPDATE epochs SET bytes = 'text' WHERE number = 2", {Name.TRUNCATED, Name.UNCERTIFIED}),
        ("UPDATE epochs SET kid = x'00' WHERE number = 2", {Name.COLUMNS}),
        ("UPDATE epochs SET number = 9 WHERE number = 2", {Name.COLUMNS}),
        ("UPDATE epochs SET device = x'00' WHERE number = 2", {Name.UNCERTIFIED, Name.COLUMNS}),
    ],
)
def test_edited_statements_are_seen(query, names):
    fresh = Fresh()
    fresh.take(*world())
    assert fresh.verified()[0] == set()
    fresh.db.execute(query)
    assert fresh.verified()[0] == names


def test_many_statements_and_a_receipt_that_names_the_newest():
    fresh = Fresh()
    fresh.take(*(statement(number=number, seed=bytes([number]) * 32, boot=number) for number in range(1, 40)))
    receipt = receipts.unverified(fresh.ingest.receipt(fresh.device))
    assert receipt.epochs == tuple(range(39, 23, -1))
    assert receipt.device == DEVICE


def test_rivals_are_bounded():
    fresh = Fresh()
    for number in range(60):
        fresh.take(statement(seed=bytes([number + 1]) * 32))
    assert fresh.db.execute("SELECT count(*) FROM epochs").fetchone()[0] <= 20


def test_the_uplink_brings_each_statement_once_and_the_newest_at_once(device, monkeypatch):
    """What the newest names is the end of what goes with it."""
    fresh = Fresh()
    line = Wire(fresh)
    device.with_collector(cose.public_of(b"\x09" * 32))
    monkeypatch.setattr(transport, "Link", line)
    clock = {"mono": 1_000_000}
    monkeypatch.setattr(keyring, "_boot_ms", lambda: clock["mono"])
    for word in "abc":
        clock["mono"] += keyring.EPOCH_MS
        device.record_and_seal(state(word), compose.text("x", moment()))
    assert uplink.Uplink(device.settings).run() == 0
    (body,) = line.bodies
    numbers = [epoch.unverified(part).number for part in body if epoch.is_statement(part)]
    assert numbers == sorted(outbox.epochs(device.outbox))
    assert len(numbers) >= 3
    assert len(body) == len(numbers) + 6
    announced = dict(fresh.db.execute("SELECT stream, seq FROM announced").fetchall())
    assert announced == {0: 3, 3: 3}
    device.seal()
    device.record_and_seal(state("d"))
    assert uplink.Uplink(device.settings).run() == 0
    assert [epoch.is_statement(part) for part in line.bodies[1]] == [False]
    (Path(device.inbox) / "receipt.egr").unlink()  # the uplink has forgotten what the collector has
    assert uplink.Uplink(device.settings).run() == 0
    assert any(epoch.is_statement(part) for part in line.bodies[2])
    assert fresh.verified()[0] == set()
    assert fresh.incidents() == []


def test_a_statement_that_is_gone_or_no_statement_stops_nothing(device, monkeypatch):
    device.record_and_seal(state("a"))
    one = uplink.Uplink(device.settings).first
    path = Path(device.outbox) / outbox.epoch_file(1)
    batch = one._batch(one.waiting())
    assert list(one._statements(batch)) == [1]
    for spoil in (
        lambda: path.write_bytes(b"x" * 5000),
        lambda: path.write_bytes(b"x"),
        path.unlink,
        lambda: os.mkfifo(path),
    ):
        spoil()
        assert one._statements(batch) == {}


def test_a_receipt_that_claims_too_much_costs_one_more_exchange_and_no_segment(device, monkeypatch):
    """It lists an epoch that this collector does not have: an old one of another, or made up."""
    fresh = Fresh()
    line = Wire(fresh, refuses=True)
    device.with_collector(cose.public_of(b"\x09" * 32))
    monkeypatch.setattr(transport, "Link", line)
    device.record_and_seal(state("a"))
    claim = receipts.Receipt(device.id, 1, (), epochs=(1,))
    Path(device.inbox, "receipt.egr").write_bytes(cose.sign1(receipts.encode(claim), b"\x05" * 32, cose.RECEIPT_AAD))
    assert uplink.Uplink(device.settings).run() == 0
    assert [[epoch.is_statement(part) for part in body] for body in line.bodies] == [[False], [True, False]]
    assert fresh.db.execute("SELECT count(*) FROM segments").fetchone() == (1,)
