"""Telling where the disk does not take records, and where the sealer is asked while it runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeguard.daemon import telling
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.telling import Telling
from edgeguard.errors import SpoolError
from edgeguard.records import compose, examine, journal, registry
from edgeguard.records.spool import Spool


class FakeHelpers:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.running: dict[str, Any] = {}

    def start(self, verb: str, request: dict[str, Any], message: Any, done: Any, **_more: Any) -> bool:
        if verb in self.running:
            return False
        self.asked.append(request)
        self.running[verb] = (message, done)
        return True

    def end(self, verb: str, error: str = "", **answer: Any) -> None:
        message, done = self.running.pop(verb)
        message(answer)
        done(error)


class FullSpool(Spool):
    full = True

    def append(self, record: Any) -> tuple[int, int]:
        if self.full:
            raise SpoolError("the disk is full")
        return super().append(record)


def made(
    tmp_path: Path, reports: list[tuple[str, str]], flush_s: int = 3600
) -> tuple[Telling, FullSpool, FakeHelpers, Loop]:
    loop, helpers = Loop(), FakeHelpers()
    spool = FullSpool(f"{tmp_path}/spool", f"{tmp_path}/outbox", bytes(16), flush_s=flush_s)

    def report(subject: str, detail: str) -> None:
        reports.append((subject, detail))
        loop.later(0, lambda: telling.state("helper failed", detail))  # as the guard does: a finding, a record

    telling = Telling(loop, spool, helpers, "", lambda: 0, report, lambda _answer: None)  # type: ignore[arg-type]
    telling.open()
    return telling, spool, helpers, loop


def test_a_full_disk_is_said_once_and_does_not_spin(tmp_path: Path) -> None:
    reports: list[tuple[str, str]] = []
    telling, spool, _, loop = made(tmp_path, reports)
    telling.state("start")
    for _ in range(50):
        loop.turn(0)
    assert reports == [("spool", "the disk is full")]
    spool.full = False
    telling.state("start")
    assert reports[-1] == ("spool", "")


def test_who_asks_while_the_sealer_runs_is_served_after_it(tmp_path: Path) -> None:
    telling, _, helpers, _ = made(tmp_path, [])
    telling.run_sealer()
    telling.run_sealer(audit=True)
    telling.run_sealer()
    helpers.end("seal")
    assert [asked["audit"] for asked in helpers.asked] == [False, True]
    helpers.end("seal")
    assert len(helpers.asked) == 2


def test_a_number_is_shown_when_its_record_is_durable(tmp_path: Path) -> None:
    telling, spool, _, loop = made(tmp_path, [])
    spool.full = False
    telling.state("start")
    assert telling.sequence == 0
    loop.turn(0)
    assert (telling.sequence, spool.status.pending) == (1, 0)


def test_a_disk_that_takes_no_segments_is_said_until_it_does(tmp_path: Path) -> None:
    telling, _, helpers, _ = made(tmp_path, [])
    telling.run_sealer()
    helpers.end("seal", "[Errno 28] No space left on device", storage=True)
    assert telling.failing == "sealing: [Errno 28] No space left on device"
    telling.run_sealer()
    helpers.end("seal", "the device key is unusable")
    assert telling.failing == "", "no fault of the disk"
    telling.run_sealer()
    helpers.end("seal", "[Errno 5] Input/output error", storage=True)
    telling.run_sealer()
    helpers.end("seal")
    assert telling.failing == ""


def test_what_may_wait_a_minute_does_not_make_the_next_wait(tmp_path: Path) -> None:
    """A metric has a minute, a security record two seconds, a finding none."""
    telling, spool, _, loop = made(tmp_path, [])
    spool.full = False
    waits = []
    for record in (
        compose.metric({"rss_kib": 1}, telling.moment()),
        compose.text("login", telling.moment())._replace(stream=1),
        compose.metric({"rss_kib": 2}, telling.moment()),
    ):
        telling.record(record)
        assert telling._commit_timer is not None
        waits.append(round(telling._commit_timer.due - time.monotonic()))
    assert waits == [60, 2, 2]
    telling.state("start")
    loop.turn(0)
    assert spool.status.pending == 0


def test_a_sign_of_life_names_what_is_sealed_and_is_sealed_at_once(tmp_path: Path) -> None:
    telling, spool, helpers, _ = made(tmp_path, [])
    spool.full = False
    telling.run_sealer()
    assert helpers.asked[-1]["started"] is True
    helpers.end("seal", heads=[[0, 7, b"seven..."], [2, 3, b"three..."]])
    telling.state("start")
    asked = len(helpers.asked)
    telling._heartbeat()
    assert len(helpers.asked) == asked + 1
    assert helpers.asked[-1]["started"] is False
    _, _, record = telling.recent[-1]
    assert record.fields[0] == registry.STATES.index("heartbeat")
    assert record.fields[2] == {"seconds": 3600, "segments": (7, 0, 3, 0), "hashes": b"seven...three..."}
    assert [(head.stream, head.sequence, head.hash) for head in examine._heartbeat(record.fields[2])] == [
        (0, 7, b"seven..."),
        (2, 3, b"three..."),
    ]


def test_a_sealer_that_failed_has_not_begun_the_epoch(tmp_path: Path) -> None:
    telling, _, helpers, _ = made(tmp_path, [])
    for answer in ({"error": "x"}, {"busy": True}):
        telling.run_sealer()
        helpers.end("seal", **answer)
    telling.run_sealer()
    assert [asked["started"] for asked in helpers.asked] == [True, True, True]


def test_each_start_of_a_container_is_a_start(tmp_path, monkeypatch):
    """Containers share the kernel's boot id; the init of each start is another process."""
    starts = iter([4711, 4711, 9000, None])
    monkeypatch.setattr(telling.Procfs, "start", lambda _self, _pid: next(starts))
    first, same, restarted, hidden = (telling.boot_id() for _ in range(4))
    assert first == same != restarted
    assert len({len(first), len(hidden), 16}) == 1


def freed(tmp_path: Path) -> None:
    """What a sealer does with a journal that waits."""
    for number in range(2):
        path = tmp_path / f"spool/journal.{number}"
        header = journal.parse_header(path.read_bytes()[: journal.FRAMES_AT]) if path.exists() else None
        if header is not None and header.state == journal.CLOSED:
            with open(path, "r+b") as file:
                journal.write_header(os, file.fileno(), header._replace(state=journal.FREE))  # type: ignore[arg-type]


def turns_until(loop: Loop, done: Callable[[], bool], seconds: float) -> float:
    """Seconds that it took, of so many at most."""
    began = time.monotonic()
    while not done() and time.monotonic() - began < seconds:
        loop.turn(min(loop._timeout() % 1e9, seconds - (time.monotonic() - began)))
    return time.monotonic() - began


@pytest.mark.parametrize("before", [False, True])
def test_ordinary_records_are_sealed_when_their_time_is_over(tmp_path: Path, before: bool) -> None:
    telling, spool, helpers, loop = made(tmp_path, [], flush_s=1)
    spool.full = False
    telling.run_sealer()
    helpers.end("seal")
    if before:  # a sealing that was asked for, and one that was in time
        telling.state("start")
        telling.seal(force=True)
        freed(tmp_path)
        helpers.end("seal")
    asked, woken = len(helpers.asked), loop.wakeups
    for number in range(3):
        telling.state("start", f"{number}")
        loop.turn(0)
    took = turns_until(loop, lambda: len(helpers.asked) > asked, 10)
    assert 0.9 < took < 1.5
    assert loop.wakeups - woken <= 3 + 2
    freed(tmp_path)
    helpers.end("seal")
    telling.state("start", "and again")
    assert 0.9 < turns_until(loop, lambda: len(helpers.asked) > asked + 1, 10) < 1.5


def test_where_nothing_waits_nobody_wakes(tmp_path: Path) -> None:
    telling, spool, helpers, loop = made(tmp_path, [], flush_s=1)
    spool.full = False
    telling.run_sealer()
    helpers.end("seal")
    telling.state("start")
    telling.seal(force=True)
    freed(tmp_path)
    helpers.end("seal")
    loop.turn(0)
    assert loop._timeout() > 3500, "the heartbeat is next"
    assert telling._seal_timer is None


def test_many_commits_make_one_timer(tmp_path: Path) -> None:
    telling, spool, helpers, loop = made(tmp_path, [])
    spool.full = False
    telling.run_sealer()
    helpers.end("seal")
    for number in range(100):
        telling.state("start", f"{number}")
        loop.turn(0)
    assert spool.status.pending == 0
    assert len(loop._timers) <= 4


def test_a_journal_that_cannot_be_sealed_is_tried_again_and_does_not_spin(tmp_path: Path) -> None:
    telling, spool, helpers, _ = made(tmp_path, [])
    spool.full = False
    telling.state("start")
    telling.seal(force=True)
    waits = []
    for _ in range(8):
        helpers.end("seal", "[Errno 5] Input/output error", storage=True)
        assert telling._seal_timer is not None
        waits.append(round(telling._seal_timer.due - time.monotonic()))
        telling.seal()
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]
