"""Who follows by row number passes nothing over: any number of writers, in any order, at any moment between looks."""

import contextlib
import random
from collections import deque

import pytest
from test_ingest import Collector, chain

from edgeguard.collector import events
from edgeguard.collector.following import AGAIN_S, HELD_S, NAMED_MAX, Tail, follow
from edgeguard.collector.main import main


class Writers:
    """A table and those who write into it, as PostgreSQL has them: numbers in order, seen when the transaction ends.
    Before each question some of `steps` happen."""

    def __init__(self, dice, *, between):
        self.dice = dice
        self.between = between
        self.taken = 0
        self.begun = 0
        self.open = {}
        self.seen = set()
        self.settled = 0
        self.late = []

    def begin(self):
        self.begun += 1
        self.open[f"w{self.begun}"] = set()

    def write(self, name):
        self.taken += 1
        self.open[name].add(self.taken)

    def end(self, name, *, keep=True):
        rows = self.open.pop(name)
        if keep:
            self.seen |= rows
            self.late += [row for row in rows if row <= self.settled]

    def step(self):
        kind = self.dice.random()
        if not self.open or kind < 0.2:
            self.begin()
        elif kind < 0.7:
            self.write(self.dice.choice(list(self.open)))
        else:
            self.end(self.dice.choice(list(self.open)), keep=kind < 0.95)

    def _happens(self):
        for _ in range(self.dice.randrange(self.between + 1)):
            self.step()

    def execute(self, _sql):
        self._happens()
        return self

    def fetchone(self):
        return (max(self.seen, default=0),)

    def writing(self, table):
        assert table == "records"
        self._happens()
        return dict.fromkeys(self.open, "somebody")


@pytest.mark.parametrize("seed", range(200))
def test_nothing_comes_before_what_is_settled(seed):
    table = Writers(random.Random(seed), between=(1, 3, 9)[seed % 3])
    tail = Tail(table, lambda: 0.0)
    for _ in range(200):
        before = table.settled
        table.settled = tail.through()
        assert table.settled >= before
        assert not table.late
    for name in list(table.open):
        table.end(name)
    table.between = 0
    tail.through()
    table.settled = tail.through()
    assert table.settled == max(table.seen)
    assert not tail.waits
    assert not table.late


def test_it_goes_on_while_there_is_always_somebody_who_writes():
    table = Writers(random.Random(1), between=0)
    tail = Tail(table, lambda: 0.0)
    table.begin()
    for number in range(1, 101):
        table.begin()
        table.write(f"w{number}")
        tail.through()
        table.end(f"w{number}")  # the next one is at work already
        table.settled = tail.through()
    assert table.settled >= 98


def test_whoever_holds_it_up_is_named_and_named_again():
    now = [0.0]
    table = Writers(random.Random(1), between=0)
    tail = Tail(table, lambda: now[0])
    for _ in range(2):
        table.begin()
        table.write(f"w{table.begun}")
    table.end("w2")
    assert tail.through() == 0
    assert tail.waits
    now[0] = HELD_S - 1
    assert tail.complaint() == ""
    now[0] = HELD_S
    assert tail.complaint() == (
        "for 10 s new records wait for a transaction that may add some before them: somebody"
    )  # fmt: skip
    now[0] += AGAIN_S - 1
    assert tail.complaint() == ""
    now[0] += 1
    assert tail.complaint().startswith("for 70 s ")
    table.end("w1")
    assert tail.through() == 2
    assert tail.complaint() == ""


def test_a_crowd_that_holds_it_up_is_a_short_line():
    table = Writers(random.Random(1), between=0)
    table.begin()
    table.write("w1")
    table.end("w1")
    table.writing = lambda _table: {str(number): f"process {number:03}" for number in range(100)}
    now = [0.0]
    tail = Tail(table, lambda: now[0])
    tail.through()
    now[0] = HELD_S
    assert tail.complaint().endswith("process 003, process 004 and 95 more")
    assert tail.complaint() == ""
    assert NAMED_MAX == 5


# --- on a database ---------------------------------------------------------------------------------------------------


class OverError(Exception):
    """The script has no more steps."""


def followed(db, *steps, name=None):
    """What `follow` gives while these happen, one at each pause; a step may be None. And what it says."""
    left, said = deque(steps), []
    now = [0.0]

    def pause():
        now[0] += 1
        if not left:
            raise OverError
        (left.popleft() or (lambda: None))()

    found = []
    with contextlib.suppress(OverError):  # it has no other end
        for common, own in follow(db, name, pause, said.append, lambda: now[0]):
            found.append((common["name"], common["stream"], common["seq"], own["type"]))
    assert not left
    return found, said


@pytest.fixture
def collector(tmp_path):
    made = Collector(str(tmp_path / "collector.db"))
    yield made
    made.db.close()


def test_what_is_there_and_then_what_comes(collector, monkeypatch):
    monkeypatch.setattr(events, "_PAGE", 3)  # a page ends within a segment
    parts = chain(5)
    collector.take(*parts[:2])
    found, said = followed(collector.db, lambda: collector.take(*parts[2:4]), None, lambda: collector.take(parts[4]))
    assert [seq for _, _, seq, _ in found] == list(range(1, 11))
    assert not said


def test_of_one_device_only(collector):
    (part,) = chain(1)
    assert followed(collector.db, lambda: collector.take(part), name="pump-08") == ([], [])
    assert len(followed(collector.db, name="pump-07")[0]) == 2


def test_a_row_that_belongs_to_nobody_does_not_stop_it(collector):
    parts = chain(2)

    def orphan():
        collector.db.execute(
            "INSERT INTO records (segment, device, stream, seq, type, severity, boot, mono, body)"
            " SELECT id, ?, 0, 9, 1, 0, 1, 0, '{}' FROM segments",
            (bytes(16),),
        )

    found, _ = followed(collector.db, lambda: collector.take(parts[0]), orphan, lambda: collector.take(parts[1]))
    assert [seq for _, _, seq, _ in found] == [1, 2, 3, 4]


def test_the_command_follows(tmp_path, capsys, monkeypatch):
    directory = tmp_path / "c"
    assert main(["init", str(directory)]) == 0
    world = Collector(str(directory / "collector.db"))
    parts = chain(3)
    world.take(parts[0])
    capsys.readouterr()

    def sleep(_seconds):
        if len(parts) == 1:
            raise KeyboardInterrupt
        world.take(parts.pop(1))

    monkeypatch.setattr("time.sleep", sleep)
    assert main(["events", str(directory), "-f", "--device", "pump-07"]) == 130
    assert capsys.readouterr().out.count(" pump-07 ") == 6
