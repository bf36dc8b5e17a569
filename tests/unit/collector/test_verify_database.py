"""What somebody does to the collector's database is named; an honest one has no defect, however its segments came."""

import json
import os
import random
import sqlite3
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from small_world import Device, moment, state

from edgeguard.codec import cose
from edgeguard.collector import store, verify
from edgeguard.collector.ingest import Ingest
from edgeguard.records import compose, receipts, wire
from edgeguard.records.defects import Name
from edgeguard.records.outbox import Name as File

TREE = Path(__file__).resolve().parents[3]
COLLECTOR = b"\x09" * 32
OTHER = b"\x02" * 32


class World:
    """A device with six segments of findings and of verbose each, a collector that has them all."""

    def __init__(self, root):
        self.root = root
        self.device = Device(str(root / "device"))
        for word in "abcdef":
            self.device.record_and_seal(state(word), state("again"), compose.text(word, moment()))
        self.place = root / "collector"
        self.place.mkdir()
        (self.place / "collector.key").write_bytes(COLLECTOR)
        self.db = store.connect(str(self.place / verify.DATABASE))
        self.time = 1_000_000
        self.ingest = Ingest(self.db, COLLECTOR, lambda: self.time)
        self.known = self.ingest.add_device("pump-07", self.device.public)
        self.ingest.add_device("pump-08", cose.public_of(OTHER))

    def take(self, parts=None):
        for part in [*self.device.statements().values(), *(parts or self.device.segments().values())]:
            _, self.receipt = self.ingest.take(part, self.known)
        return self

    def names(self):
        with store.connect_readonly(str(self.place / verify.DATABASE)) as connection:
            report = verify.database(connection)
        return set(report.counts), report

    def part(self, sequence, stream=0):
        return self.device.segments()[File(stream, sequence).file]

    def made(self, sequence, seed=None, drops=(), records=None, **changes):
        """A segment made anew with a key; without one, with that of the epoch."""
        segment = wire.decode_segment(cose.parse1(self.part(sequence)).payload)
        records = records or [state("made anew")]
        payload = wire.encode_segment(segment.header._replace(**changes), records, None, drops)
        return cose.sign1(payload, seed or self.device.epoch_seed(), cose.SEGMENT_AAD)

    def put(self, sequence, data):
        """Over a row, with all that follows from the bytes."""
        self.db.execute(
            "UPDATE segments SET bytes = ?, hash = ? WHERE stream = 0 AND seq = ?",
            (data, sha256(data).digest(), sequence),
        )

    def delete(self, *sequences):
        for sequence in sequences:
            self.db.execute(
                "DELETE FROM records WHERE segment IN (SELECT id FROM segments WHERE stream = 0 AND seq = ?)",
                (sequence,),
            )
            self.db.execute("DELETE FROM segments WHERE stream = 0 AND seq = ?", (sequence,))


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.db.close()


def flipped(data, at=-10):
    spoiled = bytearray(data)
    spoiled[at] ^= 1
    return bytes(spoiled)


def exchange(world):
    one, two = world.part(3), world.part(4)
    world.put(3, two)
    world.put(4, one)


def sql(text):
    return lambda world: world.db.execute(text)


TAMPERING = {
    "a flipped bit": (lambda world: world.put(4, flipped(world.part(4))), {Name.ALTERED}),
    "cut off": (lambda world: world.put(4, world.part(4)[:-20]), {Name.TRUNCATED}),
    "deleted in the middle": (lambda world: world.delete(3), {Name.MISSING}),
    "deleted at the end": (lambda world: world.delete(5, 6), {Name.TAIL}),
    "deleted at the beginning": (lambda world: world.delete(1, 2), {Name.BEGINNING}),
    "two exchanged": (exchange, {Name.REORDERED}),
    "under another number": (
        sql("UPDATE segments SET seq = 9 WHERE seq = 6 AND stream = 0"),
        {Name.REORDERED, Name.TAIL},
    ),
    "re-sealed": (lambda world: world.put(4, world.made(4, seed=OTHER)), {Name.RESEALED}),
    "another device's": (
        lambda world: world.put(4, world.made(4, seed=OTHER, device=cose.device_id(cose.public_of(OTHER)))),
        {Name.FOREIGN},
    ),
    "a clone sends, too": (lambda world: world.take([world.made(4)]), {Name.EQUIVOCATION}),
    "explained away": (
        lambda world: (
            world.delete(3),
            world.db.execute("INSERT INTO drops SELECT id, 0, 3, 3, 1 FROM devices LIMIT 1"),
        ),
        {Name.FORGED_DROP, Name.MISSING},
    ),
    "columns": (sql("UPDATE segments SET first = 1 WHERE seq = 4 AND stream = 0"), {Name.COLUMNS}),
    "records deleted": (sql("DELETE FROM records WHERE stream = 0 AND seq = 5"), {Name.COLUMNS}),
    "head moved": (sql("UPDATE heads SET last_good = 9 WHERE stream = 0"), {Name.TAIL}),
    "device forgotten": (
        sql("DELETE FROM devices WHERE name = 'pump-07'"),
        {Name.COLUMNS, Name.TAIL},
    ),
    "another key": (
        lambda world: world.db.execute(
            "UPDATE devices SET public = ? WHERE name = 'pump-07'", (cose.public_of(b"\x03" * 32),)
        ),
        {Name.COLUMNS, Name.FOREIGN},
    ),
}


@pytest.mark.parametrize("what", TAMPERING)
def test_each_tampering_has_its_name(world, what):
    world.take()
    assert world.names()[0] == set()
    tamper, names = TAMPERING[what]
    tamper(world)
    found, report = world.names()
    assert found == names, report.defects


def test_in_any_order_any_number_of_times_it_is_clean(world):
    parts = list(world.device.segments().values())
    dice = random.Random(5)
    world.take(dice.sample(parts, len(parts)) + dice.choices(parts, k=9))
    found, report = world.names()
    assert (found, report.segments, len(report.streams)) == (set(), 12, 2)


def test_a_loss_that_the_device_tells_and_one_that_an_operator_does(world):
    """Segment 4 is damaged before it is sent; the device says so. The original had arrived, or had not."""
    path = Path(world.device.outbox) / File(0, 4).file
    original = path.read_bytes()
    path.write_bytes(flipped(original))
    world.device.seal(audit=True)
    world.device.record_and_seal(state("g"))
    world.take()
    found, report = world.names()
    assert (found, [tuple(item)[1:] for item in report.explained]) == (set(), [(0, 4, 4, "damaged")])
    world.take([original])
    assert world.names()[0] == set()
    world.delete(2)
    world.ingest._explain(world.known, 0, 2, 2, verify.OPERATOR)
    found, report = world.names()
    assert found == set()
    assert "operator" in report.explained[0].reason


def test_the_newest_damaged_after_it_was_delivered(world):
    world.take()
    path = Path(world.device.outbox) / File(0, 6).file
    path.write_bytes(flipped(path.read_bytes()))
    world.device.record_and_seal(state("g"))
    world.take()
    assert world.names()[0] == set()


def command(*words):
    program = [
        sys.executable,
        "-c",
        "import sys; from edgeguard.collector.main import main; sys.exit(main(sys.argv[1:]))",
    ]
    return subprocess.run([*program, "verify", *map(str, words)], capture_output=True, text=True, check=False, cwd=TREE)


def test_the_command_on_a_collector_and_on_its_database(world):
    world.take()
    for path in (world.place, world.place / verify.DATABASE):
        done = command(path)
        assert (done.returncode, done.stdout.splitlines()[0]) == (0, "No defect."), done.stderr
    world.put(4, flipped(world.part(4)))
    done = command(world.place, "-o", "json")
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert [(item["name"], item["stream"], item["first"]) for item in answer["defects"]] == [
        ("altered", 0, 4),
        ("database edited", 0, 4),
    ][: len(answer["defects"])]


def test_the_command_on_a_directory(world):
    world.take()
    out = world.device.outbox
    (world.root / "device.pub").write_text(world.device.public.hex())
    assert command(out).returncode == 64
    assert command(out, "--key", world.root / "device.pub").returncode == 0
    assert command(out, "--key", cose.public_of(OTHER).hex()).returncode == 2
    assert command(out, "--collector", world.place).returncode == 0
    (world.root / "receipt.egr").write_bytes(world.receipt)
    given = ("--key", world.device.public.hex(), "--receipt", world.root / "receipt.egr")
    assert command(out, *given).returncode == 64
    given = (*given, "--collector-key", cose.public_of(COLLECTOR).hex())
    assert command(out, *given).returncode == 0
    os.unlink(f"{out}/{File(0, 6).file}")
    assert "tail missing: findings 6" in command(out, *given).stdout
    assert "tail missing: findings 6" in command(out, "--collector", world.place).stdout
    (world.root / "receipt.egr").write_bytes(flipped(world.receipt))
    assert "forged receipt" in command(out, *given).stdout


def test_the_command_that_cannot_look(world, tmp_path):
    (tmp_path / "empty").mkdir()
    assert command(tmp_path / "empty", "--key", "00" * 32).returncode == 3
    assert command(tmp_path / "nowhere", "--key", "00" * 32).returncode == 3
    os.mkfifo(tmp_path / "pipe")
    assert command(tmp_path / "pipe").returncode == 64
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    assert command(tmp_path / "broken.db").returncode == 3


def test_a_receipt_of_the_collector_says_what_its_database_must_hold(world):
    """The device keeps the collector's word: the database cannot forget what it confirmed."""
    world.take()
    (world.root / "receipt.egr").write_bytes(world.receipt)
    world.delete(5, 6)
    world.db.execute("DELETE FROM heads")
    assert command(world.place).returncode == 0
    done = command(world.place, "--receipt", world.root / "receipt.egr")
    assert (done.returncode, "tail missing: findings 5 to 6" in done.stdout) == (2, True)
    assert receipts.unverified(world.receipt).head(0).sequence == 6


def test_a_database_that_is_edited_into_other_types(world):
    world.take()
    world.db.execute("UPDATE segments SET bytes = 'text' WHERE seq = 3 AND stream = 0")
    world.db.execute("UPDATE segments SET seq = 'x' WHERE seq = 4 AND stream = 0")
    world.db.execute("UPDATE heads SET hash = 5")
    world.db.execute("UPDATE devices SET public = 'x', id = 7 WHERE name = 'pump-08'")
    world.db.execute("INSERT INTO drops VALUES ('x', 'y', x'00', 1, 1)")
    found, _ = world.names()
    assert {Name.ALTERED, Name.COLUMNS} <= found
    done = command(world.place)
    assert (done.returncode, done.stderr) == (2, "")
    with pytest.raises(sqlite3.Error):
        verify.run(str(world.root / "device"), keys=[], collector=str(_not_a_database(world.root)))


def _not_a_database(root):
    (root / "c").mkdir()
    (root / "c" / verify.DATABASE).write_bytes(b"SQLite format 3\0" + bytes(200))
    return root / "c"
