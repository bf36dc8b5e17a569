"""Following on PostgreSQL, where several write at once: a row that was written first and committed last is not lost."""

import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import postgres_server
import pytest
from postgres_server import missing
from small_world import statement
from test_following import followed
from test_ingest import COLLECTOR, chain
from world import ROOT

from edgeguard.codec import cose
from edgeguard.collector import database, events, following, schema
from edgeguard.collector.following import HELD_S, Tail
from edgeguard.collector.ingest import Ingest
from edgeguard.collector.main import main

pytestmark = [pytest.mark.postgres, pytest.mark.skipif(bool(missing()), reason=missing() or "is there")]


def connect(url):
    from edgeguard.collector import postgres  # its library may be missing where these tests are only read

    return postgres.connect(url)


class Worker:
    """A connection with a device of its own."""

    def __init__(self, url, number):
        seed = bytes([number]) * 32
        self.name = f"d{number}"
        self.db = connect(url)
        self.ingest = Ingest(self.db, COLLECTOR, lambda: 1_000_000)
        self.device = self.ingest.add_device(self.name, cose.public_of(seed))
        self.parts = chain(20, device=self.device.id)
        self.ingest.take(statement(seed, boot=3), self.device)
        self._open = ExitStack()

    def take(self, count=1):
        self.begin(count)
        self.commit()

    def begin(self, count=1):
        """Everything but the end of the transaction."""
        self._open.enter_context(self.db.transaction(self.name))
        parts, self.parts = self.parts[:count], self.parts[count:]
        verdicts, _ = self.ingest._take_all({self.device: parts}, vouched=True)
        assert {verdict.name for verdict in verdicts[self.device].values()} == {"stored"}

    def commit(self):
        self._open.close()

    def abort(self):
        with pytest.raises(OSError, match="lost"), self._open:
            raise OSError("lost")


@pytest.fixture
def url(server):
    server.schema("following")
    return server.url("following")


@pytest.fixture
def workers(url):
    made = [Worker(url, number) for number in (1, 2, 3)]
    yield made
    for worker in made:
        worker.db.close()


@pytest.fixture
def reader(url, workers):
    made = connect(url)
    yield made
    made.close()


def seqs(found, name):
    return [seq for who, _, seq, _ in found if who == name]


def test_who_wrote_first_and_commits_last_is_not_passed_over(reader, workers):
    first, second, _ = workers
    first.take()
    found, _ = followed(reader, first.begin, second.take, None, first.commit, None)
    assert seqs(found, "d1") == [1, 2, 3, 4]
    assert seqs(found, "d2") == [1, 2]


def test_nor_is_who_had_begun_before_anybody_followed(reader, workers):
    """And what was begun before stands in its place, each device's together."""
    first, second, third = workers
    second.begin()
    first.take()
    third.take()
    found, _ = followed(reader, None, second.commit, first.take, None)
    assert [who for who, *_ in found] == ["d1", "d1", "d2", "d2", "d3", "d3", "d1", "d1"]


def test_what_comes_between_looking_and_reading_waits(reader, workers, monkeypatch):
    first, second, third = workers
    read, meanwhile = events.new_parts, [second.take, first.begin]

    def reading(*arguments):
        while meanwhile:
            meanwhile.pop()()
        return read(*arguments)

    monkeypatch.setattr(events, "new_parts", reading)
    found, _ = followed(reader, third.take, None, first.commit, None)
    assert [seqs(found, f"d{number}") for number in (1, 2, 3)] == [[1, 2]] * 3


def test_what_is_taken_back_holds_nothing_up(reader, workers):
    first, second, _ = workers
    found, said = followed(reader, first.begin, second.take, first.abort, None)
    assert (seqs(found, "d1"), seqs(found, "d2"), said) == ([], [1, 2], [])


def test_transactions_that_have_nothing_to_do_with_it_hold_nothing_up(server):
    """Another table of ours, a table of another database that even has the same number, and whoever reads for hours."""
    here, elsewhere = (server.url().replace("/postgres?", f"/{name}?") for name in ("here", "elsewhere"))
    admin = connect(server.url())
    admin.execute("CREATE DATABASE here")
    connect(here).close()
    admin.execute("CREATE DATABASE elsewhere TEMPLATE here")
    writer = Worker(here, 1)
    reader, reading, other, foreign = made = [connect(url) for url in (here, here, here, elsewhere)]
    of_table = "SELECT CAST(CAST('records' AS REGCLASS) AS OID)"
    assert foreign.execute(of_table).fetchone() == reader.execute(of_table).fetchone()
    with foreign.transaction(), other.transaction(), reading.snapshot():
        foreign.execute("DELETE FROM records")
        other.execute("INSERT INTO meta (key, value) VALUES ('a', 'b')")
        reading.execute("SELECT count(*) FROM records").fetchone()
        found, said = followed(reader, writer.take, None)
    assert (seqs(found, "d1"), said) == ([1, 2], [])
    for db in (*made, writer.db, admin):
        db.close()


def test_somebody_who_never_ends_is_named(reader, workers):
    first, second, _ = workers
    found, said = followed(reader, first.begin, second.take, *[None] * int(HELD_S + 2), first.commit, None)
    pid = first.db.execute("SELECT pg_backend_pid()").fetchone()[0]
    assert said == [
        f"for 10 s new records wait for a transaction that may add some before them: PostgreSQL process {pid}"
    ]
    assert seqs(found, "d1") == seqs(found, "d2") == [1, 2]


def test_somebody_who_was_there_first_and_never_ends_is_named(reader, workers):
    first, second, _ = workers
    first.begin()
    second.take()
    found, said = followed(reader, *[None] * int(HELD_S + 2), first.commit)
    assert len(said) == 1
    assert seqs(found, "d1") == seqs(found, "d2") == [1, 2]


def test_a_worker_that_stands_still_is_ended_by_the_server(reader, workers):
    from edgeguard.collector import postgres

    first, second, _ = workers
    assert first.db.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("5min",)
    assert postgres.IDLE_MS == 300_000
    first.db.execute("SET idle_in_transaction_session_timeout = 300")

    def until_it_is_gone():
        until = time.monotonic() + 20
        while reader.writing("records"):
            assert time.monotonic() < until
            time.sleep(0.05)

    found, _ = followed(reader, first.begin, second.take, until_it_is_gone, None)
    assert (seqs(found, "d1"), seqs(found, "d2")) == ([], [1, 2])
    with pytest.raises(database.Failed):
        first.commit()
    first.parts = chain(1, device=first.device.id)
    first.take()  # and it works again
    assert seqs(followed(reader)[0], "d1") == [1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_beginning_and_ending(reader, workers, seed):
    dice = random.Random(seed)
    for worker in workers:
        worker.take()
    taken, kept = dict.fromkeys(workers, 0), dict.fromkeys(workers, 1)

    def step():
        worker = dice.choice(workers)
        if taken[worker]:
            kept[worker] += taken[worker]
            taken[worker] = 0
            worker.commit()
        elif len(worker.parts) > 4:
            taken[worker] = dice.randint(1, 2)
            worker.begin(taken[worker])

    def end():
        for worker in workers:
            if taken[worker]:
                kept[worker] += taken[worker]
                worker.commit()

    found, _ = followed(reader, *[dice.choice((step, None)) for _ in range(60)], end, None)
    for worker in workers:
        assert seqs(found, worker.name) == list(range(1, kept[worker] * 2 + 1))


def test_a_prepared_transaction_is_named():
    with tempfile.TemporaryDirectory(prefix="egpg") as folder:
        server = postgres_server.Server(Path(folder))
        server.stop()
        server.start("max_prepared_transactions=5")
        try:
            db = connect(server.url())
            db.execute("BEGIN")
            db.insert("segments", SEGMENT, [(b"d" * 16, 0, 1, b"", b"", 1, 1, 1, 1, 0, 0, 0, b"")])
            (row,) = db.execute("SELECT id FROM segments").fetchone()
            db.insert("records", RECORD, [(row, b"d" * 16, 0, 1, 1, 0, 1, 0, "{}")])
            db.execute("PREPARE TRANSACTION 'tomorrow'")
            assert list(db.writing("records").values()) == ["a prepared transaction"]
            db.execute("COMMIT PREPARED 'tomorrow'")
            assert db.writing("records") == {}
            db.close()
        finally:
            server.stop("immediate")


SEGMENT = "device, stream, seq, hash, previous, first, n, epoch, boot, mono, clock, received, bytes"
RECORD = "segment, device, stream, seq, type, severity, boot, mono, body"


def test_on_a_standby_nobody_follows():
    """It shows what was committed, and not who is writing."""
    from edgeguard.collector.postgres import Postgres

    with tempfile.TemporaryDirectory(prefix="egpg") as folder:
        server = postgres_server.Server(Path(folder))
        worker = Worker(server.url(), 1)
        worker.take()
        worker.db.close()
        server.stop()
        (server.data / "standby.signal").touch()
        server.start("hot_standby=on")
        try:
            db = Postgres(server.url())
            assert schema.version(db) == schema.VERSION
            with pytest.raises(database.Failed, match="standby"):
                Tail(db, lambda: 0.0).through()
            db.close()
        finally:
            server.stop("immediate")


def test_the_command_passes_nothing_over(workers, url, tmp_path):
    (tmp_path / "edgeguard-collector.toml").write_text(f'[store]\nurl = "{url}"\n')
    first, second, _ = workers
    second.take()
    command = [sys.executable, str(ROOT / "packaging/bin/edgeguard-collector"), "events", str(tmp_path), "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        first.begin()
        second.take()
        time.sleep(1)  # it looks five times a second
        first.commit()
        third = workers[2]
        third.take()
        while " d3 " not in lines[-1]:
            lines.append(process.stdout.readline())
        process.terminate()
    names = [line.split()[1] for line in lines]
    assert (names.count("d1"), names.count("d2")) == (2, 4)


def test_the_command_says_who_keeps_it_waiting(workers, url, tmp_path, monkeypatch, capsys):
    (tmp_path / "edgeguard-collector.toml").write_text(f'[store]\nurl = "{url}"\n')
    first, second, _ = workers
    first.begin()
    second.take()

    def sleep(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(following, "HELD_S", 0.0)
    monkeypatch.setattr("time.sleep", sleep)
    assert main(["events", str(tmp_path), "-f"]) == 130
    said = capsys.readouterr()
    assert "new records wait for a transaction" in said.err
    assert not said.out
    first.commit()
