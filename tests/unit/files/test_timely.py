"""What is not listed because its change time says that nothing was put in or taken out."""

import io
import os
import shutil
from collections import Counter

import pytest
from files_world import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeguard.linux import dirents, mounts
from edgeguard.linux.mounts import Mount
from edgeguard.model import Watch
from edgeguard.sensors import observed, timely, walk
from edgeguard.sensors.observed import NO_LISTING, STAT

FILES = ("/etc/a", "/etc/d/a", "/etc/d/b", "/etc/d/e/a", "/etc/d/e/f/a", "/etc/d/e/f/b", "/etc/g/a")


@pytest.fixture(autouse=True)
def _kept_well(monkeypatch, tmp_path):
    """Wherever tests run."""
    mounted(monkeypatch, tmp_path)


def mounted(patch, place, fstype=None, point="/"):
    """The file system of a place is of a type that keeps times, and mounted there."""
    device = os.lstat(place).st_dev
    table = [Mount(1, 0, f"{os.major(device)}:{os.minor(device)}", "/", str(point), (), (), fstype or "ext4", "x", ())]
    patch.setattr(mounts, "read", lambda: table)


@pytest.fixture
def listed(monkeypatch):
    return counting(monkeypatch)


def counting(patch):
    """How often each directory is listed from now on."""
    counts = Counter()
    real = dirents.Listing.read

    def read(self, fd, most):
        counts[os.readlink(f"/proc/self/fd/{fd}").rpartition("/etc")[2]] += 1
        return real(self, fd, most)

    patch.setattr(dirents.Listing, "read", read)
    return counts


def made(root, *watches):
    world = World(root, list(watches) or None)
    for path in FILES:
        world.write(path)
    world.learn()
    return world


@pytest.fixture
def world(tmp_path):
    return made(tmp_path / "root")


def once(world):
    """A sweep that lists, and what it leaves to the next."""
    assert world.sweep() == {}
    tick(world)
    return world.summary.began


def tick(world):
    """Until what changes has another change time: nothing is racy here."""
    file = world.root.parent / "tick"
    file.touch()
    before = os.lstat(file).st_ctime_ns
    while os.lstat(file).st_ctime_ns == before:
        os.utime(file)


def test_only_what_lies_in_no_other_is_listed(world, listed):
    since = once(world)
    assert sorted(listed) == ["", "/d", "/d/e", "/d/e/f", "/g"]
    listed.clear()
    assert world.sweep(since=since) == {}
    assert listed == {"": 1}
    assert world.summary.files == len(FILES) + len(("/etc", "/etc/d", "/etc/d/e", "/etc/d/e/f", "/etc/g"))
    assert not world.summary.written
    assert world.summary.began >= since


@pytest.mark.parametrize(("later", "count"), [(3, 1), (1, 5), (-60, 5)])
def test_a_time_from_just_before_the_last_sweep_or_from_after_it_is_listed(world, listed, later, count):
    """It may be given once more: the clock has steps, and it may have been ahead when it was given."""
    once(world)
    listed.clear()
    last = max(os.lstat(above).st_ctime_ns for above, _, _ in os.walk(world.root / "etc/d"))
    assert world.sweep(since=last + later * 1_000_000_000) == {}
    assert sum(listed.values()) == count


def test_of_two_file_systems_only_the_one_that_keeps_them_is_believed(world, listed, monkeypatch):
    since = once(world)
    listed.clear()
    monkeypatch.setattr(mounts, "read", lambda: [Mount(1, 0, "0:1", "/", "/", (), (), "ext4", "x", ())])
    real = walk.Walker.__init__

    def begins_on_both(walker, *args):
        real(walker, *args)
        walker._devices.add(1)

    monkeypatch.setattr(walk.Walker, "__init__", begins_on_both)
    world.sweep(since=since)
    assert len(listed) == 5


def test_who_does_not_know_when_the_last_one_began_has_it_listed(world, listed):
    once(world)
    listed.clear()
    world.sweep(since=None)
    assert len(listed) == 5


def test_where_times_are_not_kept_it_is_listed(world, listed, monkeypatch, tmp_path):
    since = once(world)
    mounted(monkeypatch, tmp_path, "vfat")
    listed.clear()
    world.sweep(since=since)
    assert len(listed) == 5


@pytest.mark.parametrize("how", ["full", "cached", "compare"])
def test_who_wants_more_has_it_listed(world, listed, how):
    since = once(world)
    listed.clear()
    world.sweep(since=since, full=how != "compare", cached=how == "cached", compare=how == "compare")
    assert len(listed) == 5


def remove(full):
    shutil.rmtree(full) if os.path.isdir(full) and not os.path.islink(full) else os.unlink(full)


CHANGES = {
    "new": lambda world: world.write("/etc/d/e/new"),
    "new and old": lambda world: (world.write("/etc/d/e/new"), world.write("/etc/d/e/a", b"other")),
    "gone": lambda world: remove(world.path("/etc/d/e/f/b")),
    "renamed": lambda world: os.rename(world.path("/etc/d/e/f/b"), world.path("/etc/d/e/f/c")),
    "moved": lambda world: os.rename(world.path("/etc/d/e/f/b"), world.path("/etc/g/b")),
    "exchanged": lambda world: os.rename(world.path("/etc/d/b"), world.path("/etc/d/a")),
    "directory": lambda world: world.write("/etc/d/e/f/g/h/i"),
    "empty directory": lambda world: os.mkdir(world.path("/etc/d/e/f/g")),
    "directory gone": lambda world: remove(world.path("/etc/d/e/f")),
    "another directory": lambda world: (
        os.rename(world.path("/etc/d/e/f"), world.path("/etc/old")),
        world.write("/etc/d/e/f/a"),
    ),
    "hard link": lambda world: os.link(world.path("/etc/g/a"), world.path("/etc/d/e/f/c")),
    "link": lambda world: os.symlink("a", world.path("/etc/d/e/f/c")),
    "link for a directory": lambda world: (
        os.rename(world.path("/etc/d/e"), world.path("/etc/e")),
        os.symlink("../e", world.path("/etc/d/e")),
    ),
    "content": lambda world: world.write("/etc/d/e/f/b", b"CONTENT"),
    "rights": lambda world: os.chmod(world.path("/etc/d/e/f"), 0o700),
    "old times": lambda world: (world.write("/etc/d/e/f/c"), os.utime(world.path("/etc/d/e/f"), (1, 1))),
    "came and went": lambda world: (world.write("/etc/d/e/f/c"), remove(world.path("/etc/d/e/f/c"))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_tells_what_a_listing_tells(world, change):
    since = once(world)
    CHANGES[change](world)
    same_both_ways(world, since)
    if change != "came and went":
        assert world.told


def same_both_ways(world, since):
    before = world.observed
    by_listing, listing = world.sweep(), world.observed
    world.observed = before
    world.told = world.sweep(since=since)
    assert world.told == by_listing
    assert world.observed == listing


OTHERS = ("/etc/d/e", "/etc/d/new", "/etc/d/e/f/new", "/etc/g/x/y", "/etc/g")
PATHS = st.sampled_from(FILES + OTHERS)
DEEDS = st.lists(st.tuples(st.sampled_from(["write", "remove", "move", "link", "mkdir"]), PATHS, PATHS), max_size=6)


@given(rounds=st.lists(DEEDS, max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_done_between_sweeps(tmp_path_factory, rounds):
    world = made(tmp_path_factory.mktemp("world") / "root")
    with pytest.MonkeyPatch.context() as patch:
        mounted(patch, world.root)
        since = once(world)
        for deeds in rounds:
            for deed, one, other in deeds:
                done(world, deed, one, other)
            same_both_ways(world, since)
            since = world.summary.began
            tick(world)


def done(world, deed, one, other):
    here, there = world.path(one), world.path(other)
    try:
        if deed == "write":
            world.write(one, other.encode())
        elif deed == "remove":
            remove(here)
        elif deed == "move":
            os.rename(here, there)
        elif deed == "link":
            os.link(here, there)
        else:
            os.makedirs(here)
    except OSError:
        pass  # there is no such thing, or there is already


def record(world, directory):
    return next(one for one in observed.Reader(io.BytesIO(world.observed)).records() if one.directory == directory)


def test_where_only_set_id_programs_are_watched(tmp_path, listed):
    world = made(tmp_path / "root", Watch("/etc", "other", only="setid"))
    since = once(world)
    listed.clear()
    assert world.sweep(since=since) == {}
    assert sum(listed.values()) == 1
    world.write("/etc/d/e/f/new", mode=0o4755)
    assert sorted(world.sweep(since=since)) == ["/etc/d/e/f/new"]


def test_what_names_vanished_from_is_listed(world, listed):
    since = once(world)
    raw = record(world, b"/etc/d/e").raw
    without = raw.replace(record(world, b"/etc/d/e").listing, NO_LISTING)
    world.observed = world.observed.replace(raw, without)
    listed.clear()
    world.sweep(since=since)
    assert listed["/d/e"] == 1


def test_after_trouble_nothing_is_believed(world, monkeypatch):
    """Of what was not looked at an older record is kept, beside a newer one of the directory that it lies in."""
    since = once(world)
    world.write("/etc/d/e/f/new")
    monkeypatch.setattr(walk, "NAMES_MAX", 2)
    assert world.sweep(since=since)["/etc/d/e/f"].note
    assert world.summary.began == 0
    monkeypatch.undo()
    assert "/etc/d/e/f/new" in world.sweep(since=world.summary.began)


def test_what_root_can_do_with_the_clock(world, monkeypatch):
    """A name that comes while the clock is set to the change time of its directory: not told by a sweep that believes
    it, hence the daemon asks for none after the clock was set, and for one that lists each day."""
    since = once(world)
    at = STAT.unpack(record(world, b"/etc/d").stats[-STAT.size :])
    world.write("/etc/d/e/new")
    seen = os.lstat(world.path("/etc/d/e"))
    assert at[0] == seen.st_ino
    world.observed = world.observed.replace(STAT.pack(*at), STAT.pack(seen.st_ino, seen.st_ctime_ns, seen.st_size))
    assert world.sweep(since=since) == {}
    assert sorted(world.sweep()) == ["/etc/d/e/new"]


def test_a_directory_above_a_mount_that_was_renamed(world, listed, monkeypatch, tmp_path):
    """So mounts change places, and nobody is told."""
    once(world)
    above = tmp_path / "above"
    (above / "one").mkdir(parents=True)
    mounted(monkeypatch, world.root, point=above / "one/point")
    listed.clear()
    world.sweep(since=above.stat().st_ctime_ns + 3_000_000_000)
    assert len(listed) == 1
    listed.clear()
    tick(world)
    (above / "one").rename(above / "two")
    mounted(monkeypatch, world.root, point=above / "two/point")
    world.sweep(since=(above / "two").stat().st_ctime_ns + 2_000_000_000)
    assert len(listed) == 5


def test_it_says_when_it_began(world):
    """What changes while it is on its way may be after its look."""
    times = []
    world.write("/etc/d/e/f/new")
    clock, world.clock = world.clock, lambda: times.append(clock()) or times[-1]
    assert world.sweep()
    assert world.summary.began == times[0] < times[-1]


DEVICES = {os.makedev(8, 2), os.makedev(8, 1), os.makedev(0, 30), os.makedev(259, 3)}


def test_what_is_believed(monkeypatch):
    monkeypatch.undo()
    lines = [b"24 1 8:2 / / rw - ext4 /dev/sda2 rw", b"25 1 8:1 / /boot rw - vfat /dev/sda1 rw"]
    lines += [b"26 1 0:30 / /o rw - overlay overlay rw", b"27 1 259:3 / /srv rw - xfs /dev/nvme0n1p3 rw"]
    monkeypatch.setattr(mounts, "read", lambda: mounts.parse(b"\n".join(lines)))
    later = (os.lstat("/").st_ctime_ns // 10**9 + 1) * 10**9
    assert timely.believed(DEVICES, later) == ({os.makedev(8, 2), os.makedev(259, 3)}, later)
    assert timely.believed({os.makedev(259, 3)}, later) == ({os.makedev(259, 3)}, later)
    assert timely.believed(DEVICES, 1 << 62).until == (2**31 - 1) * 10**9
    assert timely.believed(DEVICES, os.lstat("/").st_ctime_ns) == timely.Believed()
    lines.append(b"28 1 8:2 / /is/not/there rw - ext4 /dev/sda2 rw")
    assert timely.believed(DEVICES, later) == timely.Believed(), "somebody moved it just now"

    def refuse():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mounts, "read", refuse)
    assert timely.believed(DEVICES, later) == timely.Believed()
