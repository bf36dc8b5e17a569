"""The daemon's half of the spool: what was called durable is there again, whatever happens between."""

import contextlib
import errno
import os
import shutil

import pytest
from small_world import BROKEN, FULL, Device, FailingFiles, finding, moment, state

from edgeguard.codec import cose
from edgeguard.errors import SpoolError
from edgeguard.model import Severity
from edgeguard.records import compose, evidence, journal, registry, spool, wire


def frames(device, index=0):
    content = journal.parse(journal.read(os.path.join(device.spool_directory, f"journal.{index}")))
    return [] if content is None else list(content.frames)


def texts(device, index=0):
    return [wire.decode_record(frame.content).fields[1] for frame in frames(device, index)]


def test_numbers_count_each_stream_alone_and_go_on_after_a_restart(device):
    first = device.spool()
    first.open()
    assert first.append(state("a")) == (0, 1)
    assert first.append(compose.text("x", moment())) == (3, 1)
    assert first.append(state("b")) == (0, 2)
    first.close()
    second = device.spool()
    second.open()
    assert second.append(state("c")) == (0, 3)
    second.commit()
    assert [(frame.stream, frame.sequence) for frame in frames(device)] == [(0, 1), (3, 1), (0, 2), (0, 3)]
    assert second.status.boot == 1


def test_another_boot_counts_on(device):
    for boot, boot_id in ((1, b"a" * 16), (2, b"b" * 16), (2, b"b" * 16), (3, b"c" * 16)):
        one = device.spool(boot_id)
        one.open()
        assert one.status.boot == boot
        one.append(state())
        one.close()
    assert [frame.boot for frame in frames(device)] == [1, 2, 2, 3]


def test_nothing_is_on_disk_before_commit_and_all_after(device):
    files = FailingFiles()
    one = device.spool(files=files)
    one.open()
    before = files.syncs
    one.append(state("a"))
    assert frames(device) == []
    assert one.status.pending == 1
    one.commit()
    assert files.syncs == before + 1
    assert texts(device) == ["a"]
    assert one.status.pending == 0
    one.commit()
    assert files.syncs == before + 1


@pytest.mark.parametrize(
    ("record", "due"),
    [
        (state(mono=5000), 0),
        (compose.finding(finding(), moment(5000)), 0),
        (compose.drop(1, "damaged", moment(5000), first=1, last=1), 0),
        (state(mono=5000)._replace(stream=1), 2000),
        (compose.metric({"rss_kib": 1}, moment(5000)), 60_000),
    ],
)
def test_each_stream_has_its_own_patience(device, record, due):
    one = device.spool()
    one.open()
    assert one.commit_due(5000) is None
    one.append(record)
    assert one.commit_due(5000) == due
    assert one.commit_due(5000 + due) == 0
    one.commit()
    assert one.commit_due(5000 + due) is None


def test_four_kilobytes_do_not_wait(device):
    one = device.spool()
    one.open()
    while one.commit_due(1000) != 0:
        one.append(compose.text("x" * 500, moment()))
    assert one.status.pending > 5


def test_a_journal_torn_at_any_byte_gives_the_records_before(device, tmp_path):
    one = device.spool()
    one.open()
    ends = []
    for number in range(4):
        one.append(state(f"record {number}"))
        one.commit()
        ends.append(one._end)
    path = os.path.join(device.spool_directory, "journal.0")
    whole = journal.read(path)
    for cut in range(journal.FRAMES_AT, ends[-1] + 1):
        content = journal.parse(whole[:cut].ljust(len(whole), b"\xa5"))
        assert content is not None
        assert len(content.frames) == sum(end <= cut for end in ends)
    for place in range(journal.FRAMES_AT, ends[-1]):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        commit = sum(end <= place for end in ends)  # which one it hits
        content = journal.parse(bytes(damaged))
        kept = [frame.content != b"" for frame in content.frames]
        if commit == 3:  # the last one: as a torn write would leave it
            assert kept == [True] * 3
        else:  # a hit commit mark alone costs nothing, the record behind it is whole but not vouched for
            assert kept == [number != commit for number in range(4)]
            assert [frame.sequence for frame in content.frames] == [1, 2, 3, 4]


def test_what_lies_behind_a_torn_frame_of_one_commit_never_comes_back(device):
    one = device.spool()
    one.open()
    one.append(state("record 0"))
    one.commit()
    begin = one._end
    for number in (1, 2):
        one.append(state(f"record {number}"))
    one.commit()
    path = os.path.join(device.spool_directory, "journal.0")
    first = journal.read(path).index(b"record 1", begin)
    with open(path, "r+b") as file:
        file.seek(first)
        file.write(b"\xff")
    two = device.spool()
    two.open()
    assert two.append(state("record X")) == (0, 2)  # of the same length as the torn one
    two.commit()
    assert texts(device) == ["record 0", "record X"]


@pytest.mark.parametrize("closed", [False, True])
def test_a_record_that_the_disk_lost_has_a_signed_word_in_its_place(device, closed):
    one = device.spool()
    one.open()
    for number in range(3):
        one.append(compose.text(f"noise {number}", moment()))
        one.append(state(f"record {number}"))
        one.commit()
    if closed:
        one.rotate(10**9, force=True)
    path = os.path.join(device.spool_directory, "journal.0")
    data = journal.read(path)
    with open(path, "r+b") as file:
        for words in (b"record 1", *([b"noise 2"] if closed else [])):
            file.seek(data.index(words))
            file.write(b"\xff")
    two = device.spool()
    two.open()
    assert two.append(state("after")) == (0, 4)
    for turn in (1, 2, 3):
        two.rotate(turn * 10**9, force=True)
        result = device.seal()
        if turn == 1:
            assert result["spoiled"] == (3 if closed else 1)  # from there to the end of its commit
        two.refresh()
    two.close()
    found = decoded(device)
    drops = [record.fields for record in found if record.type == registry.DROP.number]
    assert {(fields[0], fields[3], fields[5]) for fields in drops if fields[0] == 0} == {
        (0, registry.REASONS.index("damaged"), f"record 0/{number} was damaged in the journal")
        for number in ([2, 3] if closed else [2])
    }
    words = [record.fields[1] for record in found if record.stream == 0 and record.type == registry.STATE.number]
    assert words == (["record 0", "after"] if closed else ["record 0", "record 2", "after"])


@pytest.mark.parametrize("what", ["directory", "link", "fifo", "unreadable"])
def test_whatever_lies_in_place_of_a_journal_is_set_aside(device, what, monkeypatch):
    device.spool().open()
    path = os.path.join(device.spool_directory, "journal.0")
    if what != "unreadable":
        os.unlink(path)
    if what == "directory":
        os.mkdir(path)
    elif what == "link":
        os.symlink("/etc/passwd", path)
    elif what == "fifo":
        os.mkfifo(path)
    one = device.spool()
    if what == "unreadable":
        real = journal.read

        def read(name):
            if name == path and os.path.exists(path):
                raise OSError(BROKEN, "broken")
            return real(name)

        monkeypatch.setattr(journal, "read", read)
        for _ in range(spool.UNREADABLE_MAX - 1):  # it may be the cable
            with pytest.raises(SpoolError):
                one.open()
    one.open()
    assert one.damaged == ["journal.0"]
    assert os.path.lexists(os.path.join(device.spool_directory, "quarantine", "journal.0.untold"))
    one.append(state("b"))
    one.commit()


def test_a_journal_that_cannot_be_written_to_is_tried_again(device):
    """A read-only disk at the start, with a journal that was being written: nothing but SpoolError."""
    one = device.spool()
    one.open()
    one.append(state("a"))
    one.close()

    class ReadOnly(FailingFiles):
        def open(self, path, flags, mode=0o777):
            if flags & (os.O_RDWR | os.O_WRONLY):
                self._check()
            return super().open(path, flags, mode)

    files = ReadOnly()
    files.error = errno.EROFS
    two = device.spool(files=files)
    for _ in range(2):
        with pytest.raises(SpoolError, match="read-only"):
            two.open()
        with pytest.raises(SpoolError):
            two.append(state("b"))
    files.error = 0
    two.commit()
    assert texts(device) == ["a", "b", "b"]
    two.close()


def test_a_torn_header_leaves_the_other_copy(device):
    one = device.spool()
    one.open()
    one.append(state("a"))
    one.close()
    path = os.path.join(device.spool_directory, "journal.0")
    with open(path, "r+b") as file:
        file.write(b"\0" * 300)
    again = device.spool()
    again.open()
    assert again.append(state("b")) == (0, 2)
    assert again.damaged == []


def test_a_journal_without_any_header_is_set_aside_and_named(device):
    one = device.spool()
    one.open()
    one.append(state("a"))
    one.close()
    path = os.path.join(device.spool_directory, "journal.0")
    with open(path, "r+b") as file:
        file.write(b"\xee" * 1024)
    again = device.spool()
    again.open()
    assert again.damaged == ["journal.0"]
    again.append(state("b"))
    again.commit()


def test_a_journal_that_was_set_aside_is_named_until_a_durable_record_says_so(device):
    """Whoever is killed between setting it aside and telling has told nobody."""
    one = device.spool()
    one.open()
    one.append(state("a"))
    one.close()
    with open(os.path.join(device.spool_directory, "journal.0"), "r+b") as file:
        file.write(b"\xee" * 1024)
    killed = device.spool()
    killed.open()
    killed.append(state("journal.0"))
    killed.told()
    os.close(killed._fd)  # before the commit
    again = device.spool()
    again.open()
    assert again.damaged == ["journal.0"]
    again.append(state("journal.0"))
    again.commit()  # of other records; that all are told of is said after the last
    again.told()
    again.commit()
    again.close()
    assert os.listdir(os.path.join(device.spool_directory, "quarantine")) == ["journal.0"]
    last = device.spool()
    last.open()
    assert last.damaged == []


def test_an_old_frame_of_an_earlier_generation_never_passes(device):
    one = device.spool()
    one.open()
    for turn in ("old", "mid", "now"):
        for number in range(5 if turn != "now" else 1):
            one.append(state(f"{turn} {number}"))
        one.commit()
        if turn != "now":
            one.rotate(1000, force=True)
            device.seal()
            one.refresh()
    raw = journal.read(os.path.join(device.spool_directory, f"journal.{one._active}"))
    assert b"old 3" in raw
    assert texts(device, one._active) == ["now 0"]
    one.close()


@pytest.mark.parametrize("error", [FULL, BROKEN])
def test_a_disk_that_fails_is_said_and_nothing_is_forgotten(device, error):
    files = FailingFiles()
    one = device.spool(files=files)
    one.open()
    one.append(state("a"))
    one.commit()
    files.error = error
    one.append(state("b"))
    with pytest.raises(SpoolError) as caught:
        one.commit()
    assert caught.value.code == "EG-HLTH-004"
    assert one.status.error
    assert one.commit_due(50_000) > 0  # no spinning
    assert texts(device) == ["a"]
    files.error = 0
    files.short = True
    one.append(state("c"))
    one.commit()
    assert texts(device) == ["a", "b", "c"]
    assert one.status.error == ""
    assert one.commit_due(50_000) is None


def test_a_disk_that_is_full_from_the_start(device):
    files = FailingFiles()
    files.error = FULL
    one = device.spool(files=files)
    with pytest.raises(SpoolError, match="disk is full"):
        one.open()
    with pytest.raises(SpoolError):
        one.append(state("a"))
    assert one.commit_due(1000) > 0
    files.error = 0
    one.commit()
    assert texts(device) == ["a"]


def test_both_journals_taken_keeps_findings_and_counts_the_rest(device):
    device.size = 8 * 1024
    one = device.spool()
    one.open()
    with contextlib.suppress(SpoolError):
        while True:
            one.append(compose.text("noise", moment()))
    written = one.status.next[3] - 1
    for _ in range(spool.QUEUE_MAX * 2):
        with pytest.raises(SpoolError):
            one.append(compose.text("noise", moment()))
    with pytest.raises(SpoolError):
        one.append(compose.finding(finding(), moment()))
    assert one.status.queued == spool.QUEUE_MAX
    lost = one.status.lost[3]
    assert lost == spool.QUEUE_MAX + 2
    assert one.status.waiting == 1
    assert one.seal_due(1000)
    assert one.rotate(1000)
    device.size = 8 * 1024
    for turn in range(200):  # sealer and daemon in turn
        result = device.seal()
        assert result["problems"] == []
        one.refresh()
        if one.status.queued == 0:
            break
        one.rotate(10_000 * (turn + 1))
    assert one.status.queued == 0
    assert one.append(compose.text("after", moment())) == (3, written + spool.QUEUE_MAX)
    for turn in range(3):
        one.rotate(10**9 * (turn + 1), force=True)
        device.seal()
        one.refresh()
    drops = [record for record in decoded(device) if record.type == registry.DROP.number]
    assert [(drop.fields[0], drop.fields[4]) for drop in drops] == [(3, lost)]
    assert sum(record.type == registry.FINDING.number for record in decoded(device)) == 1
    one.close()


def decoded(device):
    from edgeguard.codec import cose

    found = []
    for data in device.segments().values():
        found += wire.decode_segment(cose.parse1(data).payload).records
    return found


def test_sealing_is_due_for_urgent_findings_for_many_records_and_for_old_ones(device):
    one = device.spool()
    one.open()
    assert not one.seal_due(0)
    one.append(compose.finding(finding(severity=Severity.LOW), moment()))
    assert not one.seal_due(1000)
    assert one.seal_due(1000 + 3_600_000)
    one.append(compose.finding(finding(severity=Severity.HIGH), moment()))
    assert one.seal_due(1000)
    assert one.rotate(1000)
    assert not one.seal_due(1500)  # a sealer is at work
    assert one.seal_due(1_000_000)  # it never came back
    device.seal()
    one.refresh()
    assert not one.seal_due(2000)
    for _ in range(256):
        one.append(compose.text("x", moment()))
    assert one.seal_due(2000)
    one.close()


def test_a_restart_seals_what_was_left(device):
    one = device.spool()
    one.open()
    one.append(state())
    one.close()
    two = device.spool()
    two.open()
    assert two.seal_due(0)
    two.close()


def test_numbers_go_on_from_segments_when_the_journals_are_gone(device):
    device.record_and_seal(*(state(f"{n}") for n in range(5)))
    for name in spool.JOURNALS:
        path = os.path.join(device.spool_directory, name)
        if os.path.exists(path):
            os.unlink(path)
    one = device.spool()
    one.open()
    assert one.append(state()) == (0, 6)
    assert one.status.boot == 2  # not known to be the same boot: counting on is safe
    one.close()


@pytest.mark.parametrize(
    ("first", "boot"), [(2, 2**32 - 1), (2, 2**40), (200_000, 1), (2**62 - 1, 1)], ids=["boot", "more", "far", "absurd"]
)
def test_damaged_numbers_in_the_newest_segment_stop_nothing(device, first, boot):
    """The daemon cannot verify a segment: numbers that no device reaches are none, a leap makes no million records."""
    device.record_and_seal(state("a"))
    header = wire.Header(device.id, 0, 2, 1, boot, first, 0, bytes(32), 0, None, 0, bytes(8), 0)
    damaged = cose.sign1(wire.encode_segment(header, [state("x")]), b"\x05" * 32, cose.SEGMENT_AAD)
    with open(f"{device.outbox}/0-0000000000000002.egs", "wb") as file:
        file.write(damaged)
    for boot_id in (b"second boot.....", b"third boot......"):
        one = device.spool(boot_id)
        one.open()
        one.append(state())
        one.rotate(10_000_000, force=True)
        one.append(state())
        one.close()
        assert len(frames(device, 0)) + len(frames(device, 1)) < 10
        answer = device.seal()
        assert sum(segment["n"] for segment in answer["sealed"]) < 10
    log = evidence.Device(device.settings.paths.state, device.settings.paths.exchange, device.public, None)
    assert evidence.own(log).clean


def test_a_kill_at_every_write_loses_nothing_that_was_durable(tmp_path):
    """Every state of the disk that a kill may leave is copied, opened and sealed; what was durable is there, once."""
    device = Device(str(tmp_path / "device"), size=8 * 1024)
    snapshots = []

    class Copying(FailingFiles):
        def pwrite(self, fd, data, offset):
            shutil.copytree(device.settings.paths.state, tmp_path / f"s{len(snapshots)}" / "state")
            if os.path.isdir(device.settings.paths.exchange):
                shutil.copytree(device.settings.paths.exchange, tmp_path / f"s{len(snapshots)}" / "exchange")
            snapshots.append(durable)
            return super().pwrite(fd, data[: len(data) // 2 + 1], offset)

    durable = 0
    one = device.spool(files=Copying())
    one.open()
    for number in range(1, 60):
        one.append(state(f"record {number} " + "x" * 300))
        if number % 3 == 0:
            one.commit()
            durable = number
        if one.seal_due(2000) and one.rotate(2000):
            device.seal()
            one.refresh()
    assert len(snapshots) > 40
    for number, promised in enumerate(snapshots):
        copy = Device(str(tmp_path / f"s{number}"), size=8 * 1024)
        found = copy.spool()
        found.open()
        for now in (10**9, 10**10):
            found.rotate(now, force=True)
            copy.seal()
            found.refresh()
        found.close()
        sequences = []
        from edgeguard.codec import cose

        for data in copy.segments().values():
            segment = wire.decode_segment(cose.parse1(data).payload)
            sequences += range(segment.header.first, segment.header.first + segment.header.n)
        assert sequences == list(range(1, len(sequences) + 1))
        assert len(sequences) >= promised


def test_time_never_runs_back_within_a_stream(device):
    one = device.spool()
    one.open()
    for mono in (5000, 4990, 5010):
        one.append(state(mono=mono))
    one.append(compose.text("x", moment(100)))
    one.commit()
    records = [wire.decode_record(frame.content) for frame in frames(device)]
    assert [record.mono for record in records] == [5000, 5000, 5010, 100]
    assert len({record.wall - record.mono for record in records}) == 1


@pytest.mark.parametrize("nth", range(1, 5))
def test_a_disk_that_fails_while_turning_neither_loses_nor_stops_anything(device, nth):
    """Two syncs close the one journal, two start the other; each of them fails once, and a sealer comes by."""

    class Once(FailingFiles):
        left = 0

        def fdatasync(self, fd):
            self.left -= 1
            if self.left == 0:
                raise OSError(BROKEN, "broken")
            super().fdatasync(fd)

    files = Once()
    one = device.spool(files=files)
    one.open()
    one.append(state("a"))
    one.commit()
    files.left = nth
    with pytest.raises(SpoolError):
        one.rotate(1000, force=True)
    device.seal()
    one.refresh()
    one.append(state("b"))
    one.commit()
    two = device.spool()  # as after a power cut now
    two.open()
    for turn in (1, 2, 3):
        two.rotate(turn * 10**9, force=True)
        device.seal()
        two.refresh()
    assert [record.fields[1] for record in decoded(device)] == ["a", "b"]
    two.close()


def test_damage_to_a_journal_that_was_closed_in_trouble_is_seen_by_the_next_one(device):
    """Its end has no mark, because the disk failed just then; the other journal knows what was in it."""
    one = device.spool()
    one.open()
    for number in range(3):
        one.append(state(f"record {number}"))
    one.commit()
    one._commit_mark = lambda: b""
    one.rotate(10**9, force=True)
    one.append(state("after"))
    one.commit()
    path = os.path.join(device.spool_directory, "journal.0")
    with open(path, "r+b") as file:
        file.seek(journal.read(path).index(b"record 1"))
        file.write(b"\xff")
    assert device.seal()["spoiled"] == 2
    found = decoded(device)
    assert [record.type == registry.DROP.number for record in found] == [False, True, True]
    one.close()
