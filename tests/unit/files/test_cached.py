"""A scan through the page cache reads everything, tells what a thorough one tells, and takes nothing back that only a
thorough one can see."""

import io

import pytest
from files_world import World

from edgeguard.codec import sha
from edgeguard.model import Watch
from edgeguard.sensors import content, observed, walk
from edgeguard.sensors.look import CHUNK, ONLY_DISK, ONLY_READ

HELD = {"/etc/a": b"one", "/etc/b": b"two", "/etc/large": b"x" * (CHUNK + 5), "/plain/c": b"three"}
OTHER = sha.digest(b"what lies on the disk")


@pytest.fixture
def world(tmp_path):
    (tmp_path / "root").mkdir()
    world = World(tmp_path / "root", [Watch("/etc", "config"), Watch("/plain", "log", checks=frozenset({"mode"}))])
    for path, held in HELD.items():
        world.write(path, held)
    world.learn()
    return world


@pytest.fixture
def no_disk(monkeypatch):
    def refuse(*_args):
        raise AssertionError("read from the disk")

    monkeypatch.setattr(content.Disk, "read", refuse)
    monkeypatch.setattr(content.Disk, "digest", refuse)


def differs(monkeypatch, size):
    """Of files of this size, something else lies on the disk."""
    read, digest = content.Disk.read, content.Disk.digest

    def on_disk(self, fd, wanted, new_hash):
        if wanted == size:
            return content.OnDisk(OTHER, wanted, as_read=False)
        return digest(self, fd, wanted, new_hash)

    monkeypatch.setattr(
        content.Disk, "read", lambda self, fd, wanted: None if wanted == size else read(self, fd, wanted)
    )
    monkeypatch.setattr(content.Disk, "digest", on_disk)


def test_everything_is_read_and_nothing_from_the_disk(world, no_disk):
    assert world.sweep(full=True, cached=True) == {}
    assert world.summary.bytes_read == sum(map(len, HELD.values()))
    assert not world.summary.written


@pytest.mark.parametrize("path", HELD)
def test_what_differs_is_told_as_a_thorough_scan_tells_it(world, path):
    before = world.observed
    world.write(path, HELD[path].swapcase())
    told = world.sweep(full=True, cached=True)
    kept, world.observed = world.observed, before
    assert world.sweep(full=True) == told
    assert list(told) == [path]
    assert kept == world.observed
    assert told[path].columns["sha256"] == sha.digest(HELD[path].swapcase())


def test_it_reads_what_looks_unchanged(world, monkeypatch):
    """A change that no size and no time tells, as by a write below the file system."""
    world.write("/etc/a", b"ONE")
    stats = {}
    original = walk.Walker._stat

    def unchanged(names, fd, found, packed, directories):
        original(names, fd, found, packed, directories)
        packed[:] = [stats.get(name, bits) for name, bits in zip(names, packed, strict=True)]

    for record in observed.Reader(io.BytesIO(world.observed)).records():
        stats |= {name.decode(): bits for name, (bits, _) in record.looks().items()}
    monkeypatch.setattr(walk.Walker, "_stat", staticmethod(unchanged))
    assert list(world.sweep(full=True, cached=True)) == ["/etc/a"]


def test_what_only_the_disk_has_is_not_taken_back(world, monkeypatch):
    with monkeypatch.context() as patch:
        differs(patch, len(HELD["/etc/a"]))
        for cached in (False, True, True):
            told = world.sweep(full=True, cached=cached)
            assert {path: seen.note for path, seen in told.items()} == {"/etc/a": ONLY_DISK, "/etc/b": ONLY_DISK}
    told = world.sweep(full=True, cached=True)  # it was put right
    assert {path: seen.columns["sha256"] for path, seen in told.items()} == {
        path: sha.digest(HELD[path]) for path in ("/etc/a", "/etc/b")
    }


def test_what_only_programs_get_is_told(world, monkeypatch):
    """Known to be so already, and still not as it should be: told again, as by a thorough scan."""
    world.write("/etc/a", b"ONE")
    differs(monkeypatch, 3)
    assert world.sweep(full=True, cached=True)["/etc/a"].note == ONLY_READ
    assert world.sweep(full=True, cached=True)["/etc/a"].note == ONLY_READ


def test_what_was_never_seen_is_read_from_the_disk(world, monkeypatch):
    world.write("/etc/new", b"12345678")
    asked = []
    original = content.Disk.read
    monkeypatch.setattr(content.Disk, "digest", lambda _self, _fd, size, _new_hash: asked.append(size))
    monkeypatch.setattr(content.Disk, "read", lambda self, fd, size: asked.append(size) or original(self, fd, size))
    assert list(world.sweep(full=True, cached=True)) == ["/etc/new"]
    assert asked == [8]
    world.observed = None
    asked.clear()
    world.sweep(full=True, cached=True)
    assert len(asked) >= len(HELD)
