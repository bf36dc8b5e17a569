"""The deep sweep: everything is read once a round, in slices that go on where the last one ended, whatever happens in
between; and what it tells is what differs."""

import fcntl
import io
import os

import pytest
from files_world import PRESENT, UNREADABLE, World
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.codec.digests import Algorithm
from edgeguard.errors import DecodeError
from edgeguard.model import Watch
from edgeguard.sensors import content, deep
from edgeguard.sensors.deep import Position

DAY_S = 86_400


@pytest.fixture(params=Algorithm)
def world(tmp_path, request):
    made = World(
        tmp_path / "root", [Watch("/etc", "config"), Watch("/", "other", only="setid"), Watch("/log", "other")]
    )
    made.algorithm = request.param
    for number in range(40):
        made.write(f"/etc/{number % 7}/file{number:02d}", b"x" * number * 100)
    made.write("/bin/su", b"program", 0o4755)
    made.write("/bin/plain", b"program")
    made.write("/etc/0.conf")
    made.learn()
    return made


def slice_of(world, position, now=0, seen=None, **options):
    options = {"slices": 5, "seconds": 600.0, "hash_file_max": 1 << 30} | options
    emit = (seen if seen is not None else []).append
    watches, old = world.watches, io.BytesIO(world.observed)
    return deep.read_slice(watches, str(world.root), world.manifest, old, position, now, DAY_S, emit, **options)


def rounds(world, seen=None, **options):
    """Slices until a round is complete."""
    position, slices = Position(), []
    while not (slices and slices[-1].complete):
        slices.append(slice_of(world, position, len(slices) * DAY_S * 200, seen, **options))
        position = Position.from_cbor(slices[-1].position.to_cbor())  # a restart in between
    return slices


def hide(world, path, content_):
    """Change a content so that not even the change time tells: what was last seen is made to fit."""
    full = world.path(path)
    before = os.stat(full)
    with open(full, "r+b") as file:
        file.write(content_)
    after = os.stat(full)
    old = before.st_ctime_ns.to_bytes(8, "little", signed=True)
    world.observed = world.observed.replace(old, after.st_ctime_ns.to_bytes(8, "little", signed=True))


def test_a_round_reads_every_file_once(world):
    slices = rounds(world, seen := [])
    assert len(slices) == 5
    assert sum(part.files for part in slices) == 42
    assert sum(part.bytes_read for part in slices) == sum(100 * number for number in range(40)) + 14
    assert seen == []


def test_what_a_sweep_cannot_see_is_found(world):
    hide(world, "/etc/3/file31", b"evil")
    hide(world, "/bin/su", b"EVIL")
    assert world.sweep() == {}
    rounds(world, seen := [])
    assert sorted(item.subject for item in seen) == ["/bin/su", "/etc/3/file31"]
    assert {item.status for item in seen} == {PRESENT}
    rounds(world, again := [])
    assert {item.subject for item in again} == {item.subject for item in seen}


def test_a_round_in_which_much_is_added_ends_in_time_all_the_same(world):
    slices = [slice_of(world, Position())]
    for number in range(40):
        world.write(f"/etc/later/file{number:02d}", b"x" * 200_000)
    world.sweep()
    while not slices[-1].complete:
        slices.append(slice_of(world, slices[-1].position, len(slices) * DAY_S * 200))
    assert sum(part.files for part in slices) == 82
    assert len(slices) <= 10


def test_what_is_known_to_differ_is_told_again_until_it_does_not(world):
    world.write("/etc/1/file01", b"evil")
    world.sweep()
    rounds(world, seen := [])
    assert [item.subject for item in seen] == ["/etc/1/file01"]


def test_files_that_came_and_went_are_left_to_sweeps(world):
    slices = [slice_of(world, Position())]
    os.unlink(world.path("/etc/0/file00"))
    os.rename(world.path("/etc/6"), world.path("/etc/5b"))
    world.write("/etc/4/new")
    seen = []
    while not slices[-1].complete:
        slices.append(slice_of(world, slices[-1].position, DAY_S * 2000, seen))
    assert seen == []


def test_it_goes_on_where_it_was_although_the_last_file_is_gone(world):
    first = slice_of(world, Position())
    os.unlink(world.path(first.position.after))
    world.sweep()
    names = []
    position = first.position
    while True:
        part = slice_of(world, position, DAY_S * 2000)
        names.append(part.files)
        if part.complete:
            break
        position = part.position
    assert first.files + sum(names) == 42


def test_a_device_that_was_off_makes_haste_within_reason(world):
    start = slice_of(world, Position(), slices=40)
    cost = start.position.done
    late = slice_of(world, start.position, DAY_S * 1000, slices=40)
    largest = 4000 + deep.FILE_COST
    assert cost < late.position.done - cost <= deep.HASTE * start.position.total // 40 + largest


def test_a_clock_that_was_set_back_stops_nothing(world):
    position = slice_of(world, Position(), 10**15).position
    assert slice_of(world, position, 5).position.done > position.done


def test_a_slice_ends_in_time(world):
    times = iter(range(1000))
    done = slice_of(world, Position(), clock=lambda: next(times), seconds=3.0, slices=1)
    assert (done.complete, done.files) == (False, 3)


def test_what_cannot_be_read_is_said(world):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    os.chmod(world.path("/etc/2/file30"), 0)
    rounds(world, seen := [])
    assert [item.status for item in seen] == [UNREADABLE]


def test_a_damaged_memory_is_our_error(world):
    world.observed = world.observed[:-5]
    with pytest.raises(DecodeError):
        rounds(world)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_position(data):
    position = Position.from_cbor(data)
    assert all(value >= 0 for value in position[:3])


def test_a_position_comes_back():
    position = Position(1, 2, 3, b"/etc/\xff")
    assert Position.from_cbor(position.to_cbor()) == position


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, content.CHUNK, content.CHUNK + 1, 3 * content.CHUNK - 1])
def test_what_lies_on_the_disk_is_what_was_written(tmp_path, size):
    from hashlib import sha256

    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as file:
        disk = content.Disk()
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        there = disk.digest(file.fileno(), size, sha256)
        if there is not None:  # a file system that reads directly
            assert there == (sha256(data).digest(), size, True)
            shorter = disk.digest(file.fileno(), size + 10, sha256)
            assert shorter == (sha256(data).digest(), size, True)
            if size <= content.CHUNK:
                assert disk.read(file.fileno(), size) == data
                assert disk.read(file.fileno(), size + 4096) is None
        assert fcntl.fcntl(file, fcntl.F_GETFL) == flags  # others who hold this descriptor read as before
