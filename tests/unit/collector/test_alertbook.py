"""From a record to a message, in the database: told once, in any order of segments, across restarts at any moment."""

import itertools
import json
import sqlite3
import time

import pytest
from small_world import finding, moment, state
from test_ingest import COLLECTOR, DEVICE, OTHER, PUBLIC, Collector, chain, segment

from edgeguard.codec import cose
from edgeguard.collector import alertbook, alertlist, schema, store
from edgeguard.collector.alertbook import Book
from edgeguard.collector.config import Alerts, Config, Mail, Silence, Webhook
from edgeguard.collector.ingest import Ingest
from edgeguard.model import Severity, State, Transition
from edgeguard.records import compose, wire

HOUR = 3_600_000
HOOK = Webhook("ops", "https://127.0.0.1:1/", b"", "", Severity.HIGH)
MAIL = Mail("duty", "localhost", 25, "none", "", "", "a@b.c", ("d@e.f",), "", Severity.CRITICAL)


def change(identity="F-1", transition=Transition.OPENED, severity=Severity.CRITICAL, subject="/a", **more):
    made = finding(subject, severity, **({"id": identity} | more))
    return made._replace(transition=transition)


def over(identity="F-1", **more):
    return change(identity, Transition.RESOLVED, state=State.RESOLVED, **more)


class World(Collector):
    """A collector with a book that tells two targets."""

    def __init__(self, path, config=None, **alerts):
        super().__init__(path)
        self.path = path
        self.time = 1_000_000_000
        self.config = config or Config(Alerts(targets=(HOOK, MAIL), **alerts))
        self.numbers = itertools.count(1)
        self.sequence, self.previous, self.first = 0, wire.NO_PREVIOUS, 1
        self.book = self.opened()

    def opened(self):
        return Book(self.db, self.config, lambda: f"m{next(self.numbers)}")

    def restart(self):
        """A new process on the same file."""
        self.db.close()
        self.db = store.connect(self.path)
        self.ingest = Ingest(self.db, COLLECTOR, lambda: self.time)
        self.book = self.opened()

    def made(self, *changes):
        from hashlib import sha256

        self.sequence += 1
        records = [item if not hasattr(item, "transition") else compose.finding(item, moment()) for item in changes]
        part = segment(self.sequence, self.previous, first=self.first, records=records)
        self.first += len(records)
        self.previous = sha256(part).digest()
        return part

    def report(self, *changes):
        names, _ = self.take(self.made(*changes))
        assert names == ["stored"]

    def messages(self, wait=1000):
        """What would be sent after a while: (target, [(event, severity, subject)])."""
        while self.book.note(self.time):
            pass
        self.time += wait - 1000
        self.book.silence(self.time)
        while self.book.note(self.time):
            pass
        self.time += 1000
        self.book.pack(self.time)
        return self.sent()

    def sent(self):
        told = []
        for target in ("ops", "duty"):
            while message := self.book.next_message(target, self.time):
                body = json.loads(message.body)
                assert body["id"] == message.id
                told.append((target, [(item["event"], item["severity"], item["subject"]) for item in body["items"]]))
                self.book.sent(message, self.time)
        return told


@pytest.fixture
def world(tmp_path):
    made = World(str(tmp_path / "c.db"))
    yield made
    made.db.close()


def test_a_critical_finding_is_told_to_both_within_a_second(world):
    world.report(change())
    opened = [("opened", "critical", "/a")]
    assert world.messages() == [("ops", opened), ("duty", opened)]
    assert world.messages(HOUR) == []


def test_each_target_hears_from_its_severity_on(world):
    world.report(change(severity=Severity.HIGH), change("F-2", severity=Severity.MEDIUM, subject="/b"))
    assert world.messages() == [("ops", [("opened", "high", "/a")])]


def test_the_item_says_who_and_what(world):
    world.report(change())
    world.messages()
    item = json.loads(world.db.execute("SELECT item FROM notices").fetchone()[0])
    assert item["device"] == DEVICE.hex()
    assert (item["name"], item["code"], item["kind"]) == ("pump-07", "EG-FILE-002", "finding")
    assert item["time"].startswith("2026-")


def test_a_finding_whose_name_fits_into_no_index_is_told(world):
    """A device may call it what it likes."""
    import random

    letters = random.Random(7)
    name = "".join(chr(letters.randrange(0x4E00, 0x9F00)) for _ in range(1024))
    world.report(change(name))
    assert world.messages()[0] == ("ops", [("opened", "critical", "/a")])
    world.report(over(name))
    assert world.messages(HOUR)[0] == ("ops", [("resolved", "critical", "/a")])


def test_what_gets_worse_is_told_again_and_what_gets_better_is_not(world):
    world.report(change(severity=Severity.HIGH))
    world.messages()
    world.report(change(transition=Transition.CHANGED, severity=Severity.CRITICAL))
    worse = [("worse", "critical", "/a")]
    assert world.messages() == [("ops", worse), ("duty", worse)]
    world.report(change(transition=Transition.CHANGED, severity=Severity.HIGH))
    assert world.messages(HOUR) == []


def test_its_end_is_told_and_its_return_too(world):
    world.report(change())
    world.messages()
    world.report(over())
    assert world.messages(HOUR)[0] == ("ops", [("resolved", "critical", "/a")])
    world.report(change())
    assert world.messages(HOUR)[0] == ("ops", [("opened", "critical", "/a")])


def test_what_opened_and_ended_while_nobody_looked_is_told(world):
    world.report(change(), over())
    assert world.messages()[0] == ("ops", [("passed", "critical", "/a")])
    assert world.messages(HOUR) == []


def test_a_suppressed_finding_is_over(world):
    world.report(change())
    world.messages()
    world.report(change(transition=Transition.SUPPRESSED, state=State.SUPPRESSED))
    assert world.messages(HOUR)[0] == ("ops", [("resolved", "critical", "/a")])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_segments_makes_no_difference(tmp_path, order):
    world = World(str(tmp_path / "c.db"))
    parts = [world.made(change()), world.made(over()), world.made(change(severity=Severity.HIGH))]
    for place in order:
        world.take(parts[place])
        world.take(parts[place])  # twice
    row = world.db.execute("SELECT seq, severity, state, openings FROM findings").fetchone()
    assert row == (3, 4, "open", 2)


def test_groups(world):
    world.report(change(severity=Severity.HIGH))
    assert len(world.messages()) == 1
    world.report(change("F-2", severity=Severity.HIGH, subject="/b"))
    assert world.messages() == []
    world.report(change("F-3", severity=Severity.HIGH, subject="/c"))
    assert world.messages(30_000) == []
    assert world.messages(30_000) == [("ops", [("opened", "high", "/b"), ("opened", "high", "/c")])]


def test_quiet_hours_hold_all_but_critical(tmp_path):
    midnight = 1_000_000_000 // 86_400_000 * 86_400_000
    world = World(str(tmp_path / "c.db"), quiet=((0, 360),), zone="UTC")
    world.time = midnight + HOUR
    world.report(change(severity=Severity.HIGH))
    assert world.messages(2 * HOUR) == []
    world.report(change("F-2", subject="/b"))
    assert world.messages() == [(name, [("opened", "critical", "/b")]) for name in ("ops", "duty")]
    world.restart()
    assert world.messages(HOUR) == []
    assert world.messages(2 * HOUR) == [("ops", [("opened", "high", "/a")])]


def test_a_night_of_what_ended_does_not_hide_what_opens(tmp_path, monkeypatch):
    """One device that flaps is no way to keep the others' alarms till the morning."""
    monkeypatch.setattr(alertbook, "PACK_MAX", 3)
    world = World(str(tmp_path / "c.db"), quiet=((0, 720), (720, 0)))
    for number in range(4):
        for changed in (change, over):
            world.report(changed(f"F-{number}", subject=f"/{number}"))
            world.messages()
    world.report(change("F-9", subject="/new"))
    assert world.messages() == [(name, [("opened", "critical", "/new")]) for name in ("ops", "duty")]


def test_a_clock_that_is_set_back_keeps_nothing_from_being_told(world):
    day = 24 * HOUR
    world.time += 1000 * day
    world.report(change(severity=Severity.HIGH))
    assert world.messages()
    world.report(change("F-2", severity=Severity.HIGH, subject="/b"))
    world.book.note(world.time)
    world.report(change("F-3", subject="/c"))
    world.book.note(world.time)
    world.time += 1000
    world.book.pack(world.time)
    failed = world.book.next_message("duty", world.time)
    world.book.failed(failed, world.time, "answered 500")
    world.time -= 1000 * day - HOUR
    assert world.book.next_message("duty", world.time) == failed._replace(attempts=1)
    world.report(change("F-4", severity=Severity.HIGH, subject="/d"))
    told = [item for _, items in world.messages() for item in items]
    assert {("opened", "high", "/b"), ("opened", "critical", "/c"), ("opened", "high", "/d")} <= set(told)
    world.report(change("F-5", severity=Severity.HIGH, subject="/e"))
    assert world.messages() == []  # grouped as ever
    assert world.messages(HOUR) == [("ops", [("opened", "high", "/e")])]


def test_what_stays_open_is_told_again(world):
    world.report(change())
    world.messages()
    assert world.messages(23 * HOUR) == []
    repeated = [("repeated", "critical", "/a")]
    assert world.messages(2 * HOUR) == [("ops", repeated), ("duty", repeated)]
    assert world.messages(HOUR) == []


def test_what_still_waits_is_not_repeated(world):
    world.report(change())
    world.book.note(world.time)
    for _ in range(5):
        world.time += 25 * HOUR
        world.book.note(world.time)
    assert world.db.execute("SELECT count(*) FROM notices").fetchone() == (2,)


def test_never_repeated_where_told_so(tmp_path):
    world = World(str(tmp_path / "c.db"), repeat_s=0)
    world.report(change())
    world.messages()
    assert world.messages(10_000 * HOUR) == []


# --- restarts --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def every_crash(tmp_path, act):
    """Run `act` on a fresh world again and again, the process dying before its n-th statement, until it does not."""
    for moment_ in itertools.count():
        world = World(str(tmp_path / f"{moment_}.db"))
        world.report(change())
        left = [moment_]

        def dying(sql, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        died = False
        real = world.db
        world.book = Book(Dying(real, dying), world.config, lambda w=world: f"m{next(w.numbers)}")
        try:
            act(world)
        except Killed:
            died = True
        world.db = real
        world.restart()
        yield world
        if not died:
            assert moment_ > 10
            return


class Dying:
    """A database whose process ends between two statements; an open transaction goes with it."""

    def __init__(self, db, before):
        self._db, self._before = db, before

    def execute(self, sql, values=()):
        self._before(sql)
        return self._db.execute(sql, values)

    def executemany(self, sql, rows):
        self._before(sql)
        return self._db.executemany(sql, rows)

    def transaction(self, *locks):
        return self._db.transaction(*locks)


def test_killed_at_any_moment_nothing_is_lost_and_nothing_told_twice(tmp_path):
    def act(world):
        world.book.note(world.time)
        world.time += 1000
        world.book.pack(world.time)

    opened = [("opened", "critical", "/a")]
    for world in every_crash(tmp_path, act):
        assert world.messages() == [("ops", opened), ("duty", opened)]
        assert world.messages() == []


def test_killed_between_telling_and_noting_it_is_the_same_message_again(world):
    world.report(change())
    world.book.note(world.time)
    world.time += 1000
    world.book.pack(world.time)
    first = world.book.next_message("ops", world.time)
    world.restart()
    again = world.book.next_message("ops", world.time)
    assert (first.id, first.body) == (again.id, again.body)
    world.book.sent(again, world.time)
    world.restart()
    assert world.book.next_message("ops", world.time) is None


def test_what_is_not_taken_is_tried_again_later_and_later_and_then_given_up(world):
    world.report(change())
    world.book.note(world.time)
    world.time += 1000
    world.book.pack(world.time)
    waits = []
    while True:
        message = world.book.next_message("ops", world.time)
        before = world.time
        if world.book.failed(message, world.time, "answered 500"):
            break
        world.time = world.db.execute("SELECT due FROM messages WHERE id = ?", (message.id,)).fetchone()[0]
        assert world.book.next_message("ops", world.time - 1) is None
        waits.append((world.time - before) // 1000)
    assert waits[:5] == [5, 10, 20, 40, 80]
    assert max(waits) == 3600
    assert sum(waits) >= 3 * 86_400
    assert world.book.next_message("ops", world.time + HOUR) is None
    shown = alertlist.document(world.db)
    first = shown["messages"][0]
    assert (first["target"], first["given_up"], first["error"]) == ("ops", True, "answered 500")
    assert any("given up after" in line for line in alertlist.lines(shown))


def test_what_the_other_side_asks_for_counts(world):
    world.report(change())
    world.book.note(world.time)
    world.book.pack(world.time + 1000)
    world.book.failed(world.book.next_message("ops", world.time + 1000), world.time, "429", 600_000)
    assert world.book.next_message("ops", world.time + 599_999) is None
    assert world.book.next_message("ops", world.time + 600_000)


def test_what_waits_for_a_target_that_is_no_more_is_given_up_aloud(world):
    world.report(change())
    world.book.note(world.time)
    world.config = Config(Alerts(targets=(HOOK,)))
    world.restart()
    assert world.book.tidy(world.time) == ["duty"]
    assert world.book.tidy(world.time) == []
    world.messages()
    assert world.book.tidy(world.time + 31 * 24 * HOUR) == []
    assert world.db.execute("SELECT count(*) FROM messages").fetchone() == (0,)
    assert world.db.execute("SELECT count(*) FROM notices").fetchone() == (0,)
    assert world.db.execute("SELECT count(*) FROM alerts").fetchone() == (1,)  # it is still open


# --- incidents and silence -------------------------------------------------------------------------------------------


def test_a_cloned_device_is_a_critical_alert(world):
    world.report(state("a"))
    world.take(segment(1, wire.NO_PREVIOUS, records=[state("b")]))
    assert world.messages()[0] == ("ops", [("opened", "critical", "stream 0, segment 1")])
    world.take(segment(1, wire.NO_PREVIOUS, records=[state("b")]))
    assert world.messages(HOUR) == []


def test_a_loss_that_grows_is_one_alert(tmp_path):
    """A device that comes back after weeks names a longer range with each segment."""
    from hashlib import sha256

    hook = HOOK._replace(least=Severity.LOW)
    world = World(str(tmp_path / "c.db"), Config(Alerts(targets=(hook,))))
    previous, told = wire.NO_PREVIOUS, []
    for sequence in range(1, 6):
        lost = wire.Drop(7, 6 + sequence, 1, 2)
        part = segment(sequence, previous, records=[state("x")], first=sequence, drops=(lost,))
        previous = sha256(part).digest()
        world.take(part)
        told += world.messages(HOUR)
    assert [[event for event, _, _ in items] for _, items in told] == [["opened"]]
    assert world.db.execute("SELECT count(*) FROM alerts").fetchone() == (1,)
    (detail,) = world.db.execute("SELECT detail FROM incidents WHERE name = 'explained loss'").fetchone()
    assert detail.startswith("segments 7 to 11:")


def test_a_gap_is_one_when_it_stays(world):
    first, second, third = chain(3)
    world.take(first)
    world.take(third)
    assert world.messages(500_000) == [(name, [("opened", "critical", "/3")]) for name in ("ops", "duty")]
    assert [told for _, told in world.messages(200_000)] == [[("opened", "high", "stream 0, segment 2")]]
    world.take(second)
    assert ("resolved", "high", "stream 0, segment 2") in world.messages(HOUR)[0][1]


def test_a_gap_that_closes_soon_is_none(world):
    first, second, third = chain(3)
    world.take(first)
    world.take(third)
    world.book.note(world.time)
    world.take(second)
    world.messages()
    assert not [item for _, told in world.messages(HOUR) for item in told if "segment 2" in item[2]]


def test_incidents_can_be_left_out(tmp_path):
    world = World(str(tmp_path / "c.db"), incidents=False)
    world.report(state("a"))
    world.take(segment(1, wire.NO_PREVIOUS, records=[state("b")]))
    assert world.messages() == []


class Talking(World):
    """A device that talks every ten minutes; the collector looks every half a minute of its time."""

    def pass_time(self, seconds, *, every=0, posts=True):
        told = []
        end = self.time + seconds * 1000
        next_post = self.time
        while self.time < end:
            if every and self.time >= next_post and posts:
                self.report(state("here"))
                next_post = self.time + every * 1000
            told += self.messages(30_000)
        return [item for target, items in told if target == "ops" for item in items]


SILENT = ("opened", "high", "silent")


def test_a_device_that_does_not_talk_any_more_is_an_alert(tmp_path):
    world = Talking(str(tmp_path / "c.db"))
    assert world.pass_time(7200, every=600) == []
    world.report(state("the last word"))
    assert world.pass_time(3 * 3600 - 60) == []
    assert world.pass_time(120) == [SILENT]
    world.report(state("back"))
    assert world.pass_time(120) == [("resolved", "high", "silent")]


def test_a_device_that_fell_silent_before_the_clock_was_set_back_is_silent(tmp_path):
    world = Talking(str(tmp_path / "c.db"))
    world.time += 1000 * 24 * HOUR
    world.pass_time(1200, every=600)
    world.time -= 1000 * 24 * HOUR
    assert world.pass_time(3 * 3600 - 60) == []
    assert world.pass_time(300) == [SILENT]
    world.report(state("back"))
    assert world.pass_time(120) == [("resolved", "high", "silent")]


def test_its_own_rhythm_counts_where_it_is_slower(tmp_path):
    world = Talking(str(tmp_path / "c.db"))
    world.pass_time(12 * 3600, every=4 * 3600)
    world.report(state("the last word"))
    assert world.pass_time(11 * 3600) == []
    assert world.pass_time(2 * 3600) == [SILENT]


def test_its_own_promise_counts_most(tmp_path):
    world = Talking(str(tmp_path / "c.db"))
    row = state("x")._replace(fields=(99, None, None))
    world.report(row)
    world.db.execute("UPDATE devices SET beat = 60000")
    assert world.pass_time(180) == []
    assert world.pass_time(60) == [SILENT]


def test_a_heartbeat_record_is_the_promise(world, monkeypatch):
    from edgeguard.collector import events

    said = {"type": "state", "what": "heartbeat", "columns": {"seconds": 300}}
    monkeypatch.setattr(events, "body", lambda record: said)
    world.report(state("x"))
    assert world.db.execute("SELECT beat FROM devices").fetchone() == (300_000,)
    said["columns"] = {"seconds": 10**12}
    world.report(state("x"))
    said["columns"] = 7
    world.report(state("x"))
    assert world.db.execute("SELECT beat FROM devices").fetchone() == (300_000,)


def test_two_heartbeats_of_a_boot_show_how_often_they_come(world, monkeypatch):
    from edgeguard.collector import events

    monkeypatch.setattr(events, "body", lambda record: {"type": "state", "what": "heartbeat"})
    beats = [world.made(state("x", mono)) for mono in (1_000_000, 1_900_000, 1_901_000)]
    world.take(beats[0])
    assert world.db.execute("SELECT beat FROM devices").fetchone() == (None,)
    world.take(beats[1])
    assert world.db.execute("SELECT beat FROM devices").fetchone() == (900_000,)
    world.take(beats[1], beats[0])  # again, and the other way round
    assert world.db.execute("SELECT beat FROM devices").fetchone() == (900_000,)
    world.take(beats[2])
    assert world.db.execute("SELECT beat FROM devices").fetchone() == (60_000,)


def test_while_the_collector_was_down_nobody_was_silent(tmp_path):
    world = Talking(str(tmp_path / "c.db"))
    world.pass_time(1200, every=600)
    world.time += 48 * HOUR
    world.restart()
    assert world.pass_time(3 * 3600 - 60) == []
    assert world.pass_time(120) == [SILENT]


def test_a_restart_does_not_forget_a_silence(tmp_path):
    world = Talking(str(tmp_path / "c.db"))
    world.pass_time(1200, every=600)
    told = []
    for _ in range(8):  # the collector is restarted every half hour
        told += world.pass_time(1800)
        world.time += 20_000
        world.restart()
    assert told == [SILENT]


def test_a_device_that_never_talked_is_not_silent(tmp_path):
    world = Talking(str(tmp_path / "c.db"))
    assert world.pass_time(24 * 3600 // 8) == []


def test_silence_can_be_switched_off(tmp_path):
    world = Talking(str(tmp_path / "c.db"), Config(Alerts(targets=(HOOK,)), Silence(beats=0)))
    world.pass_time(600, every=300)
    assert world.pass_time(5 * 3600) == []


# --- what stands already ---------------------------------------------------------------------------------------------


def test_an_older_database_is_brought_up_to_date_and_its_open_findings_are_told(tmp_path):
    path = str(tmp_path / "old.db")
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(schema.SCHEMA)
    db.execute("INSERT INTO devices (id, name, public, added) VALUES (?, 'pump-07', ?, 1)", (DEVICE, PUBLIC))
    db.execute("INSERT INTO segments VALUES (1, ?, 0, 1, x'00', x'00', 1, 3, 0, 1, 0, NULL, 0, 1, x'00')", (DEVICE,))
    for seq, identity, transition, life in (
        (1, "F-1", "opened", "open"), (2, "F-2", "opened", "open"), (3, "F-2", "resolved", "resolved"),
    ):  # fmt: skip
        body = {"type": "finding", "id": identity, "code": "EG-FILE-002", "subject": f"/{identity}",
                "transition": transition, "state": life}  # fmt: skip
        db.execute(
            "INSERT INTO records (segment, device, stream, seq, type, severity, boot, mono, wall, code, body)"
            " VALUES (1, ?, 0, ?, 8, 5, 1, 0, 5, 'EG-FILE-002', ?)",
            (DEVICE, seq, json.dumps(body)),
        )
    db.close()
    world = World.__new__(World)
    world.path, world.time, world.config = path, 1_000_000_000, Config(Alerts(targets=(HOOK,)))
    world.numbers = itertools.count()
    world.db = store.connect(path)
    world.restart()
    assert schema.version(world.db) == schema.VERSION
    assert world.messages() == [("ops", [("opened", "critical", "/F-1")])]
    assert world.messages(HOUR) == []


def test_a_database_of_a_newer_collector_is_refused(tmp_path):
    path = str(tmp_path / "c.db")
    db = store.connect(path)
    db.execute("UPDATE meta SET value = '999' WHERE key = 'schema'")
    db.close()
    with pytest.raises(schema.Newer, match="schema 999"):
        store.connect(path)


def test_a_code_that_is_no_text_stops_nothing(world):
    world.report(change(code="EG-\udcff\x00", id="F\udc80"))
    assert world.db.execute("SELECT code, finding FROM findings").fetchone() == ("EG-\\xff\\x00", "F\\x80")


def test_only_one_process_tells(tmp_path):
    path = str(tmp_path / "c.db")
    first, second = store.connect(path), store.connect(path)
    assert first.lead("alerts")
    assert first.lead("alerts")
    assert not second.lead("alerts")
    first.close()
    end = time.monotonic() + 10
    while not second.lead("alerts"):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_strangers_are_an_alert_without_a_name(world):
    world.config = Config(Alerts(least=Severity.MEDIUM, targets=(HOOK._replace(least=Severity.MEDIUM),)))
    world.restart()
    world.ingest.take_files([segment(1, wire.NO_PREVIOUS, seed=OTHER, device=cose.device_id(cose.public_of(OTHER)))])
    assert world.messages() == [("ops", [("opened", "medium", "")])]
    shown = alertlist.document(world.db)
    assert shown["alerts"][0]["code"] == "unknown device"


def test_a_thousand_findings_are_a_few_messages(world):
    for part in range(10):
        world.report(*[change(f"F-{part}-{n}", subject=f"/{part}/{n}") for n in range(100)])
    told = world.messages()
    assert len(told) == 2
    body = json.loads(world.db.execute("SELECT body FROM messages").fetchone()[0])
    assert (len(body["items"]), body["more"], body["counts"]) == (100, 900, {"critical": 1000})
    assert alertbook.BATCH < 1000
