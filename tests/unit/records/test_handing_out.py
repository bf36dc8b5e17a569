"""When a segment may be sent: what was delivered never comes again, wherever the sealer stopped and whatever became of
the file meanwhile."""

import errno
import os
import shutil
from collections import Counter

import pytest
from small_world import Device, moment, state

from edgeguard.codec import cbor, cose
from edgeguard.collector import store
from edgeguard.collector.ingest import Ingest
from edgeguard.records import carrying, compose, journal, keyring, outbox, seal, wire

STEPS = ("pwrite", "fsync", "replace", "fdatasync", "fchmod")
COLLECTOR = b"\x09" * 32
RECORDS = 300


class Killed(BaseException):
    """The process ends here."""


class Stop:
    """After some calls that change the disk, one or all of the next fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.left = 0

    def after(self, steps: int, how: BaseException, device: Device, *, lasting: int = 1) -> bool:
        """One run of the sealer. False: it did not get that far."""
        self.left = steps
        real = {name: getattr(os, name) for name in STEPS}

        def failing(name: str):
            def call(*words, **more):
                self.left -= 1
                if -lasting <= self.left < 0:
                    raise how
                return real[name](*words, **more)

            return call

        with self._patch.context() as patch:
            for name in STEPS:
                patch.setattr(os, name, failing(name))
            try:
                device.seal()
            except (Killed, OSError):
                return True
        return self.left < 0


class Taker:
    """A collector that takes whatever may be sent, and whose receipts are lost."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.database = store.connect(":memory:")
        self._ingest = Ingest(self.database, COLLECTOR, lambda: 1)
        self._known = self._ingest.add_device("d", device.public)

    def take(self) -> None:
        for name in outbox.listing(self._device.outbox):
            data = outbox.read(self._device.outbox, name)
            if not outbox.is_held(self._device.outbox, name) and outbox.is_one(data):
                self._ingest.take(b"".join([*self._device.statements().values(), data]), self._known)

    def numbers(self) -> Counter[tuple[int, int]]:
        """How often it has each record."""
        found: Counter[tuple[int, int]] = Counter()
        for (data,) in self.database.execute("SELECT bytes FROM segments"):
            header = wire.decode_header(cose.parse1(data).payload)
            found.update((header.stream, header.first + place) for place in range(header.n))
        return found

    def incidents(self) -> set[str]:
        return {name for (name,) in self.database.execute("SELECT name FROM incidents WHERE resolved IS NULL")}


@pytest.fixture
def full(device):
    """Journals that wait for the sealer: several segments of one stream, and one of another."""
    spool = device.spool()
    spool.open()
    for number in range(RECORDS):
        spool.append(state(f"{number}"))
    spool.append(compose.text("x", moment()))
    spool.rotate(10**9, force=True)
    spool.close()
    return device


def again(device: Device, place: str) -> Device:
    """The same device from the beginning."""
    shutil.rmtree(place, ignore_errors=True)
    copy = Device(place)
    shutil.rmtree(f"{place}/state")
    shutil.copytree(device.settings.paths.state, copy.settings.paths.state)
    return copy


def spoil_newest(device: Device) -> None:
    for name in outbox.newest(outbox.listing(device.outbox)).values():
        with open(os.path.join(device.outbox, name.file), "r+b") as file:
            file.seek(-20, os.SEEK_END)
            last = file.read(1)
            file.seek(-20, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))


def breaks_at_the_second(device: Device, monkeypatch) -> None:
    """A run of the sealer in which the disk does not take the second segment of a stream."""
    real = os.replace

    def broken(source, target):
        if target.endswith("-0000000000000002.egs"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(OSError, match="Input/output"):
            device.seal()


@pytest.mark.parametrize(
    ("how", "lasting"),
    [(Killed(), 1), (OSError(errno.EIO, "broken"), 1), (OSError(errno.ENOSPC, "full"), 3)],
    ids=["killed", "broken", "full"],
)
def test_delivered_and_then_damaged_it_is_not_sealed_again(full, tmp_path, monkeypatch, how, lasting):
    stop = Stop(monkeypatch)
    for steps in range(80):
        device = again(full, str(tmp_path / "copy"))
        stopped = stop.after(steps, how, device, lasting=lasting)
        collector = Taker(device)
        collector.take()
        spoil_newest(device)
        device.seal()
        device.record_and_seal(state("later"), compose.text("later", moment()))
        collector.take()
        twice = {number: count for number, count in collector.numbers().items() if count > 1}
        assert not twice, f"stopped after {steps} steps"
        assert collector.incidents() <= {"explained loss", "altered", "re-sealed", "malformed"}, f"after {steps} steps"
        collector.database.close()
        if not stopped:
            break
    assert not stopped
    assert steps > 20


def test_nor_where_the_first_copy_of_the_journals_header_is_damaged_too(full, tmp_path, monkeypatch):
    """Killed between the two copies, its next run hands out; what that did not reach must say the same by then."""
    stop = Stop(monkeypatch)
    for steps in range(80):
        device = again(full, str(tmp_path / "copy"))
        stopped = stop.after(steps, Killed(), device)
        device.seal()
        collector = Taker(device)
        collector.take()
        spoil_newest(device)
        with open(os.path.join(device.spool_directory, "journal.0"), "r+b") as file:
            file.write(b"torn")
        device.seal()
        collector.take()
        twice = {number: count for number, count in collector.numbers().items() if count > 1}
        assert not twice, f"stopped after {steps} steps"
        collector.database.close()
        if not stopped:
            break
    assert not stopped
    assert steps > 20


def test_a_sealer_that_cannot_go_on_holds_nothing_back_that_it_has_sealed(full, monkeypatch):
    """The second segment meets a broken disk: the first is delivered, and its records are the journal's no more."""
    for _ in range(2):
        breaks_at_the_second(full, monkeypatch)
    names = outbox.listing(full.outbox)
    assert names == [outbox.Name(0, 1)]
    assert not [name for name in names if outbox.is_held(full.outbox, name)]
    content = journal.parse(journal.read(os.path.join(full.spool_directory, "journal.0")))
    assert content.header.state == journal.CLOSED
    assert content.sealed[0] == outbox.header(full.outbox, names[-1]).first + outbox.header(full.outbox, names[-1]).n
    full.seal()
    collector = Taker(full)
    collector.take()
    assert collector.numbers() == Counter([*((0, number) for number in range(1, RECORDS + 1)), (3, 1)])
    assert collector.incidents() == set()


@pytest.mark.parametrize("step", ["begin", "ready", "end"])
def test_nor_where_it_is_the_word_about_a_key_that_finds_no_room(full, monkeypatch, step):
    """Else nothing could be sent, and nothing ever made room."""

    def no_room(*_words, **_more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("edgeguard.records.closed.Closed.release", lambda _one: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            full.seal()
    with monkeypatch.context() as patch:
        patch.setattr(f"edgeguard.records.keyring.Keyring.{step}", no_room)
        with pytest.raises(OSError, match="No space"):
            full.seal()
    collector = Taker(full)
    collector.take()
    assert len(collector.numbers()) == RECORDS + 1
    spoil_newest(full)
    full.seal()
    collector.take()
    assert collector.numbers() == Counter([*((0, number) for number in range(1, RECORDS + 1)), (3, 1)])


def test_the_program_says_what_it_handed_out_before_it_failed(full, tmp_path, monkeypatch, capsysbinary):
    """Else nobody would ring for it."""
    paths = full.settings.paths
    path = tmp_path / "agent.toml"
    path.write_text(f'[paths]\nstate = "{paths.state}"\nruntime = "{paths.runtime}"\nexchange = "{paths.exchange}"\n')
    monkeypatch.setattr(seal.capabilities, "give_up_all", lambda: None)
    monkeypatch.setattr(seal.sys, "stdin", None)
    monkeypatch.setattr(keyring.Keyring, "end", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert seal.main(["--settings", str(path)]) == 1
    answer = cbor.decode(capsysbinary.readouterr().out[4:])
    assert answer["storage"] is True
    assert answer["handed_out"] == len(outbox.listing(full.outbox)) > 1


def test_a_journal_on_a_bad_place_of_the_disk_is_free_elsewhere(full, monkeypatch):
    path = os.path.join(full.spool_directory, "journal.0")
    bad, real = os.stat(path).st_ino, os.fdatasync

    def failing(fd):
        if os.fstat(fd).st_ino == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fdatasync", failing)
    assert full.seal()["released"] == [0]
    assert not [name for name in outbox.listing(full.outbox) if outbox.is_held(full.outbox, name)]
    for number in range(RECORDS, RECORDS + 3):  # both journals are in use again
        assert len(full.record_and_seal(state(f"{number}"))["sealed"]) == 1
    assert os.stat(path).st_ino != bad
    assert os.stat(path).st_size == full.size
    collector = Taker(full)
    collector.take()
    assert collector.numbers() == Counter([*((0, number) for number in range(1, RECORDS + 4)), (3, 1)])
    assert collector.incidents() == set()


@pytest.mark.parametrize("sector", [0, 512])
def test_a_torn_note_of_what_is_sealed_brings_nothing_twice(full, monkeypatch, sector):
    breaks_at_the_second(full, monkeypatch)
    collector = Taker(full)
    collector.take()
    assert collector.numbers()
    with open(os.path.join(full.spool_directory, "journal.0"), "r+b") as file:
        file.seek(sector)
        file.write(b"\xff" * 512)
    spoil_newest(full)
    full.seal()
    collector.take()
    assert max(collector.numbers().values()) == 1


def test_what_is_not_handed_out_is_neither_sent_nor_exported(full, monkeypatch):
    stop = Stop(monkeypatch)
    monkeypatch.setattr("edgeguard.records.closed.Closed.release", lambda *_: (_ for _ in ()).throw(Killed()))
    assert stop.after(10**6, Killed(), full)
    names = outbox.listing(full.outbox)
    assert names
    assert all(outbox.is_held(full.outbox, name) for name in names)
    left_out = []
    assert list(carrying.parts(full.outbox, left_out)) == []
    assert left_out == []
    monkeypatch.undo()
    full.seal()
    assert not [name for name in names if outbox.is_held(full.outbox, name)]
    assert {os.stat(os.path.join(full.outbox, name.file)).st_mode & 0o777 for name in names} == {0o640}
    assert sum(count for _, count in carrying.parts(full.outbox, left_out)) == len(names)
