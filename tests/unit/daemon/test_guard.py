"""The guard without its sensors: what it keeps, and when."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeguard.baseline.document import ManifestRef
from edgeguard.codec.manifest import Entry, Writer
from edgeguard.control_server.peers import Peer
from edgeguard.daemon.baselines import InForce, Upgraded
from edgeguard.daemon.guard import Guard
from edgeguard.daemon.loop import Loop
from edgeguard.daemon.publish import replace_file
from edgeguard.daemon.verbs.acting import Acting
from edgeguard.errors import ControlError
from edgeguard.evaluate.ledger import Ledger
from edgeguard.model import Observation, Outcome, Result, Rule, Severity
from edgeguard.sensors.health import Reason
from edgeguard.settings import Paths, Settings
from edgeguard.upgrades.overlay import Notable
from tests import lent


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    for name in ("state", "run", "exchange"):
        (tmp_path / name).mkdir()
    paths = Paths(
        root=str(tmp_path), state=f"{tmp_path}/state", runtime=f"{tmp_path}/run", exchange=f"{tmp_path}/exchange"
    )
    return Guard(Loop(), Settings(paths=paths), "", lambda _line: None)


def test_an_urgent_change_does_not_wait_for_a_lazy_save(guard: Guard) -> None:
    guard.keeping.plan(urgent=False)
    lazy = guard.keeping._timer
    guard.keeping.plan(urgent=True)
    assert lazy is not None
    assert guard.keeping._timer is not None
    assert guard.keeping._timer.due < lazy.due - 100
    assert lazy.callback is None
    soon = guard.keeping._timer
    guard.keeping.plan(urgent=False)
    assert guard.keeping._timer is soon


def test_a_disk_that_takes_a_part_does_not_replace_the_ledger(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "ledger.cbor"
    path.write_bytes(b"the ledger as it was")
    written = os.write
    room = [7]

    def nearly_full(fd: int, data: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "full")
        taken = written(fd, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(OSError, match="full"):
        replace_file(str(path), b"a ledger that is new and longer")
    assert path.read_bytes() == b"the ledger as it was"


def test_a_ledger_that_could_not_be_saved_is_saved_later(guard: Guard, monkeypatch: Any) -> None:
    def full(_path: str, _data: bytes, _mode: int, **_more: bool) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("edgeguard.daemon.keeping.replace_file", full)
    Path(f"{guard.settings.paths.state}/observed.db.swept").write_bytes(b"swept")
    guard.rounds.adopt_swept()
    assert not os.path.exists(f"{guard.settings.paths.state}/observed.db")
    assert guard.keeping._timer is not None
    monkeypatch.undo()
    guard.rounds.adopt_swept()
    assert Path(f"{guard.settings.paths.state}/observed.db").read_bytes() == b"swept"


def test_what_cannot_be_signed_now_is_not_accepted_by_half(guard: Guard) -> None:
    rule = Rule(id="r", kind="sysctl", code="EG-SYS-001", title="", severity=Severity.LOW)
    seen = Observation("sysctl", "net.test", {"value": "1"}, 1)
    result = Result(rule, seen, Outcome.FAIL, (), {"value": "0"}, {"value": "1"})
    (opened,) = guard.river.ledger.apply([result], 1)
    guard.judging.in_force = InForce(None, "local", "", b"", {})  # type: ignore[arg-type]
    guard.helpers.running["rebase"] = None  # type: ignore[assignment]
    verbs, request = Acting(guard), SimpleNamespace(peer=Peer(1, 0, 0))
    request.parameters = {"ids": [opened.finding.id], "reason": "because", "until": None, "marks": []}
    with pytest.raises(ControlError, match="being signed"):
        verbs.accept(request)  # type: ignore[arg-type]
    (finding,) = guard.river.ledger.open()
    assert finding.waiver == ""
    assert not guard.river.ledger.is_accepted(finding.id)


def test_an_installed_baseline_ends_what_was_said_of_refused_ones(guard: Guard, monkeypatch: Any) -> None:
    answers = iter([{"code": "EG-BASE-006", "error": "bit flipped"}, {"revision": 3}])

    def make(_verb: str, _request: Any, _progress: Any, done: Any) -> bool:
        done(next(answers))
        return True

    monkeypatch.setattr(guard.judging.baselines, "make", make)
    guard.judging.install({}, "/media/usb/x.egb", lambda _answer: None)
    assert "baseline /media/usb/x.egb: bit flipped" in guard.health.problems()
    guard.judging.install({}, "/media/usb/y.egb", lambda _answer: None)
    assert not [problem for problem in guard.health.problems() if problem.startswith("baseline")]


def test_what_a_helper_signed_and_could_not_tell_is_found(guard: Guard, monkeypatch: Any) -> None:
    """It took the manifest away that held before: sweeps would fail until the next start."""
    loads: list[str] = []
    monkeypatch.setattr(guard.judging.baselines, "load", lambda: loads.append("load"))
    monkeypatch.setattr(guard.judging, "_renewed", lambda: None)
    state = Path(guard.settings.paths.state)
    (state / "upgrades").mkdir()
    old, new = (Upgraded(b"f" * 32, name * 32, 1, (), {}) for name in (b"o", b"n"))
    baseline: Any = SimpleNamespace(files=ManifestRef(b"f" * 32, 1, 1), policy=SimpleNamespace(watches=()))
    force = InForce(baseline, "local", "this device", b"d", {}, old)
    guard.judging.in_force, guard.judging.upgraded = force, old
    with (state / f"upgrades/{new.sha256.hex()}.egm").open("wb") as file:
        Writer(file).close()
    stored = force._replace(upgraded=new)
    guard.judging._in_force(stored)
    assert guard.judging.upgraded == old, "read at some time, for another reason"
    guard.judging.look_for_upgraded()
    assert loads == ["load"]
    guard.judging._in_force(stored)
    assert guard.judging.for_sweeps()["overlay"] == [new.sha256, 1]


def test_each_baseline_holds_one_descriptor_and_the_last_one_none(guard: Guard, monkeypatch: Any) -> None:
    """Each accepted finding is a new baseline: a daemon that runs for years has many."""
    monkeypatch.setattr(guard.judging, "_arrived", lambda _old, new: arrived.append(guard.judging.file_reference("/a")))
    folder = Path(guard.settings.paths.state, "baseline")
    folder.mkdir()
    arrived: list[Any] = []
    count = len(lent.open_now())

    def comes(name: bytes, content: bytes | None = None) -> None:
        path = folder / f"{name.hex()}.egm"
        with path.open("wb") as file:
            if content is None:
                writer = Writer(file)
                writer.add(b"", [b"a"], [Entry(0o100644, len(arrived), 0, 0, "config")])
                writer.close()
            else:
                file.write(content)
        files = ManifestRef(name, path.stat().st_size, 1)
        baseline: Any = SimpleNamespace(files=files)
        guard.judging._in_force(InForce(baseline, "local", "this device", name, {}))

    for number in range(3):
        comes(b"%d" % number)
        comes(b"bad", b"x" * 100)
    assert [found and found["uid"] for found in arrived] == [0, 1, 2]
    assert len(lent.open_now()) == count + 1
    reference = guard.judging.file_reference("/a")
    assert reference is not None
    assert reference["uid"] == 2, "what is refused leaves the one that stands"


@pytest.mark.parametrize(("gap", "told"), [(None, False), (5, False), (600, True), (10_000, False)])
def test_a_time_without_the_guard_is_told_if_the_device_was_on(
    guard: Guard, monkeypatch: pytest.MonkeyPatch, gap: int | None, told: bool
) -> None:
    monkeypatch.setattr("time.clock_gettime", lambda _clock: 5_000.0)  # up for so long: the last gap is a power-off
    guard.trouble.started(gap, ())
    assert any("nothing was watched" in line for line in guard.health.problems()) is told


def test_a_journal_that_was_set_aside_is_told(guard: Guard) -> None:
    guard.trouble.started(None, ["journal.1"])
    assert any("spool journal.1" in line for line in guard.health.problems())


def _open_finding(guard: Guard) -> str:
    rule = Rule(id="r", kind="sysctl", code="EG-SYS-001", title="", severity=Severity.LOW)
    seen = Observation("sysctl", "net.test", {"value": "1"}, 1)
    (opened,) = guard.river.ledger.apply([Result(rule, seen, Outcome.FAIL, (), {"value": "0"}, {"value": "1"})], 1)
    return opened.finding.id


class _Request(SimpleNamespace):
    """A person's question; remembers what was on disk when it was answered."""

    def __init__(self, guard: Guard, **parameters: Any) -> None:
        super().__init__(peer=Peer(1, 0, 0), parameters=parameters, accepted=None)
        self._guard = guard

    def reply(self, _words: Any) -> None:
        data = Path(f"{self._guard.settings.paths.state}/ledger.cbor").read_bytes()
        self.accepted = Ledger.from_cbor(data).is_accepted(self._guard.river.ledger.all()[0].id)


def test_a_word_is_on_disk_before_it_is_answered(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("fsync", "rename"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *words, n=name, call=original: (done.append(n), call(*words)))
    finding, verbs = _open_finding(guard), Acting(guard)
    request = _Request(guard, ids=[finding], reason="because", until=1 << 50, marks=[])
    verbs.accept(request)  # type: ignore[arg-type]
    assert request.accepted
    assert done == ["fsync", "rename", "fsync"]  # the content, its name, the directory
    done.clear()
    request = _Request(guard, id=finding)
    verbs.undo(request)  # type: ignore[arg-type]
    assert request.accepted is False
    assert done == ["fsync", "rename", "fsync"]


def test_what_the_disk_does_not_take_is_not_accepted(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_words: Any, **_more: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("edgeguard.daemon.keeping.replace_file", full)
    finding = _open_finding(guard)
    with pytest.raises(ControlError, match="nothing was accepted"):
        Acting(guard).accept(_Request(guard, ids=[finding], reason="because", until=1 << 50, marks=[]))  # type: ignore[arg-type]
    assert not guard.river.ledger.is_accepted(finding)
    assert [one.id for one in guard.river.ledger.open()] == [finding]


def test_a_save_that_nobody_waits_for_costs_one_sync(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    assert guard.keeping.save()
    assert len(synced) == 1


def test_a_disk_that_takes_no_segments_is_no_fault_of_the_helper(guard: Guard) -> None:
    def codes() -> set[tuple[str, str]]:
        seen = guard.health.observe(0)
        return {(str(one.columns["code"]), one.subject) for one in seen if not one.columns["ok"]} - {
            ("EG-HLTH-004", "spool")  # nobody opened it in this test
        }

    guard.trouble.sealed({"error": "[Errno 28] No space left on device", "storage": True})
    assert codes() == {("EG-HLTH-004", "outbox")}
    guard.trouble.sealed({"v": 1})
    assert codes() == set()
    guard.trouble.sealed({"error": "the device key is unusable"})
    assert codes() == {("EG-HLTH-007", "helper seal")}


def test_a_clock_that_is_set_has_the_baselines_verified_again(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a battery starts in the past, and its baseline is not valid yet until the time is known."""
    loads = []
    monkeypatch.setattr(guard.judging.baselines, "load", lambda: loads.append("load"))
    guard.health.report(Reason.SENSOR_FAILED, "sensor usb", "gone", now=1)
    guard.health.report(Reason.CLOCK_STEP, "clock", "the clock was set 7.0 s forward", ok=True, now=1)
    for observation in guard.health.ready(2):
        guard.judged(observation)
    assert loads == ["load"]
    for observation in guard.health.observe(3):
        guard.judged(observation)
    assert loads == ["load"]


def test_the_packages_sensor_asks_of_packages_that_dpkg_does_not_list(guard: Guard) -> None:
    assert guard.sensors._context.notable() == ()
    guard.judging.upgraded = Upgraded(b"", b"", 0, (Notable("evil", "3", "nobody", 7, ""),), {})
    assert guard.sensors._context.notable() == ("evil",)
