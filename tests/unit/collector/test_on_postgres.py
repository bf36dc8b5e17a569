"""The same tests on PostgreSQL as on SQLite, and several workers on one database make of it what one worker makes."""

import hashlib
import multiprocessing
import random

import pytest
import test_alertbook
import test_bulk
import test_chainview
import test_ingest
import test_metrics
from postgres_server import missing
from small_world import statement
from test_ingest import COLLECTOR, PUBLIC, Collector, chain

from edgeguard.codec import cose
from edgeguard.collector import console, database, schema, store, verify
from edgeguard.collector.config import Config
from edgeguard.collector.ingest import Ingest

pytestmark = [pytest.mark.postgres, pytest.mark.skipif(bool(missing()), reason=missing() or "is there")]

# Tests that speak of SQLite's file itself, and long ones that say nothing about a database.
OF_THE_FILE = {
    "test_an_older_database_is_brought_up_to_date_and_its_open_findings_are_told",
    "test_totals_of_an_older_database_are_counted_once",
    "test_from_the_command_and_over_http",
    "test_any_body_is_an_answer_or_segmentrefused",
    "test_any_signed_payload_is_an_answer",
    "test_its_own_rhythm_counts_where_it_is_slower",
    "test_while_the_collector_was_down_nobody_was_silent",
    "test_a_restart_does_not_forget_a_silence",
    "test_a_full_disk_is_called_one",
    "test_silence_can_be_switched_off",
    "test_a_device_that_never_talked_is_not_silent",
    "test_killed_at_any_moment_nothing_is_lost_and_nothing_told_twice",
}


def _take_over(module):
    for name, value in vars(module).items():
        if name.startswith("test_") and callable(value) and name not in OF_THE_FILE:
            globals()[f"{name}_{module.__name__.removeprefix('test_')}"] = value


for _module in (test_ingest, test_alertbook, test_chainview, test_metrics):
    _take_over(_module)
world = test_chainview.world
collector = test_ingest.collector


@pytest.fixture(autouse=True)
def on_postgres(server, monkeypatch):
    """Whatever a test calls a file is a schema of its own on the server."""
    known = {}

    def url(path):
        if str(path) == ":memory:":  # a new one each time
            path = f"memory {len(known)}"
        name = "s" + hashlib.sha256(str(path).encode()).hexdigest()[:20]
        if name not in known:
            server.schema(name)
            known[name] = server.url(name)
        return known[name]

    def connect(path, *, threads=False):
        from edgeguard.collector import postgres

        return postgres.connect(url(path))

    def configured(directory, path=None):
        return Config(database=url(f"{directory}/{store.FILE}"))

    monkeypatch.setattr(store, "connect", connect)
    monkeypatch.setattr(store, "connect_readonly", connect)
    monkeypatch.setattr(console, "configured", configured)
    return url


# --- several workers -------------------------------------------------------------------------------------------------

DEVICES = 6
LENGTH = 12


def fleet():
    """(seed, its segments) of some devices."""
    made = []
    for number in range(DEVICES):
        seed = bytes([number + 1]) * 32
        device = cose.device_id(cose.public_of(seed))
        said = statement(seed, boot=3)
        made.append((seed, [said + part for part in chain(LENGTH, device=device)]))
    return made


def work(url, number, together):
    """One worker: everything twice, in an order of its own, in pieces of its own."""
    from edgeguard.collector import postgres

    dice = random.Random(number)
    db = postgres.connect(url)
    ingest = Ingest(db, COLLECTOR, lambda: 1_000_000)
    posts = [(seed, part) for seed, parts in fleet() for part in parts] * 2
    dice.shuffle(posts)
    together.wait(60)
    while posts:
        seed, part = posts.pop()
        body = [part]
        while posts and posts[-1][0] == seed:
            body.append(posts.pop()[1])
        ingest.take(b"".join(body), ingest.device(cose.device_id(cose.public_of(seed))))
    db.close()


CONTENT = {
    **{name: f"SELECT {columns} FROM {name} ORDER BY 1, 2, 3" for name, columns in {
        "segments": "device, stream, seq, hash, bytes",
        "records": "device, stream, seq, type, body",
        "heads": "device, stream, seq, hash, last_good, next_record",
        "drops": "device, stream, first",
        "findings": "device, finding, seq, state, openings",
    }.items()},
    "devices": "SELECT id, segments, records, bytes FROM devices ORDER BY 1",
    "open incidents": "SELECT device, stream, name FROM incidents WHERE resolved IS NULL ORDER BY 1, 2, 3",
}  # fmt: skip


def content(db):
    return {name: [tuple(row) for row in db.execute(query).fetchall()] for name, query in CONTENT.items()}


def test_several_workers_make_the_database_that_one_makes(on_postgres, tmp_path):
    single = store.connect(tmp_path / "one")
    ingest = Ingest(single, COLLECTOR, lambda: 1_000_000)
    for number, (seed, parts) in enumerate(fleet()):
        device = ingest.add_device(f"d{number}", cose.public_of(seed))
        for part in parts:
            ingest.take(part, device)

    many = store.connect(tmp_path / "many")
    for number, (seed, _) in enumerate(fleet()):
        Ingest(many, COLLECTOR, lambda: 1_000_000).add_device(f"d{number}", cose.public_of(seed))
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    workers = [context.Process(target=work, args=(on_postgres(tmp_path / "many"), n, together)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(180)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert content(many) == content(single)
    assert len(content(many)["segments"]) == DEVICES * LENGTH


@pytest.mark.parametrize("seed", range(8))
def test_in_bulk_and_one_at_a_time_make_the_same_database(on_postgres, seed):
    test_bulk.compare(random.Random(seed), lambda: store.connect(":memory:"))


def test_rows_that_are_copied_are_what_they_were(on_postgres):
    """COPY has letters of its own."""
    texts = ["", "\\", "\\N", "\\.", "\t", "a\nb\r", "\x7f\x01", "\u00e9\u2028\U0001f512", '{"a":"\\u0000"}', None]
    rows = [(text, (text or "").encode() + bytes(range(256)), number - 5) for number, text in enumerate(texts)]
    db = store.connect("rows")
    db.run("CREATE TABLE copied (a TEXT, b BLOB NOT NULL, c INTEGER NOT NULL)")
    with db.transaction():
        db.insert("copied", "a, b, c", rows)
    assert [tuple(row) for row in db.execute("SELECT a, b, c FROM copied ORDER BY c").fetchall()] == rows
    with pytest.raises(database.Failed), db.transaction():
        db.insert("copied", "a, b, c", [("fits", b"", 1), ("does not", None, 2)])
    assert db.execute("SELECT count(*) FROM copied").fetchone() == (len(rows),)


# --- what only a server does -----------------------------------------------------------------------------------------


def test_a_server_that_was_away_is_found_again(on_postgres, server, tmp_path):
    world = Collector(str(tmp_path / "c.db"))
    first, second, _ = chain(3)
    world.take(first)
    server.stop("immediate")
    try:
        with pytest.raises(database.Failed):
            world.take(second)
    finally:
        server.start()
    assert world.take(second)[0] == ["stored"]
    assert world.db.execute("SELECT seq FROM heads").fetchone() == (2,)


def test_nothing_is_committed_of_what_was_not_finished(on_postgres, tmp_path, monkeypatch):
    world = Collector(str(tmp_path / "c.db"))
    monkeypatch.setattr(world.ingest, "_heard", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        world.take(*chain(2))
    assert world.db.execute("SELECT count(*) FROM segments").fetchone() == (0,)
    monkeypatch.undo()


def test_one_waits_for_the_other_on_one_device(on_postgres, tmp_path):
    world = Collector(str(tmp_path / "c.db"))
    from edgeguard.collector import postgres

    other = postgres.connect(on_postgres(str(tmp_path / "c.db")))
    other.execute("SET lock_timeout = 200")
    with world.db.transaction("device a"):
        with other.transaction("device b"):
            pass
        with pytest.raises(database.Failed, match="LockNotAvailable"), other.transaction("device a"):
            pass
    with other.transaction("device a"):
        pass


def test_rows_are_not_all_held_at_once(on_postgres, tmp_path):
    world = Collector(str(tmp_path / "c.db"))
    world.take(*chain(60))
    seen = 0
    for (seq,) in world.db.each("SELECT seq FROM segments ORDER BY seq"):
        seen += 1
        assert world.db.execute("SELECT seq FROM segments WHERE seq = ?", (seq,)).fetchone() == (seq,)
    assert seen == 60


def test_migration_from_version_one(on_postgres, tmp_path):
    from edgeguard.collector.postgres import Postgres

    db = Postgres(on_postgres(tmp_path / "old"))
    schema.migrate(db, 1)
    assert schema.version(db) == 1
    db.execute("INSERT INTO devices (id, name, public, added) VALUES (?, 'pump-07', ?, 1)", (b"a" * 16, PUBLIC))
    db.execute(
        "INSERT INTO segments"
        " (device, stream, seq, hash, previous, first, n, epoch, boot, mono, clock, received, bytes)"
        " VALUES (?, 0, 1, ?, ?, 1, 3, 0, 1, 0, 0, 1, ?)", (b"a" * 16, b"h", b"p", b"123456"),
    )  # fmt: skip
    schema.migrate(db)
    assert schema.version(db) == schema.VERSION
    assert db.execute("SELECT segments, records, bytes FROM devices").fetchone() == (1, 3, 6)
    with pytest.raises(schema.Newer):
        schema.migrate(db, 1)


def test_verify_reads_it_and_names_what_was_done_to_it(on_postgres, tmp_path):
    world = Collector(str(tmp_path / "c.db"))
    world.take(*chain(4))
    assert verify.database(world.db).clean
    world.db.execute("UPDATE segments SET bytes = ? WHERE seq = 2", (b"x",))
    assert not verify.database(world.db).clean


def test_every_command_and_the_server_work_on_it(on_postgres, tmp_path, capsys, device):
    pytest.importorskip("aiohttp", reason="python3-aiohttp is what the collector serves with")
    from small_world import finding, moment
    from test_uplink_live import Serving, join

    from edgeguard.collector.main import main
    from edgeguard.records import compose, uplink

    folder = tmp_path / "c"
    folder.mkdir()
    url = on_postgres(folder / store.FILE)  # the same for the commands here and for the server's own process
    (folder / "edgeguard-collector.toml").write_text(f'[store]\nurl = "{url}"\n')
    directory = str(folder)
    assert main(["init", directory]) == 0
    assert not (folder / store.FILE).exists()
    assert main(["add-device", directory, "--name", "pump-07", "--key", device.public.hex()]) == 0
    device.record_and_seal(compose.finding(finding(), moment()))
    device.record_and_seal(compose.text("words", moment()))
    parts = tmp_path / "parts"
    parts.write_bytes(b"".join(device.statements().values()) + next(iter(device.segments().values())))
    assert main(["import", directory, str(parts)]) == 0
    serving = Serving(directory)
    try:
        join(device, directory, serving.port)
        assert uplink.Uplink(device.settings).run() == 0
    finally:
        serving.stop()
    capsys.readouterr()
    assert main(["events", directory, "-o", "jsonl"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for command in (["devices"], ["show", "--device", "pump-07"], ["metrics"], ["alerts"], ["verify"],
                    ["defender", "--device", "pump-07"]):  # fmt: skip
        assert main([command[0], directory, *command[1:]]) == 0, command
        assert capsys.readouterr().out
    assert main(["explain-gap", directory, "--device", "pump-07", "--stream", "2", "--through", "3"]) == 0
    assert main(["verify", directory]) == 0
