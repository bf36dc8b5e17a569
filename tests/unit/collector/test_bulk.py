"""Many POSTs in one transaction: whatever is in them, the database is the one that one segment at a time makes."""

import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_world import finding, moment, state, statement
from test_ingest import COLLECTOR, segment

from edgeguard.codec import cose
from edgeguard.collector import bulk, store
from edgeguard.collector.ingest import Ingest
from edgeguard.records import compose, receipts, wire
from edgeguard.records.epoch import Before, Head
from edgeguard.records.wire import Drop

KEY = [cose.public_of(COLLECTOR)]
SECOND = b"\x55" * 32  # the next epoch's key
FIRST = b"\x07" * 32
TABLES = {
    "segments": "device, stream, seq, hash, previous, first, n, epoch, boot, mono, wall, clock, bytes",
    "records": "device, stream, seq, type, severity, boot, mono, wall, code, body",
    "heads": "device, stream, seq, hash, last_good, next_record",
    "drops": "device, stream, first, last, reason",
    "boots": 'device, boot, "offset", clock',
    "findings": "device, finding, seq, code, state, severity, openings",
    "announced": "device, stream, seq, substr(hash, 1, 8)",
    "epochs": "device, number, rival, bytes",
    "devices": "id, duplicates, segments, records, bytes, lag, beat, beat_seq",
}


def identity(number):
    return bytes([number + 1]) * 32


def parts(number, length, dice):
    """A device's two epochs: what an honest device sends, and now and then something that is not."""
    seed = identity(number)
    device = cose.device_id(cose.public_of(seed))
    heads = {0: [wire.NO_PREVIOUS], 1: [wire.NO_PREVIOUS]}
    counted = {0: 1, 1: 1}

    def seldom():
        return dice.random() < 0.05

    made = [statement(seed, boot=2)]
    for at in range(length):
        late = at >= length // 2
        if at == length // 2:
            said = tuple(
                Head(stream, len(all_) - 1, b"\x12" * 16 if seldom() else all_[-1][:16])
                for stream, all_ in heads.items() if len(all_) > 1
            )  # fmt: skip
            before = Before(1, cose.public_of(FIRST))
            made.append(statement(seed, 2, SECOND, boot=2, heads=said, before=before, announced_by=FIRST))
        stream = dice.choice((0, 1))
        sequence, previous = len(heads[stream]), heads[stream][-1]
        if seldom():
            previous = b"\x11" * 32
        records = [_record(at, heads, seldom, dice) for _ in range(dice.randint(1, 3))]
        if stream == 1:
            records = [compose.text(f"{at}", moment(at))] * dice.randint(1, 4)
        old = late and seldom()  # by a key that is gone
        lost = sequence + dice.choice((-1, 1, 2))
        data = segment(
            sequence, previous, stream=stream, device=device, epoch=1 + (late and not old), boot=2 + seldom(),
            records=records,
            seed=SECOND if late and not (old or seldom()) else FIRST, first=counted[stream] + seldom(),
            drops=[Drop(lost, lost, 0, stream)] if seldom() and lost > 0 else (),
        )  # fmt: skip
        heads[stream].append(sha256(data).digest())
        counted[stream] += len(records)
        made.append(data)
    return made


def _record(at, heads, seldom, dice):
    newest = len(heads[1]) - 1
    named = [(1, newest, heads[1][-1][:8])] if newest else []
    if seldom():
        named = [(1, newest + 1, b"\x13" * 8)]  # one that is still to come, and will be another
    return dice.choice((
        state(f"s{at}", at), compose.finding(finding(f"/{at % 3}"), moment(at)), compose.text("words", moment(at, 0)),
        compose.heartbeat(moment(at), named, 60),
    ))  # fmt: skip


def posts(dice, devices, length):
    """Everything that devices send, mostly in their order: POSTs, some of them late, some twice, one never."""
    found = []
    for number in range(devices):
        some, at = parts(number, length, dice), 0
        mine = []
        while at < len(some):
            step = dice.randint(1, 3)
            mine.append((number, some[at : at + step]))
            at += step
        if dice.random() < 0.5 and len(mine) > 1:
            mine.pop(dice.randrange(len(mine)))
        if dice.random() < 0.5:
            mine.insert(dice.randrange(len(mine) + 1), dice.choice(mine))
        if dice.random() < 0.5:
            place = dice.randrange(len(mine))
            mine.insert(min(len(mine), place + 2), mine.pop(place))
        found.append(mine)
    mixed = []
    while any(found):
        mixed.append(dice.choice([mine for mine in found if mine]).pop(0))
    return mixed


class World:
    def __init__(self, db, devices):
        self.db = db
        self.ingest = Ingest(db, COLLECTOR, lambda: 1_900_000_000_000)
        self.devices = [self.ingest.add_device(f"d{n}", cose.public_of(identity(n))) for n in range(devices)]

    def take(self, some):
        answers = self.ingest.take_all([(parts_, self.devices[number]) for number, parts_ in some])
        return [
            (number, receipts.verified(receipt, KEY, self.devices[number].id)) for (number, _), (_, receipt)
            in zip(some, answers, strict=True)
        ]  # fmt: skip

    def content(self):
        found = {
            table: [
                tuple(row) for row in self.db.execute(f"SELECT {columns} FROM {table} ORDER BY {columns}").fetchall()
            ]
            for table, columns in TABLES.items()
        }
        incidents = "SELECT device, stream, seq, name FROM incidents WHERE resolved IS NULL GROUP BY 1, 2, 3, 4"
        found["incidents"] = sorted(map(tuple, self.db.execute(incidents).fetchall()))
        return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_in_bulk_and_one_at_a_time_make_the_same_database(seed):
    compare(random.Random(seed), lambda: store.connect(":memory:"))


def compare(dice, connect):
    devices = dice.randint(1, 4)
    all_posts = posts(dice, devices, dice.randint(2, 20))
    many, single = World(connect(), devices), World(connect(), devices)
    while all_posts:
        batch = [all_posts.pop(0) for _ in range(min(len(all_posts), dice.randint(1, 3)))]
        last = dict(many.take(batch))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bulk, "ordinary", lambda *_: None)
            alone = dict(single.take(batch))
        for number, receipt in last.items():
            other = alone[number]
            assert (receipt.heads, receipt.held, receipt.epochs) == (other.heads, other.held, other.epochs)
    found, right = many.content(), single.content()
    for table in right:
        assert found[table] == right[table], table
    many.db.close()
    single.db.close()


def honest(length, **more):
    made, previous = [statement(identity(0), boot=2)], wire.NO_PREVIOUS
    for sequence in range(1, length + 1):
        device = cose.device_id(cose.public_of(identity(0)))
        made.append(segment(sequence, previous, device=device, stream=1, **more))
        previous = sha256(made[-1]).digest()
    return made


@pytest.fixture
def world():
    made = World(store.connect(":memory:"), 2)
    yield made
    made.db.close()


def test_what_is_ordinary_is_not_looked_at_one_at_a_time(world, monkeypatch):
    monkeypatch.setattr(Ingest, "_take_one", lambda *_: pytest.fail("it was ordinary"))
    some = honest(6)
    world.take([(0, some[:3])])
    world.take([(0, some[3:5]), (0, some[5:])])
    assert world.content()["heads"][0][2] == 6


def test_a_batch_asks_the_database_as_often_as_one_post(world, monkeypatch):
    world.take([(0, honest(0))])
    asked = []
    world.db.set_trace_callback(asked.append)
    some = honest(40)[1:]
    world.take([(0, [part]) for part in some])
    statements_ = [line for line in asked if not line.startswith("INSERT INTO records")]
    assert len(statements_) < 16, statements_


def test_each_post_hears_of_its_own_segments(world):
    some = honest(3)
    answers = world.ingest.take_all(
        [(some[:2], world.devices[0]), ([b"\x80"], world.devices[1]), ([*some[2:], some[1]], world.devices[0])]
    )
    names = [[verdict.name for verdict in verdicts] for verdicts, _ in answers]
    assert names == [["stored", "stored"], ["altered"], ["stored", "stored", "duplicate"]]
    assert world.db.execute("SELECT duplicates FROM devices ORDER BY name").fetchall() == [(1,), (0,)]
