"""Logs may grow and be rotated, in each way that logrotate knows; whatever else makes one lose lines stays told."""

import bz2
import gzip
import itertools
import lzma
import os
import shutil
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, os.path.dirname(__file__))
from files_world import World
from test_files_sensor import Live

from edgeguard.baseline.categories import CATEGORIES
from edgeguard.errors import DecodeError
from edgeguard.model import NOBODY, Origin, Status, Watch
from edgeguard.sensors import logbook, logs, rotation
from edgeguard.sensors.logs import Logs

LINES = b"".join(b"Nov 26 02:%02d:%02d host sshd[%d]: session opened\n" % (n // 60, n % 60, n) for n in range(600))
LOGROTATE = os.environ.get("LOGROTATE") or shutil.which("logrotate")


class Place:
    """A folder with one log in it that was looked at once."""

    def __init__(self, folder, content=LINES):
        self.folder = folder
        self.logs = Logs(str(folder))
        self.log = folder / "x.log"
        self.log.write_bytes(content)
        self.look()

    def look(self, name="/x.log"):
        return self.logs.look(name).continuity

    def append(self, data=b"one more line\n"):
        with open(self.log, "ab") as file:
            file.write(data)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_growing_is_silent(place):
    for _line in range(3):
        place.append()
        assert place.look() == "kept"
    place.append(LINES * 5)
    assert place.look() == "kept"


def test_a_log_that_was_empty_loses_nothing(tmp_path):
    place = Place(tmp_path, b"")
    place.log.unlink()
    assert place.logs.absent("/x.log").continuity == "rotated"
    place.log.write_bytes(b"first\n")
    assert place.look() == "kept"


# -- what rotation does


def renamed(place, name="x.log.1"):
    os.rename(place.log, place.folder / name)
    place.log.write_bytes(b"")


def copied(place):
    shutil.copyfile(place.log, place.folder / "x.log.1")
    os.truncate(place.log, 0)


def packed_at_once(opener, suffix):
    def rotate(place):
        with opener(place.folder / f"x.log.1{suffix}", "wb") as out:
            out.write(place.log.read_bytes())
        place.log.unlink()
        place.log.write_bytes(b"")

    return rotate


def packed_by_zstd(place):
    os.rename(place.log, place.folder / "x.log.1")
    subprocess.run(["zstd", "-q", "--rm", place.folder / "x.log.1"], check=True)
    place.log.write_bytes(b"")


def aside(place):
    (place.folder / "old").mkdir()
    renamed(place, "old/x.log-20261126")


ROTATIONS = {
    "renamed": renamed,
    "dated": lambda place: renamed(place, "x.log-20261126"),
    "dated with an extension": lambda place: renamed(place, "x-20261126.log"),
    "dated to the second": lambda place: renamed(place, "x.log-20261126-024530"),
    "old": lambda place: renamed(place, "x.log.old"),
    "another folder": aside,
    "copied and cut": copied,
    "gzip": packed_at_once(gzip.open, ".gz"),
    "xz": packed_at_once(lzma.open, ".xz"),
    "bzip2": packed_at_once(bz2.open, ".bz2"),
    "cups": lambda place: renamed(place, "x.log.O"),
    "zstd": pytest.param(packed_by_zstd, marks=pytest.mark.skipif(not shutil.which("zstd"), reason="needs zstd")),
}


@pytest.mark.parametrize("rotate", ROTATIONS.values(), ids=ROTATIONS)
def test_rotation_is_understood(place, rotate):
    place.append(b"written between two looks\n")
    rotate(place)
    assert place.look() == "kept"
    place.append()
    assert place.look() == "kept"


@pytest.mark.parametrize("rotate", ROTATIONS.values(), ids=ROTATIONS)
def test_rotation_before_the_new_log_is_there(place, rotate):
    rotate(place)
    place.log.unlink()
    assert place.logs.absent("/x.log").continuity == "rotated"
    place.log.write_bytes(b"new\n")
    assert place.look() == "kept"


def test_several_rotations_at_once(place):
    """The daemon was away for a week."""
    renamed(place, "x.log.3")
    with gzip.open(place.folder / "x.log.3.gz", "wb") as out:
        out.write((place.folder / "x.log.3").read_bytes())
    (place.folder / "x.log.3").unlink()
    for number in (2, 1):
        place.log.write_bytes(b"week %d\n" % number)
        renamed(place, f"x.log.{number}")
    assert place.look() == "kept"


def test_a_line_between_copy_and_truncation(place):
    place.append()
    shutil.copyfile(place.log, place.folder / "x.log.1")
    place.look()
    place.append(b"this line is lost, by logrotate's own words\n")
    place.look()
    os.truncate(place.log, 0)
    assert place.look() == "kept"


def test_much_between_copy_and_truncation_is_a_loss(place):
    """Else whoever copies all but what he has just done would have rotated the log."""
    place.append()
    place.look()
    shutil.copyfile(place.log, place.folder / "x.log.1")
    place.append(b"what he did\n" * 400)
    place.look()
    os.truncate(place.log, 0)
    assert place.look() == "shortened"


@pytest.mark.skipif(not LOGROTATE, reason="needs logrotate")
@pytest.mark.parametrize(
    "compress",
    ["nocompress", "compress", "compress\ndelaycompress", "compress\ncompresscmd /usr/bin/xz\ncompressext .xz"],
)
@pytest.mark.parametrize(
    "kind", ["create", "copytruncate", "nocreate", "dateext\ndateformat -%Y%m%d-%s\ncreate", "extension .log\ncreate"]
)
def test_logrotate_itself(place, kind, compress):
    config = place.folder / "conf"
    config.write_text(f"{place.log} {{\nrotate 3\n{kind}\n{compress}\nmissingok\nsu root root\n}}\n")
    for _day in range(6):
        place.append(LINES[:5000])
        assert place.look() == "kept"
        subprocess.run([LOGROTATE, "-f", "-s", place.folder / "state", config], check=True)
        if place.log.exists():
            assert place.look() == "kept"
        else:
            assert place.logs.absent("/x.log").continuity == "rotated"
        if "dateext" in kind:
            time.sleep(1.1)  # the next name is of another second


# -- what is no rotation


def cut_out(place):
    """sed '/line/d' with its result written into the same file."""
    lines = place.log.read_bytes().splitlines(keepends=True)
    with open(place.log, "r+b") as file:
        file.truncate(0)
        file.write(b"".join(lines[:300] + lines[301:]))


def in_place(place):
    cut_out(place)
    place.append(b"and more lines than there were\n" * 20)


def replaced(place):
    other = place.folder / "other"
    other.write_bytes(place.log.read_bytes().replace(b"sshd[7]", b"sshd[8]"))
    os.rename(other, place.log)


def half_copied(place):
    """A rotation that leaves something out."""
    (place.folder / "x.log.1").write_bytes(LINES[: len(LINES) // 2])
    os.truncate(place.log, 0)


def half_packed(place):
    with gzip.open(place.folder / "x.log.1.gz", "wb") as out:
        out.write(LINES[:300] + LINES[400:])
    os.truncate(place.log, 0)


def hidden(place):
    os.rename(place.log, place.folder / ".x")
    place.log.write_bytes(b"")


def old_one(place):
    """The name is right, and something else is in it."""
    (place.folder / "x.log.1").write_bytes(b"x" * 100_000)
    place.log.unlink()
    place.log.write_bytes(b"")


BREAKS = {
    "emptied": (lambda place: os.truncate(place.log, 0), "shortened"),
    "cut": (lambda place: os.truncate(place.log, 20_000), "shortened"),
    "one line less": (cut_out, "shortened"),
    "one line less, and more than before": (in_place, "rewritten"),
    "another file": (replaced, "replaced"),
    "half of it copied": (half_copied, "shortened"),
    "packed without a line": (half_packed, "shortened"),
    "moved to another name": (hidden, "replaced"),
    "a stranger under the name of rotation": (old_one, "replaced or shortened"),
}


@pytest.mark.parametrize(("act", "word"), BREAKS.values(), ids=BREAKS)
def test_what_is_no_rotation_is_told_for_good(place, act, word):
    act(place)
    assert place.look() in word.split(" or ")  # what is made anew may get the inode of what was removed
    word = place.look()
    place.append()
    assert place.look() == word
    renamed(place)
    assert place.look() == word
    place.logs.settle()
    assert place.look() == "kept"


def test_each_loss_counts(place):
    os.truncate(place.log, 20_000)
    assert place.logs.look("/x.log") == ("shortened", len(LINES) - 20_000, False)
    place.append()
    place.look()
    os.truncate(place.log, 0)
    assert place.logs.look("/x.log") == ("shortened", len(LINES) + len(b"one more line\n"), False)


def test_gone_and_back(place):
    place.log.unlink()
    assert place.logs.absent("/x.log") == ("gone", len(LINES), False)
    place.log.write_bytes(b"new")
    assert place.look() in {"replaced", "shortened"}  # the file system may give the same inode


def test_the_limit_that_is_documented(place):
    """As many bytes in the middle as there were: neither beginning nor end nor length say anything."""
    with open(place.log, "r+b") as file:
        file.seek(10_000)
        file.write(b"#" * 50)
    assert place.look() == "kept"


def test_rotated_files_are_followed_in_place_only(place):
    renamed(place)
    assert place.look("/x.log.1") == "kept"
    os.rename(place.folder / "x.log.1", place.folder / "x.log.2")
    renamed(place)
    assert place.look("/x.log.1") == "kept"  # yesterday's
    os.truncate(place.folder / "x.log.2", 50)
    assert place.look("/x.log.2") == "kept"  # seen for the first time
    os.truncate(place.folder / "x.log.2", 20)
    assert place.look("/x.log.2") == "shortened"
    (place.folder / "x.log.2").unlink()
    assert place.logs.absent("/x.log.2").continuity == "rotated"


def test_what_is_compressed_is_not_followed(place):
    (place.folder / "x.log.2.gz").write_bytes(b"\x1f\x8b")
    assert place.look("/x.log.2.gz") == "unknown"
    assert len(place.logs) == 1


def test_a_bound(place, monkeypatch):
    monkeypatch.setattr(logs, "LOGS_MAX", 1)
    (place.folder / "y.log").write_bytes(b"y")
    assert place.look("/y.log") == "unknown"
    assert place.logs.full


@pytest.mark.parametrize(
    ("name", "others", "not_these"),
    [
        (
            "x.log",
            ["x.log.1", "x.log.2.gz", "x.log-20261126", "x-20261126.log", "x.1.log.xz", "x.log.old"],
            ["x.log", "x.log.bak", "y.log.1", "x.log.gz", "xx.log.1", "x.log.1.gpg"],
        ),
        (
            "syslog",
            ["syslog.1", "syslog.7.gz", "syslog-2026-11-26T02:45:30Z.zst"],
            ["syslog", "syslogs.1", "1syslog", "syslog.1x"],
        ),
        ("a+b(.log", ["a+b(.log.1", "a+b(-1.log"], ["aab(.log.1"]),
    ],
)
def test_families(name, others, not_these):
    match = rotation.family(name).match
    assert [other for other in others if not match(other) or not rotation.is_rotated(other)] == []
    assert [other for other in not_these if match(other)] == []


def test_hostile_files_are_no_proof(place):
    """What pretends to be packed is looked into with bounds, and never believed for its name."""
    whole = place.log.read_bytes()
    pack = gzip.compress(whole)
    hostile = {
        "x.log.1.gz": pack[: len(pack) // 2] + pack[-8:],
        "x.log.2.gz": b"\x1f\x8b" + b"\0" * 30,
        "x.log.3.xz": b"\xfd7zXZ\0" + b"\xff" * 60 + b"YZ",
        "x.log.4.xz": b"",
        "x.log.5.zst": b"\x28\xb5\x2f\xfd" + b"\xff" * 3,
        "x.log.9.bz2": b"BZh9" + bytes(40),
        "x.log.6.gz": gzip.compress(bytes(64 << 20)),
    }
    for name, content in hostile.items():
        (place.folder / name).write_bytes(content)
    os.mkfifo(place.folder / "x.log.7")
    os.symlink(place.log, place.folder / "x.log.8")
    os.truncate(place.log, 0)
    assert place.look() == "shortened"


# -- between two runs


def test_the_memory_is_kept(place, tmp_path):
    place.append()
    place.look()
    file = str(tmp_path / "memory")
    logbook.save(file, b"b" * 16, place.logs.items())
    os.truncate(place.log, 0)

    def again(boot):
        other = Logs(str(tmp_path))
        for path, known in logbook.load(file, boot):
            other.remember(path, known)
        return other

    assert again(b"b" * 16).look("/x.log") == ("shortened", len(LINES) + 14, True)
    place.log.unlink()
    place.log.write_bytes(LINES + b"one more line\n" + b"after the boot\n")
    assert again(b"b" * 16).look("/x.log").continuity in {"replaced", "kept"}  # another inode, mostly
    assert again(b"c" * 16).look("/x.log") == ("kept", 0, True)  # restored from a copy, as log2ram does
    assert list(logbook.load(str(tmp_path / "nothing"), b"b" * 16)) == []


tails = st.builds(
    lambda size, digest: rotation.Tail(size, min(size, rotation.SAMPLE), digest),
    st.integers(0, 2**62),
    st.binary(min_size=16, max_size=16),
)
knowns = st.builds(
    lambda inode, head, tail, before, broken, lost: logs.Known(
        inode, rotation.Sample(min(tail.size, 4096), head, tail), before, broken, lost
    ),
    st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    st.binary(min_size=16, max_size=16),
    tails,
    st.none() | tails,
    st.sampled_from(("", *logs.WORDS)),
    st.integers(0, 2**63 - 1),
)
paths = st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw).map(lambda raw: "/" + os.fsdecode(raw))


@settings(max_examples=100)
@given(st.dictionaries(paths, knowns, max_size=5), st.binary(min_size=16, max_size=16))
def test_the_memory_comes_back_as_it_was(found, boot):
    data = logbook.encode(boot, found.items())
    back = dict(logbook.decode(data, boot))
    assert {path: known._replace(loaded=logs.Loaded.SEEN) for path, known in back.items()} == found
    for cut in (1, 7, len(data) // 2):
        with pytest.raises(DecodeError):
            logbook.decode(data[:-cut], boot)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["append", "rename", "copy", "look"]), st.integers(1, 9000)), max_size=12))
def test_any_ordinary_life_is_silent(tmp_path_factory, acts):
    place = Place(tmp_path_factory.mktemp("log"), b"start\n")
    numbers = itertools.count(1)
    for act, number in acts:
        if act == "append":
            place.append(b"%d " % next(numbers) * (number // 4))
        elif act == "look":
            assert place.look() == "kept"
        else:
            target = place.folder / f"x.log.{next(numbers)}"
            if act == "rename":
                os.rename(place.log, target)
                place.log.write_bytes(b"")
            else:
                shutil.copyfile(place.log, target)
                os.truncate(place.log, 0)
    assert place.look() == "kept"


# -- in the sensor

LOG = Watch("/var/log", "log", content=False, checks=CATEGORIES["log"].checks, exclude=("**/*.gz",))


@pytest.fixture
def world(tmp_path):
    (tmp_path / "root").mkdir()
    made = World(tmp_path / "root", [LOG])
    made.write("/var/log/x.log", LINES, 0o640)
    made.learn()
    return made


def test_nothing_of_a_log_is_read_by_learning_and_sweeps(world):
    entry = world.manifest.lookup(b"/var/log/x.log")
    assert (entry.size, entry.digest, entry.category, entry.st_mode & 0o7777) == (0, b"", "log", 0o640)
    assert world.summary.bytes_read == 0
    with open(world.path("/var/log/x.log"), "ab") as file:
        file.write(b"more\n")
    assert world.sweep() == {}
    assert not world.summary.written  # flash is not written for each line
    assert world.sweep(full=True) == {}
    os.chmod(world.path("/var/log/x.log"), 0o666)
    assert set(world.sweep()) == {"/var/log/x.log"}


def test_live(world, tmp_path):
    live = Live(world, tmp_path)
    log = world.path("/var/log/x.log")
    try:
        list(live.sensor.look_at_logs(1, Origin.SWEEP))
        with open(log, "ab") as file:
            file.write(b"more\n")
        os.rename(log, log + b".1")
        world.write("/var/log/x.log", b"", 0o640)
        world.write("/var/log/y.log", b"new\n")
        os.truncate(log, 0)
        world.write("/var/log/z.log", b"new\n" * 100)
        list(live.sensor.look_at_logs(2, Origin.SWEEP))
        os.truncate(world.path("/var/log/z.log"), 3)
        seen = live.seen(lambda found: "/var/log/z.log" in found)
        assert set(seen) == {"/var/log/z.log"}
        assert (seen["/var/log/z.log"].columns["continuity"], seen["/var/log/z.log"].columns["lost"]) == (
            "shortened",
            400,
        )
        os.unlink(world.path("/var/log/x.log.1"))
        os.chmod(log, 0o666)
        seen = live.seen(lambda found: "/var/log/x.log" in found)
        assert (seen["/var/log/x.log"].columns["mode"], seen["/var/log/x.log"].columns["continuity"]) == (0o666, "kept")
    finally:
        live.sensor.close()


def test_while_it_was_away(world, tmp_path):
    live = Live(world, tmp_path)
    list(live.sensor.look_at_logs(1, Origin.SWEEP))
    live.sensor.close()
    os.truncate(world.path("/var/log/x.log"), 100)
    live = Live(world, tmp_path)
    try:
        (seen,) = live.sensor.look_at_logs(2, Origin.DOWN)
        assert (seen.origin, seen.actor, seen.columns["continuity"]) == (Origin.DOWN, NOBODY, "shortened")
        assert [seen.columns["continuity"] for seen in live.sensor.look_at_logs(3, Origin.SWEEP)] == ["shortened"]
        live.sensor.relearned()
        assert [seen.columns["continuity"] for seen in live.sensor.look_at_logs(3, Origin.SWEEP)] == ["kept"]
        assert list(live.sensor.look_at_logs(4, Origin.SWEEP)) == []
        os.unlink(world.path("/var/log/x.log"))
        (seen,) = live.sensor.look_at_logs(5, Origin.SWEEP)
        assert (seen.status, seen.columns["continuity"]) == (Status.ABSENT, "gone")
    finally:
        live.sensor.close()
